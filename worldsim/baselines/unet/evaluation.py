"""A world beside the U-Net baseline: the same held-out segments, the same measures, one core each."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from worldsim.baselines.unet.model import UNetDynamics, to_pixels
from worldsim.baselines.unet.training import load_baseline, prompt_means
from worldsim.diffusion.noise import SAMPLE, keys_of, normal
from worldsim.engine.simulator import State
from worldsim.errors import ConfigError, DataError
from worldsim.evaluation.report import EvalConfig, Evaluation
from worldsim.evaluation.rollout import RolloutPolicy, Runner, Segments, context_of, recorded
from worldsim.world import World, default_dtype

WARM_UP = 5  # frames that are not timed


@dataclass(frozen=True, kw_only=True)
class BaselineEval:
    """What to compare, on what."""

    world: Path
    """A world's folder."""
    unet: Path
    """The run folder of a trained U-Net."""
    data: Path | None = None
    """The folder of a dataset of the same game (default: data/NAME)."""
    horizons: tuple[int, ...] = (64,)
    """Frames of free running after which to measure."""
    starts: int = 48
    """Places in the recording to begin from, for each horizon."""
    episodes: int = 64
    """At most so many of the held-out ones."""
    timed: int = 60
    """Frames of each that are timed, in turns."""
    batch: int = 16
    seed: int = 0
    out: Path = Path("runs/eval-baseline")
    """Folder for the contact sheets of both."""


class UNetRunner(Runner):
    """Draws segments with a U-Net as `Runner` does with a world.

    Args:
        model: the U-Net.
        world: whose segments they are, and whose prompts' states.
        batch: sessions that are stepped together.
        seed: of the noise; segment i of a call has the session seed `seed + i`.
    """

    def __init__(self, model: UNetDynamics, world: World, batch: int = 16, seed: int = 0) -> None:
        """Keep the parts; nothing is computed yet.

        Raises:
            DataError: the two are not of the same game.
        """
        super().__init__(world, None, batch, seed)
        if model.config.action_size != world.codec.size:
            raise DataError(
                f"the U-Net takes actions of {model.config.action_size} numbers, the world's have "
                f"{world.codec.size}; train it on the same recording."
            )
        if model.config.history > context_of(world):
            raise DataError(
                f"the U-Net stacks {model.config.history} frames, the world's segments begin with "
                f"{context_of(world)}; use a U-Net of shorter history."
            )
        self.model = model

    def stream(
        self,
        segments: Segments,
        act: RolloutPolicy,
        frames: int,
        title: str = "free running",
        before: Callable[[State], None] | None = None,
    ) -> Iterator[tuple[list[int], int, Tensor]]:
        """What `free` draws, one step of a batch at a time; see `Runner.stream`.

        Raises:
            ConfigError: `before` is given; a U-Net has no state that could be changed.
        """
        if before is not None:
            raise ConfigError("the U-Net baseline has no state that could be changed while it plays.")
        with tqdm(total=frames * self._batches(segments), desc=title, unit="step", leave=False, disable=None) as bar:
            for rows in self._rows(segments):
                seen, done = self.begin(segments, rows)
                for n in range(frames):
                    action, prompts = act(rows, n, seen[:, -1])
                    taken = torch.cat([done, action.unsqueeze(1)], dim=1)
                    last = self.draw(seen, taken, prompts, rows, n)
                    seen, done = torch.cat([seen[:, 1:], last.unsqueeze(1)], dim=1), taken[:, 1:]
                    yield rows, n, last
                    bar.update()

    def forced(self, segments: Segments, *actions: Tensor, title: str = "next frames") -> list[Tensor]:
        """Every next frame from the true frames before it, once for each of `actions` (S, N, action_size)."""
        history, drawn = self.model.config.history, [torch.empty_like(segments.truth) for _ in actions]
        with tqdm(
            total=segments.length * self._batches(segments), desc=title, unit="step", leave=False, disable=None
        ) as bar:
            for rows in self._rows(segments):
                for n in range(segments.length):
                    now = segments.context + n
                    before = segments.actions[rows, now - history : now - 1]
                    prompts = [segments.prompts[row][now] for row in rows]
                    for out, chosen in zip(drawn, actions, strict=True):
                        taken = torch.cat([before, chosen[rows, n].unsqueeze(1)], dim=1)
                        out[rows, n] = self.draw(segments.frames[rows, now - history : now], taken, prompts, rows, n)
                    bar.update()
        return drawn

    def from_prompts(self, prompts: list[str], frames: int = 1, title: str = "starts from prompts") -> Tensor:
        """Not possible: the U-Net needs frames to begin from."""
        raise ConfigError("the U-Net baseline cannot begin from a prompt alone; compare it on recorded segments.")

    def begin(self, segments: Segments, rows: list[int]) -> tuple[Tensor, Tensor]:
        """The last K frames of the context, uint8 (B, K, H, W, 3), and the actions between them (B, K - 1, A)."""
        last, history = segments.context, self.model.config.history
        return segments.frames[rows, last - history : last], segments.actions[rows, last - history : last - 1]

    def draw(self, seen: Tensor, actions: Tensor, prompts: list[str], rows: list[int], n: int) -> Tensor:
        """The next frames, uint8 (B, H, W, 3), from the last K and the last K actions (B, K, A)."""
        text = prompt_means(self.world.book, prompts)
        shape = (3, *seen.shape[2:4])
        noise = normal(keys_of([self.seed + row for row in rows]), torch.full((len(rows),), n), SAMPLE, shape)
        return self.model.draw(noise, to_pixels(seen), actions, text).cpu()


