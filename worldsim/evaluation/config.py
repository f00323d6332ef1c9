"""What `worldsim eval` can be asked to measure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from worldsim.errors import ConfigError
from worldsim.evaluation.first_minute import FirstMinute


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What to measure, on what."""

    world: Path
    """A world's folder or hub id, or the name of a shipped world."""
    data: Path | None = None
    """The folder of a dataset of the same game (default: data/NAME)."""
    split: str = "heldout"
    """The split of its episodes: heldout, unseen or train."""
    prompts: Literal["recorded", "held"] = "recorded"
    """The prompts in force: those recorded with each frame, or the last one before the first predicted frame."""
    episodes: int = 64
    """The most episodes to read."""
    horizons: tuple[int, ...] = (1, 16, 64, 256)
    """Frames of free-running rollouts after which to measure; those longer than the episodes are cut to fit."""
    starts: int | None = None
    """Places to begin from: in the recording, for each horizon (default: 48), or in the real game, for each beginner of
    the first minute (default: 16)."""
    free: int = 1000
    """Frames of the long free run (0: none)."""
    free_starts: int = 8
    long_rollout: int = 0
    """Frames of long-horizon rollouts under no input, held, random and recorded input (0: none)."""
    long_rollout_starts: int = 4
    """Sessions under each of these."""
    memory: bool = False
    """Look away and back in the real game and in the world, for the games that have keys to turn with."""
    memory_starts: int = 16
    """Segments for each time away."""
    first_minute: bool = False
    """Let four scripted beginners play the world and the real game: one holds a key, one taps at random, one steers by
    what it sees, one rests. Needs no recording, and measures nothing else."""
    seconds: float = 60.0
    """Length of a beginner's session, of the game's time."""
    prompt_seconds: float = 20.0
    """Length of those that begin from a prompt alone, where prompts name colors (0: none)."""
    ages: tuple[int, ...] = (16, 64, 256)
    """Steps after which a beginner's frames are told from real ones and compared with the reference ranges."""
    rest_ages: tuple[int, ...] = (64, 128, 256, 400)
    """Steps of rest after which stillness is measured; the resting sessions last until the last of them."""
    beginners: tuple[str, ...] = ("hold", "tap", "steer", "rest")
    """Which of the four."""
    first_frames: int = 60
    """First frames that the first minute samples from prompts (0: none)."""
    probes: bool = True
    """Whether the first minute also measures how the world follows its actions and recovers from a patch of noise."""
    events: bool = False
    """Type the prompts of events in play, for games that have events; trains a classifier first, in a minute or two."""
    event_starts: int = 16
    """Tries of each event in known places, and as many in places it was held out of."""
    prompt_starts: int = 64
    """Starts from prompts of training, and as many from unseen ones, where a game measures that (0: none)."""
    features: bool = False
    """Also measure clips of 64 frames by a network's features and VMAF (needs the extra `judge`)."""
    num_denoising_steps: int | None = None
    """Denoising steps of a frame (default: what the world says; so too the next two)."""
    history_sigma: float | None = None
    guidance: float | None = None
    noise_scale: float | None = None
    """Scale of the noise that frames are sampled from (default: the world's)."""
    batch: int = 16
    """Sessions that are stepped together."""
    basics: bool = True
    """Measure next frames, horizons, free run, starts from prompts; off leaves only what is asked for beside them."""
    runtime: str = "eager"
    """The runtime: eager, auto (the fastest that `worldsim tune` found), or another one by name."""
    seed: int = 0
    threads: int | None = None
    """CPU threads (default: all)."""
    out: Path | None = None
    """Folder for report.json and the contact sheets (default: runs/eval-NAME)."""
    json: bool = False
    """Print JSON instead of a table."""
    save_to_card: bool = False
    """Write the results into the world's world.json."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        least = {"episodes": 1, "free": 0, "free_starts": 1, "prompt_starts": 0, "batch": 1}
        least |= {"long_rollout": 0, "long_rollout_starts": 1, "memory_starts": 1, "event_starts": 1}
        least |= {} if self.starts is None else {"starts": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {low}.")
        if self.prompts not in ("recorded", "held"):
            raise ConfigError(f"prompts is {self.prompts!r}; allowed: 'recorded', 'held'.")
        if min(self.horizons, default=1) < 1:
            raise ConfigError(f"horizons are {self.horizons}; all must be at least 1.")

    @property
    def segments(self) -> int:
        """Number of segments of the recording."""
        return 48 if self.starts is None else self.starts

    def minute(self, out: Path) -> FirstMinute:
        """Return the settings of the first minute, with its contact sheets in `out`."""
        names = (
            "seconds",
            "prompt_seconds",
            "ages",
            "rest_ages",
            "beginners",
            "first_frames",
            "probes",
            "batch",
            "runtime",
            "seed",
        )
        settings = {name: getattr(self, name) for name in names}
        return FirstMinute(starts=16 if self.starts is None else self.starts, out=out, **settings)
