"""The GIFs of the README: the real game above, the world below, from the same starts.

A scripted beginner that steers gently plays both; with a recording the world gets the recorded actions.

python -m worldsim.demos.pictures car-racing --out docs/media/car-racing.gif
python -m worldsim.demos.pictures car-racing --data data/car-racing --out docs/media/car-racing.gif
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from worldsim.data.episodes import Dataset, count_steps, read_episode
from worldsim.envs.shipped import world_path
from worldsim.errors import ConfigError, DataError
from worldsim.evaluation.first_minute import policies, real_game
from worldsim.evaluation.played import play_world, segments_of
from worldsim.evaluation.probe import probe_of
from worldsim.evaluation.rollout import Runner, Segments, context_of, recorded
from worldsim.spaces import ActionCodec
from worldsim.world import World


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """Which world is compared, and with what."""

    world: str
    data: Path | None = None
    """A recording whose actions the world gets (default: the beginner of `worldsim eval --first-minute` plays both)."""
    out: Path = Path("play.gif")
    episodes: int = 4
    first: int = 0
    """Held-out episodes to skip."""
    frames: int = 40
    seed: int = 0


def compare(config: PictureConfig, world: World) -> np.ndarray:
    """Draw reference and generated frames of some sessions, uint8 (T, rows, columns, 3): reference above.

    Raises:
        ConfigError: without a recording, where the real game is not known or not installed.
        DataError: the recording has no episode that is long enough.
    """
    pair = _steered(config, world) if config.data is None else _recorded(config, world, Dataset(config.data))
    return torch.cat([torch.cat(list(frames), dim=2) for frames in pair], dim=1).numpy()  # (T, 2 H, S W, 3)


def _steered(config: PictureConfig, world: World) -> tuple[Tensor, Tensor]:
    """Play the real game and the world under a beginner, each (S, T, H, W, 3)."""
    probe = probe_of(world)
    if probe is None:
        raise ConfigError(f"the real game of {config.world} is not known or not installed; give a recording: --data.")
    game, ages = real_game(world, probe, config.episodes, config.seed), range(1, config.frames + 1)
    real = game.play("steer", config.frames, ages, config.seed)
    policy = policies(probe, real.labels, "steer", config.seed)
    begin = segments_of(game.starts, world.action_space, context_of(world))
    runner = Runner(world, batch=config.episodes, seed=config.seed)
    played = play_world(runner, begin, real.labels, policy, config.frames, ages)
    return real.frames, played.frames


def _recorded(config: PictureConfig, world: World, dataset: Dataset) -> tuple[Tensor, Tensor]:
    """Read held-out episodes, and play the world under their actions, each (S, T, H, W, 3)."""
    warm = context_of(world)
    long = [path for path in dataset.episodes("heldout") if count_steps(path) >= warm + config.frames]
    paths = long[config.first : config.first + config.episodes]
    if not paths:
        raise DataError(f"{config.data} has no held-out episode of {warm + config.frames} steps; use fewer --frames.")
    clips = [read_episode(path, 0, warm + config.frames - 1) for path in paths]
    segments = Segments(
        frames=torch.from_numpy(np.stack([clip.frames for clip in clips])),
        actions=torch.from_numpy(np.stack([ActionCodec(dataset.action_space).flatten(clip.actions) for clip in clips])),
        prompts=[clip.texts() for clip in clips],
        sources=list(range(len(clips))),
        context=warm,
    )
    played = Runner(world, batch=len(clips), seed=config.seed).free(segments, recorded(segments))
    return segments.truth, played


def save_gif(frames: np.ndarray, path: Path, fps: float, scale: int = 2) -> None:
    """Write uint8 frames (T, H, W, 3) as an endless GIF, enlarged `scale` times without smoothing."""
    pictures = [Image.fromarray(frame) for frame in frames]
    size = (frames.shape[2] * scale, frames.shape[1] * scale)
    pictures = [picture.resize(size, Image.Resampling.NEAREST).quantize(128) for picture in pictures]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)


def main() -> None:
    """Write the GIF that the command line asks for."""
    import tyro

    config = tyro.cli(PictureConfig, description=__doc__, config=(tyro.conf.PositionalRequiredArgs,))
    world = World.from_pretrained(world_path(config.world))
    save_gif(compare(config, world), config.out, world.card.fps)
    print(config.out)


if __name__ == "__main__":
    main()
