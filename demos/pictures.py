"""The README's moving pictures: recorded play above the world's own, from the same start under the same actions.

python -m worldsim.demos.pictures car-racing data/car-racing --out docs/media/car-racing.gif
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from worldsim.data.episodes import Dataset, count_steps, read_episode
from worldsim.envs.world_env import world_path
from worldsim.errors import DataError
from worldsim.evaluation.rollout import Runner, Stretches, context_of, recorded
from worldsim.models.action import flatten_actions
from worldsim.world import World


@dataclass(frozen=True, kw_only=True)
class PictureConfig:
    """Which world beside which recording."""

    world: str
    data: Path
    out: Path = Path("play.gif")
    episodes: int = 4
    first: int = 0
    """Held-out episodes to skip."""
    frames: int = 40
    seed: int = 0


def compare(config: PictureConfig) -> np.ndarray:
    """Truth and play of some held-out episodes, uint8 (T, rows, columns, 3): truth above, play below."""
    world, dataset = World.from_pretrained(world_path(config.world)), Dataset(config.data)
    warm = context_of(world)
    long = [path for path in dataset.episodes("heldout") if count_steps(path) >= warm + config.frames]
    paths = long[config.first : config.first + config.episodes]
    if not paths:
        raise DataError(f"{config.data} has no held-out episode of {warm + config.frames} steps; use fewer --frames.")
    clips = [read_episode(path, 0, warm + config.frames - 1) for path in paths]
    stretches = Stretches(
        frames=torch.from_numpy(np.stack([clip.frames for clip in clips])),
        actions=torch.from_numpy(np.stack([flatten_actions(dataset.action_space, clip.actions) for clip in clips])),
        prompts=[clip.texts() for clip in clips],
        sources=list(range(len(clips))),
        context=warm,
    )
    played = Runner(world, batch=len(clips), seed=config.seed).free(stretches, recorded(stretches))  # (S, T, H, W, 3)
    rows = [torch.cat(list(frames), dim=2) for frames in (stretches.truth, played)]  # (T, H, S W, 3) each
    return torch.cat(rows, dim=1).numpy()


def save_gif(frames: np.ndarray, path: Path, fps: float, scale: int = 2) -> None:
    """Write uint8 frames (T, H, W, 3) as an endless GIF, enlarged `scale` times without smoothing."""
    pictures = [Image.fromarray(frame) for frame in frames]
    size = (frames.shape[2] * scale, frames.shape[1] * scale)
    pictures = [picture.resize(size, Image.Resampling.NEAREST).quantize(128) for picture in pictures]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0)


def main() -> None:
    """Draw what the command line asks for."""
    import tyro

    config = tyro.cli(PictureConfig, description=__doc__, config=(tyro.conf.PositionalRequiredArgs,))
    save_gif(compare(config), config.out, Dataset(config.data).card["fps"])
    print(config.out)


if __name__ == "__main__":
    main()
