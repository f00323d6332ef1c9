"""Do the named colours win? For worlds whose recordings say which road and ground colour each frame shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from worldsim.data.contact_sheet import contact_sheet
from worldsim.data.episodes import Episode
from worldsim.errors import MissingDependency
from worldsim.evaluation.rollout import Runner, Segments, labels_at
from worldsim.games.car_racing.palettes import PAIRS, UNSEEN, Palette
from worldsim.games.car_racing.prompts import plain_prompt
from worldsim.games.car_racing.roads import best_palettes, look

COLUMNS = 12  # pairs of frames in a row of a contact sheet
LATER = 16  # frames after which a start from a prompt is looked at again
SWITCHED = 8  # frames after which a change of the prompt must have changed the colours


def has_palettes(episodes: Sequence[Episode]) -> bool:
    """Say whether the prompts of a recording are labelled with a road and a ground."""
    return all({"road", "ground"} <= set(prompt) for episode in episodes for prompt in episode.prompts)


def palettes_at(episode: Episode, frames: slice) -> list[Palette]:
    """Get the labelled palette at each of some frames."""
    return [Palette(label["road"], label["ground"]) for label in labels_at(episode, frames)]


@dataclass(frozen=True)
class Starts:
    """Starts from the plain prompts for some palettes: the first frames and those LATER on, uint8 (N, H, W, 3)."""

    palettes: list[Palette]
    first: Tensor
    later: Tensor


def fresh_starts(runner: Runner, count: int, unseen: bool, rng: np.random.Generator) -> Starts:
    """Draw `count` fresh starts over the palettes of training, or over those held out of it.

    Raises:
        MissingDependency: a prompt is new to the world and the text encoder's package is not installed.
    """
    pairs = UNSEEN if unseen else PAIRS
    order = np.concatenate([rng.permutation(len(pairs)) for _ in range(-(-count // len(pairs)))])[:count]
    palettes = [pairs[i] for i in order]
    prompts = [plain_prompt(palette) for palette in palettes]
    drawn = runner.from_prompts(prompts, LATER + 1, title=f"fresh starts, {'unseen' if unseen else 'known'} palettes")
    return Starts(palettes, drawn[:, 0], drawn[:, -1])


def shares(starts: Starts) -> dict[str, float]:
    """Measure shares of the fresh starts.

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


def real_prompt_adherence(episodes: Sequence[Episode]) -> float:
    """Measure `palette` of `shares` for recorded frames: what the measurement itself can reach."""
    step = 25
    frames = torch.from_numpy(np.concatenate([episode.frames[::step] for episode in episodes]))
    palettes = [palette for episode in episodes for palette in palettes_at(episode, slice(None, None, step))]
    scene = look(frames, palettes)
    return float((scene.palette & scene.road).float().mean())


def switch(runner: Runner, segments: Segments, rng: np.random.Generator) -> float:
    """Measure the share of segments that show a palette SWITCHED frames after the prompt first named it."""
    wanted = [PAIRS[i] for i in rng.integers(len(PAIRS), size=len(segments))]
    prompts = [plain_prompt(palette) for palette in wanted]

    def act(rows: list[int], n: int, last: Tensor) -> tuple[Tensor, list[str]]:
        return segments.taken[rows, n], [prompts[row] for row in rows]

    drawn = runner.free(segments, act, SWITCHED, title="changing palettes")
    return float(look(drawn[:, -1], wanted).palette.float().mean())


def prompt_adherence(
    runner: Runner, episodes: Sequence[Episode], segments: Segments, count: int, seed: int
) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """Measure fresh starts from prompts and prompts that change on the way, see `Probe.prompt_adherence`."""
    rng = np.random.default_rng([seed, 3])
    report: dict[str, Any] = {"truth": real_prompt_adherence(episodes)}
    pictures: dict[str, Image.Image] = {}
    try:
        for name, unseen in (("known", False), ("unseen", True)):
            starts = fresh_starts(runner, count, unseen, rng)
            report[name] = shares(starts)
            pictures[f"fresh_{name}"] = picture(starts)
        report["switched"] = switch(runner, segments, rng)
    except MissingDependency as error:
        report["skipped"] = str(error)
    return report, pictures


def picture(starts: Starts) -> Image.Image:
    """Draw some fresh starts, each beside what it has become."""
    shown = slice(0, 4 * COLUMNS)
    frames = [half for pair in zip(starts.first[shown], starts.later[shown], strict=True) for half in pair]
    captions = [text for palette in starts.palettes[shown] for text in (str(palette), f"{LATER} frames on")]
    return contact_sheet([frame.numpy() for frame in frames], COLUMNS, 2, captions)
