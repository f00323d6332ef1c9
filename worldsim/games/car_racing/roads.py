"""CarRacing seen from its frames alone: which palette they show, where the road is, and a policy that stays on it.

Distances between colours are Euclidean, in RGB of 0..255.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldsim.games.car_racing.palettes import GROUNDS, PAIRS, ROADS, UNSEEN, Palette

PANEL = 0.875  # below this share of the height are the instruments
CAR = (slice(0.75, 0.8), slice(0.48, 0.52), (200, 4, 5))  # rows and columns of the car's red core, and its colour
FAR = 60.0  # a pixel further than this from both colours of a palette says nothing about it
SHOWN = 0.03  # share of the picture that must be road to call it shown
PALETTES = (*PAIRS, *UNSEEN)


def picture(frames: Tensor) -> Tensor:
    """Cut the instruments off frames (N, H, W, 3)."""
    return frames[:, : int(frames.shape[1] * PANEL)]


def distance_to(frames: Tensor, colours: list[tuple[int, int, int]]) -> Tensor:
    """Say how far each pixel is from the nearest of some colours, at most FAR, (N, h, W)."""
    pixels = picture(frames).float()
    far = torch.full(pixels.shape[:-1], FAR)
    for colour in colours:
        far = torch.minimum(far, (pixels - torch.tensor(colour).float()).norm(dim=-1))
    return far


def best_palettes(frames: Tensor) -> list[Palette]:
    """Get the palette that explains the pixels of each frame best, of all that the game can show."""
    best: list[Palette] = []
    for part in frames.split(64):
        roads = {name: distance_to(part, [colour]) for name, colour in ROADS.items()}
        grounds = {name: distance_to(part, list(shades)) for name, shades in GROUNDS.items()}
        costs = [torch.minimum(roads[p.road], grounds[p.ground]).mean(dim=(1, 2)) for p in PALETTES]
        best += [PALETTES[i] for i in torch.stack(costs).argmin(dim=0).tolist()]
    return best


def road_of(frames: Tensor, palette: Palette) -> Tensor:
    """Say which pixels are road under a palette, bool (N, h, W)."""
    road, ground = distance_to(frames, [ROADS[palette.road]]), distance_to(frames, list(GROUNDS[palette.ground]))
    return (road < ground) & (road < FAR)


@dataclass(frozen=True)
class Scene:
    """What each of N frames shows of the palette it should show, bool (N,)."""

    road: Tensor  # some of the picture is road
    ground: Tensor  # and some is ground
    car: Tensor  # the car is in its place
    palette: Tensor  # no other palette explains the frame better


def look(frames: Tensor, palettes: list[Palette]) -> Scene:
    """Look for road, ground and car in frames (N, H, W, 3) that should each show a palette."""
    road, ground = [], []
    for frame, palette in zip(frames.split(1), palettes, strict=True):
        is_road = road_of(frame, palette)
        near = distance_to(frame, list(GROUNDS[palette.ground])) < FAR
        road.append(is_road.float().mean() > SHOWN)
        ground.append((near & ~is_road).float().mean() > SHOWN)
    right = [found == named for found, named in zip(best_palettes(frames), palettes, strict=True)]
    return Scene(torch.stack(road), torch.stack(ground), _car(frames), torch.tensor(right))


def _car(frames: Tensor) -> Tensor:
    rows, columns, colour = CAR
    height, width = frames.shape[1:3]
    core = frames[
        :,
        round(rows.start * height) : round(rows.stop * height),
        round(columns.start * width) : round(columns.stop * width),
    ]
    return (core.float() - torch.tensor(colour).float()).norm(dim=-1).mean(dim=(1, 2)) < FAR


class RoadPolicy:
    """Steers towards the middle of the road ahead, seeing nothing but the frames, at a gentle speed.

    It is a `RolloutPolicy`. In the real game it stays on most tracks for a thousand frames, so where the road ends it
    is the world that lost it.
    """

    GAS = 0.06

    def __init__(self, palettes: Sequence[Palette], prompts: Sequence[str]) -> None:
        """Drive sessions that each show a palette, under one prompt each."""
        self.palettes, self.prompts = palettes, prompts
        self.steer = np.zeros(len(palettes))

    def __call__(self, rows: list[int], n: int, frames: Tensor) -> tuple[Tensor, list[str]]:
        """Actions (steer, gas, brake) in -1..1 as `ActionCodec.flatten` makes them, (len(rows), 3); and the prompts."""
        height, width = frames.shape[1:3]
        ahead = slice(round(0.34 * height), round(0.69 * height))
        for row, frame in zip(rows, frames.split(1), strict=True):
            columns = torch.nonzero(road_of(frame, self.palettes[row])[0, ahead])[:, 1].float()
            if len(columns) > 8:  # else keep the wheel where it is
                self.steer[row] = float(((columns.mean() + 0.5) / width - 0.5) * 4)
        actions = torch.tensor([[np.clip(self.steer[row], -1, 1), self.GAS * 2 - 1, -1.0] for row in rows])
        return actions.float(), [self.prompts[row] for row in rows]
