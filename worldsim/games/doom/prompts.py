"""The words for what is seen in Doom."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldsim.games.doom.scenarios import NOUNS, Scenario
from worldsim.games.doom.view import View

HOLD = 8  # frames a prompt stays, so that it does not flicker
MAX_WORDS = 18
BARE = 0.25  # of the prompts that tell an event leave out the place: so do people who type

WALLS = ("a wall right ahead", "facing a wall", "close to a wall")
SIDES = {
    "left": ("to the left", "on the left"),
    "ahead": ("ahead", "in front"),
    "right": ("to the right", "on the right"),
}


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
        """Give the prompt in force for this view.

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
