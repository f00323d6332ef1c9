"""Doom: its events; and of its acid maze which part of a picture is sky, wall and floor, and where it is open.

The sky is dark blue, the walls are grey and the floor is green, so the mean color of a small block tells which it is.
The horizon is in the middle of the picture, always: real sky is above it and real floor below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldsim.evaluation.event_book import EventBook
from worldsim.evaluation.probe import Labels, Probe
from worldsim.games.doom.events import EVENTS, HELD_OUT_PAIRS, TELL
from worldsim.games.doom.recipe import RECIPES
from worldsim.games.doom.scenarios import SCENARIOS

BOOK = EventBook(
    events=EVENTS,
    places={name: scenario.places for name, scenario in SCENARIOS.items()},
    held_out=HELD_OUT_PAIRS,
    frames=TELL,
    blocked="wall",
)

BLOCK = 4  # pixels of 64 whose mean color is looked at
TINT = 6.0  # grey levels by which blue (of the sky) or green (of the floor) stands out
VIEW = 0.7  # share of wall in the picture from which no session begins: there is nothing else to see
NARROW = 0.75  # share of wall in the middle columns from which the beginner turns on the spot


def classes(frames: Tensor) -> Tensor:
    """Sky 0, wall 1 or floor 2 of each block of frames uint8 (N, H, W, 3), long (N, H / BLOCK, W / BLOCK)."""
    means = F.avg_pool2d(frames.permute(0, 3, 1, 2).float(), BLOCK * frames.shape[1] // 64)
    red, green, blue = means.unbind(dim=1)
    found = torch.ones_like(red, dtype=torch.long)
    found[blue - torch.maximum(red, green) > TINT] = 0
    found[green - torch.maximum(red, blue) > TINT] = 2
    return found


class DoomProbe(Probe):
    """Any scenario: events can be typed."""

    events = BOOK


class AcidMazeProbe(DoomProbe):
    """The scenario `health_gathering_supreme`.

    Layout: shares of sky, wall and floor; the mean row of sky and floor, 0 (top) to 1; and the share of the picture
    that is misplaced: sky below the horizon or floor above it.
    """

    layout_names = ("sky", "wall", "floor", "sky_row", "floor_row", "misplaced")

    def prompts(self, known: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        """Plain words for the place, which tell of nothing that is in view now and then."""
        return [(text, {}) for text in known if "," not in text and "night" not in text] or super().prompts(known)

    def resting(self, env: gym.Env) -> bool:
        """Say whether the player stands."""
        view: Any = env.unwrapped
        return float(np.hypot(*view.view.motion)) < 0.01

    def fits(self, env: gym.Env, moving: bool) -> bool:
        """Say whether there is a view: no wall that fills most of the picture."""
        game: Any = env.unwrapped
        found = classes(torch.from_numpy(game.view.screen).unsqueeze(0))
        return float((found == 1).float().mean()) < VIEW

    def steer(self, frame: np.ndarray, labels: Labels, held: float) -> float:
        """Towards the columns with the least wall; on round on the spot while a wall fills the middle."""
        wall = (classes(torch.from_numpy(frame).unsqueeze(0))[0] == 1).float().mean(dim=0).numpy()
        width = len(wall)
        middle = wall[width // 2 - 2 : width // 2 + 2].mean()
        if middle > NARROW:
            left, right = wall[: width // 2].mean(), wall[width // 2 :].mean()
            side = np.sign(held) if abs(held) >= 0.6 else -1.0 if left < right else 1.0
            return 0.8 * float(side)
        smooth = np.convolve(np.pad(wall, 2, mode="edge"), np.ones(5) / 5, mode="valid")
        smooth = smooth + 0.1 * np.abs(np.linspace(-1, 1, width))  # a little better straight on
        return 0.55 * (2 * (float(smooth.argmin()) + 0.5) / width - 1)

    def layout(self, frames: Tensor, labels: Sequence[Labels]) -> Tensor:
        """See the class; float (N, 6)."""
        found = classes(frames)
        rows = (torch.arange(found.shape[1]) + 0.5) / found.shape[1]
        sky, wall, floor = ((found == kind).float() for kind in range(3))
        shares = torch.stack([part.mean(dim=(1, 2)) for part in (sky, wall, floor)], dim=1)
        places = [part.mean(dim=2) @ rows / part.mean(dim=2).sum(dim=1) for part in (sky, floor)]  # nan for none
        wrong = sky[:, rows > 0.5].sum(dim=(1, 2)) + floor[:, rows < 0.5].sum(dim=(1, 2))
        wrong = wrong / found[0].numel()
        return torch.cat([shares, torch.stack([*places, wrong], dim=1)], dim=1)


PROBES = {recipe.name: DoomProbe for recipe in RECIPES} | {"doom-health-gathering": AcidMazeProbe}
