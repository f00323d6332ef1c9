"""The true state behind a frame of Doom, and the words for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from worldsim.data.games.doom_scenarios import NOUNS, Scenario

NEAR = 7  # depth units (8 map units each): a wall nearer than this fills the picture from top to bottom
WIDTH, HEIGHT = 160, 120  # the pixels that columns and areas are counted in, whatever the screen has
HOLD = 8  # frames a prompt stays, so that it does not flicker
MAX_WORDS = 18
BARE = 0.25  # of the prompts that tell an event leave out the place: so do people who type

WALLS = ("a wall right ahead", "facing a wall", "close to a wall")
SIDES = {
    "left": ("to the left", "on the left"),
    "ahead": ("ahead", "in front"),
    "right": ("to the right", "on the right"),
}


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
        """What a prompt tells: (kind, side, several) of each kind in view, the nearest kind first."""
        kinds = dict.fromkeys(thing.kind for thing in self.things)
        groups = [[thing for thing in self.things if thing.kind == kind] for kind in kinds]
        # several only if they are on one side, as the prompt names one side for all
        return tuple((g[0].kind, g[0].side, sum(thing.side == g[0].side for thing in g) > 1) for g in groups)


class Narrator:
    """Words for what is in view: new words only when the view has changed and the old ones have been held a while.

    The words of an event are told at once and as long as it is in force, in place of the things in view.
    """

    def __init__(self, scenario: Scenario, rng: np.random.Generator) -> None:
        """Draw all wordings from `rng`."""
        self.scenario, self.rng = scenario, rng
        self.told: Any = None
        self.age = HOLD
        self.prompt = ""

    def tell(self, view: View, event: tuple[str, ...] = (), states: tuple[tuple[str, ...], ...] = ()) -> str:
        """The prompt in force for this view.

        Args:
            view: what is seen.
            event: wordings of the event in force, if any.
            states: wordings of each lasting state in force.
        """
        seen = (event, states, () if event else (view.summary(), view.wall))
        self.age += 1
        if seen != self.told and (self.age >= HOLD or self.told is None or seen[:2] != self.told[:2]):
            self.told, self.age = seen, 0
            self.prompt = self._word(view, event, states)
        return self.prompt

    def _word(self, view: View, event: tuple[str, ...], states: tuple[tuple[str, ...], ...]) -> str:
        lasting = [self._pick(state) for state in states]
        if event:
            parts = [self._pick(event), *lasting]
            if self.rng.random() >= BARE:
                parts.insert(0, self._pick(self.scenario.places))
            return ", ".join(parts)
        seen = [f"{self._pick(NOUNS[kind][more])} {self._pick(SIDES[side])}" for kind, side, more in view.summary()]
        parts = [self._pick(self.scenario.places), *lasting, *seen, *([self._pick(WALLS)] if view.wall else [])]
        while sum(len(part.split()) for part in parts) > MAX_WORDS:
            parts.pop()
        if len(parts) == 2 and self.rng.random() < 0.3:
            parts.reverse()
        return ", ".join(parts)

    def _pick(self, wordings: tuple[str, ...]) -> str:
        return wordings[int(self.rng.integers(len(wordings)))]
