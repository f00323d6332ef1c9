"""What a training run of the dynamics is told; the command line is made from it."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from worldsim.errors import ConfigError
from worldsim.models.dit import DiTConfig
from worldsim.training.trainer import TrainerConfig


@dataclass(frozen=True, kw_only=True)
class DynamicsTraining:
    """What `worldsim train dynamics` does."""

    data: Path
    """A recorded dataset."""
    extra_data: tuple[Path, ...] = ()
    """Further recordings of the same game to train on: another player's, say."""
    autoencoder: Path | None = None
    """The run folder of a trained autoencoder (default: runs/DATASET-autoencoder)."""
    out: Path | None = None
    """The run folder (default: runs/DATASET); a run that was stopped there goes on."""
    init_from: Path | None = None
    """A world to go on from: its autoencoder, its model and its weights."""
    model: DiTConfig = field(default_factory=DiTConfig)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(minutes=60))
    segments: int = 6
    frames: int = 8
    """Frames of a segment. In play a world remembers `context` of them, at most one less, as no frame of a segment sees
    more. For a longer memory give both; it is taken from here also where a world is gone on from."""
    long_frames: int = 0
    """Frames of the segments of every `long_every`-th step, all recorded, and as many in all as in other steps: a
    longer context (give `context` too) for fewer short segments (0: no such steps; Dreamer 4, arXiv:2509.24527)."""
    long_every: int = 6
    no_history: float = 0.15
    """Share of segments that begin from nothing but the prompt."""
    terminal_segments: int = 1
    """Segments in which an episode ends, as few others show it (at most those that are not its own)."""
    event_segments: int = 1
    """Segments in which an event is told, where a recording has any (at most those that are left). With its words given
    none gets likelier; without them (`prompt_dropout`) a little."""
    image_samples: int = 8
    """Single frames from nothing but the prompt, beside the segments."""
    start_frames: int = 32
    """These frames, and segments that begin from nothing, are of the first so many frames of episodes, as play begins
    there: later ones may show what no session should begin with, such as a car off the road (0: of all frames)."""
    context_prob: float | None = None
    """Share of frames that take the part of the past, seen and not drawn (default: .15 for energy, .3 for flow)."""
    history_noise: float = 0.2
    """Largest noise level mixed into the history."""
    history_sigma: float = 0.02
    """The one in play, and in the model's own rollouts. At .1 a car-racing world loses its roads twice as often."""
    prompt_dropout: float = 0.1
    num_denoising_steps: int | None = None
    """Denoising steps of a frame, in its own rollouts and later in the world (default: 1 for energy, 2 for flow)."""
    clean_pass: bool = False
    """Whether reward and cache come from one more pass over each finished frame, not from its last denoising pass."""
    rollout_segments: int = 3
    """Self-rollout segments of a batch (self-forcing): their past is what the model drew. With flow, more of them hold
    longer and blur the next frame."""
    rollout_start: int = 700
    """Steps before that begins."""
    rollout_length: int = 8
    """Frames of such a segment, the last ones, that the model draws."""
    rollout_buffer: int = 16
    rollout_reuse: int = 1
    rollout_rests: float = 0.25
    """Share of these segments in which nothing moves, where the recording has such: up to 256 frames deep."""
    rollout_trust: float = 0.15
    """How far the model's own past may be from the recorded one, as a share of how far unrelated frames are, until what
    happened next counts half, place by place, in its own segments: what went another way is not to jump back (0: all of
    it counts)."""
    head_weight: float = 0.1
    """Of the loss of the reward."""
    termination_weight: float = 1.0
    """Of the loss of the end."""
    objective: Literal["energy", "flow"] = "energy"
    """energy: one pass draws a frame (see `diffusion.energy`). flow: flow matching, some passes a frame."""
    both_gradients: bool = False
    """Whether the gradient of that score goes through both draws. Through one it is the same on the average, as both
    are alike, for two thirds of the work."""
    evenness: float = 0.0
    """How evenly segments are sampled over clusters of what is seen (`data.coverage`): 0 as recorded, 1 even."""
    error_prob: float = 0.0
    """Share of the recorded segments whose past has errors that the model made in rollouts of other segments."""
    error_scale: float = 0.5
    """Scale of these errors: part of each is honest chance."""
    second_sample_start: int = 0
    """Steps of the energy objective with one draw, which only learns to be near: half the work, to begin with."""
    spatially_shared_noise: float = 0.5
    """Share of the noise's channels that are the same at every place of a frame, for energy."""
    noise_scale: float = 1.0
    """Scale of the noise that the trained world draws frames from, for energy: below 1, likelier frames. Then strange
    ones are rare, but what is uncertain fades in long play, such as the far end of a road."""
    scales: tuple[int, ...] = (1, 2, 4)
    """Sides of the blocks of latents that the energy score compares as one vector each."""
    pixel_metric: bool = True
    """Whether that score weighs latents by what they change in the picture, see `training.latent_metric`."""
    saliency_weight: float = 0.0
    """Share of that score that goes to places by how far they are from what is mostly there, frame by frame: for small
    things that matter in a scene that hardly changes. What appears by chance then does so more often than it should."""
    compile: bool | None = None
    """Compile the transformer's blocks: two minutes once, then a step takes less than half. It needs a C++ compiler
    (default: for runs of 1000 steps or ten minutes and more, where there is one)."""

    def __post_init__(self) -> None:
        """Check what belongs together."""
        if self.frames < 2:
            raise ConfigError(f"frames is {self.frames}; a segment has at least 2, or nothing in it has a past.")
        if self.long_frames and not self.frames < self.long_frames <= self.frames * self.segments:
            raise ConfigError(
                f"long_frames is {self.long_frames}; allowed: 0, or more than frames ({self.frames}) and at most the "
                f"{self.frames * self.segments} of a batch."
            )
        if self.long_every < 1:
            raise ConfigError(f"long_every is {self.long_every}; it must be at least 1.")
        for name in ("rollout_segments", "terminal_segments", "event_segments", "image_samples", "start_frames"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0.")
        if self.objective not in ("energy", "flow"):
            raise ConfigError(f"objective is {self.objective!r}; allowed: 'energy', 'flow'.")
        if self.objective == "energy" and self.denoising_steps() != 1:
            raise ConfigError(
                f"num_denoising_steps is {self.num_denoising_steps}; the energy objective trains a single step only."
            )
        for name in (
            "history_noise",
            "saliency_weight",
            "rollout_rests",
            "rollout_trust",
            "evenness",
            "error_prob",
            "error_scale",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 0 to 1.")
        if not 0 <= self.history_sigma <= self.history_noise:
            raise ConfigError(
                f"history_sigma is {self.history_sigma}; allowed: 0 to history_noise, {self.history_noise}, as no "
                "other noise is seen in training."
            )
        if self.rollout_segments > self.segments:
            raise ConfigError(
                f"rollout_segments is {self.rollout_segments} of {self.segments} segments; allowed: at most all."
            )

    def denoising_steps(self) -> int:
        """Denoising steps of a frame."""
        return self.num_denoising_steps or (1 if self.objective == "energy" else 2)

    def context_share(self) -> float:
        """Share of frames that take the part of the past."""
        return (0.15 if self.objective == "energy" else 0.3) if self.context_prob is None else self.context_prob

    def longest(self) -> int:
        """Frames of the longest segments."""
        return max(self.frames, self.long_frames)

    def drawn_per_rollout(self) -> int:
        """How many frames of a segment the model draws, where it is its own."""
        return min(self.rollout_length, self.frames)

    def compiles(self) -> bool:
        """Whether the blocks are compiled."""
        if self.compile is not None:
            return self.compile
        steps, minutes = self.trainer.steps, self.trainer.minutes
        long = steps >= 1000 if steps is not None else (minutes or 0) >= 10
        return long and any(map(shutil.which, ("g++", "clang++")))

    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / self.data.name

    def autoencoder_folder(self) -> Path:
        """The run folder of the autoencoder."""
        return self.autoencoder or Path("runs") / f"{self.data.name}-autoencoder"