def compare(config: BaselineEval) -> dict[str, Any]:
    """Measure a world and a U-Net on the same segments.

    Returns:
        "world" and "unet", each with the stages of `worldsim eval` ("next_frame", "frame_N", "steering"), their
        "ms_per_frame" (median, one session, without batching or compiling) and "parameters".

    Raises:
        WorldError, ConfigError: one of them cannot be loaded.
        DataError: they are of different games, or the episodes are too short.
    """
    world = World.from_pretrained(config.world)
    unet = UNetRunner(load_baseline(config.unet, default_dtype()), world, config.batch, config.seed)
    settings = EvalConfig(
        world=config.world,
        data=config.data,
        horizons=config.horizons,
        starts=config.starts,
        episodes=config.episodes,
        free=0,
        prompt_starts=0,
        batch=config.batch,
        seed=config.seed,
    )
    report: dict[str, Any] = {}
    for name in ("world", "unet"):
        evaluation = Evaluation(dataclasses.replace(settings, out=config.out / name), world)
        if name == "unet":
            evaluation.runner = unet
        report[name] = evaluation.run()
        segment = evaluation.cut(1, config.timed + WARM_UP, 0)
    times = frame_times({"world": Runner(world, batch=1), "unet": unet}, segment, WARM_UP)
    sizes = {"world": [world.autoencoder, world.dynamics], "unet": [unet.model]}
    for name, modules in sizes.items():
        report[name] |= {
            "ms_per_frame": times[name],
            "parameters": sum(parameter.numel() for module in modules for parameter in module.parameters()),
        }
    return report


@torch.no_grad()
def frame_times(runners: dict[str, Runner], segment: Segments, warm_up: int) -> dict[str, float]:
    """Median milliseconds of a frame of one session, an action in and pixels out; all take turns at each frame."""
    spent: dict[str, list[float]] = {name: [] for name in runners}
    plays = {name: runner.stream(segment, recorded(segment), segment.length, name) for name, runner in runners.items()}
    for _ in range(segment.length):
        for name, play in plays.items():
            begin = time.perf_counter()
            next(play)
            spent[name].append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(times[warm_up:]) for name, times in spent.items()}


def table(report: dict[str, Any]) -> str:
    """The comparison for people: a line for each figure, the aim is the world's column."""
    rows: list[tuple[str, ...]] = [("", "world", "U-Net", "copy")]
    for stage, title in ((name, name.replace("_", " ")) for name in report["world"] if "frame" in name):
        found = [report[name][stage] for name in ("world", "unet")]
        if not isinstance(found[0], dict):
            continue
        for key, unit in (("psnr", "PSNR, dB"), ("moving_psnr", "PSNR where it moves, dB"), ("ssim", "SSIM")):
            rows.append((f"{title}: {unit}", *(_cell(part[key]) for part in found), _cell(found[0][f"copy_{key}"])))
        rows.append((f"{title}: PSNR under shuffled actions", *(_cell(part["shuffled_psnr"]) for part in found), ""))
        for key in ("sharpness", "brightness"):
            rows.append((f"{title}: {key} over the truth's", *(_cell(part[key]) for part in found), ""))
    for key in ("ms_per_frame", "parameters"):
        rows.append((key.replace("_", " "), *(_cell(report[name][key]) for name in ("world", "unet")), ""))
    return "\n".join(f"{row[0]:42}" + "".join(f"{cell:>12}" for cell in row[1:]) for row in rows)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}"
