"""Do the named colours win? For worlds whose recordings say which road and ground colour each frame shows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.data.episodes import Episode
from worldsim.data.games.palettes import PAIRS, UNSEEN, Palette, plain_prompt
from worldsim.evaluation.racing import best_palettes, look
from worldsim.evaluation.rollout import Runner, Segments

LATER = 16  # frames after which a fresh start is looked at again
SWITCHED = 8  # frames after which a change of the prompt must have changed the colours


def has_palettes(episodes: list[Episode]) -> bool:
    """Whether the prompts of a recording are labelled with a road and a ground."""
    return all({"road", "ground"} <= set(prompt) for episode in episodes for prompt in episode.prompts)


def palettes_at(episode: Episode, frames: slice) -> list[Palette]:
    """The labelled palette at each of some frames."""
    labels = [episode.prompts[i] for i in episode.prompt_index[frames]]
    return [Palette(label["road"], label["ground"]) for label in labels]


def labels_at(episode: Episode, frames: slice) -> list[dict[str, Any]]:
    """What the recording says beside the prompt of each of some frames."""
    return [episode.prompts[i] for i in episode.prompt_index[frames]]


@dataclass(frozen=True)
class Starts:
    """Starts from the plain prompts for some palettes: the first frames and those LATER on, uint8 (N, H, W, 3)."""

    palettes: list[Palette]
    first: Tensor
    later: Tensor


def fresh_starts(runner: Runner, count: int, unseen: bool, rng: np.random.Generator) -> Starts:
    """`count` fresh starts over the palettes of training, or over those held out of it.

    Raises:
        MissingDependency: a prompt is new to the world and the text encoder's package is not installed.
    """
    pairs = UNSEEN if unseen else PAIRS
    order = np.concatenate([rng.permutation(len(pairs)) for _ in range(-(-count // len(pairs)))])[:count]
    palettes = [pairs[i] for i in order]
    prompts = [plain_prompt(palette) for palette in palettes]
    drawn = runner.fresh(prompts, LATER + 1, title=f"fresh starts, {'unseen' if unseen else 'known'} palettes")
    return Starts(palettes, drawn[:, 0], drawn[:, -1])


def prompt_adherence(starts: Starts) -> dict[str, float]:
    """Shares of the fresh starts.

    Returns:
        palette: road and ground are both nearest to the named colours (no road in the picture counts as wrong).
        road, ground: the one, whatever the other.
        road_shown: some road is in the picture.
        palette_later: `palette`, LATER frames on.
    """
    scene, found = look(starts.first, starts.palettes), best_palettes(starts.first)
    pairs = list(zip(found, starts.palettes, strict=True))
    later = look(starts.later, starts.palettes)
    return {
        "starts": len(pairs),
        "palette": float((scene.palette & scene.road).float().mean()),
        "road": float(np.mean([a.road == b.road for a, b in pairs])),
        "ground": float(np.mean([a.ground == b.ground for a, b in pairs])),
        "road_shown": float(scene.road.float().mean()),
        "palette_later": float((later.palette & later.road).float().mean()),
    }


def real_prompt_adherence(episodes: list[Episode]) -> float:
    """`palette` of `prompt_adherence`, for recorded frames: what the measurement itself can reach."""
    step = 25
    frames = torch.from_numpy(np.concatenate([episode.frames[::step] for episode in episodes]))
    palettes = [palette for episode in episodes for palette in palettes_at(episode, slice(None, None, step))]
    scene = look(frames, palettes)
    return float((scene.palette & scene.road).float().mean())


def switch(runner: Runner, segments: Segments, rng: np.random.Generator) -> float:
    """Share of segments that show a palette SWITCHED frames after the prompt first named it."""
    wanted = [PAIRS[i] for i in rng.integers(len(PAIRS), size=len(segments))]
    prompts = [plain_prompt(palette) for palette in wanted]

    def act(rows: list[int], n: int, last: Tensor) -> tuple[Tensor, list[str]]:
        return segments.taken[rows, n], [prompts[row] for row in rows]

    drawn = runner.free(segments, act, SWITCHED, title="changing palettes")
    return float(look(drawn[:, -1], wanted).palette.float().mean())
