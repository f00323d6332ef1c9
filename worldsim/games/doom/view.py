"""The true state behind a frame of Doom."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

NEAR = 7  # depth units (8 map units each): a wall nearer than this fills the picture from top to bottom
WIDTH, HEIGHT = 160, 120  # the pixels that columns and areas are counted in, whatever the screen has


@dataclass(frozen=True)
class Thing:
    """One object in view, in pixels of a (120, 160) screen."""

    kind: str
    x: float  # centre column
    area: float
    ahead: float = 0.0  # map units from the player, along the line of sight
    left: float = 0.0  # and across
    motion: tuple[float, float] = (0.0, 0.0)  # map units a tic, ahead and left

    @property
    def side(self) -> str:
        """The third of the picture it is in: left, ahead or right."""
        return ("left", "ahead", "right")[min(int(self.x * 3 / WIDTH), 2)]


@dataclass(frozen=True)
class View:
    """The true state behind one frame."""

    screen: np.ndarray  # (height, width, 3) uint8, as the game draws it
    depth: np.ndarray  # (160,) distance to the wall along the horizon, 1 (touching) to 63 (far); 63 if not asked for
    things: tuple[Thing, ...]  # largest first
    place: tuple[float, float] = (0.0, 0.0)  # of the player on the map, in map units
    motion: tuple[float, float] = (0.0, 0.0)  # of the player, map units a tic, ahead and left

    @property
    def wall(self) -> bool:
        """Whether the picture shows nothing but wall."""
        return bool(np.sort(self.depth)[-16] < NEAR)  # all but a tenth of the columns

    @property
    def room(self) -> bool:
        """Whether a large thing would find place right ahead."""
        return bool(self.depth[64:96].min() > 15)

    def summary(self) -> tuple[tuple[str, str, bool], ...]:
        """Say what a prompt tells: (kind, side, several) of each kind in view, the nearest kind first."""
        kinds = dict.fromkeys(thing.kind for thing in self.things)
        groups = [[thing for thing in self.things if thing.kind == kind] for kind in kinds]
        # several only if they are on one side, as the prompt names one side for all
        return tuple((g[0].kind, g[0].side, sum(thing.side == g[0].side for thing in g) > 1) for g in groups)
