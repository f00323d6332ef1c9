"""Policies, which choose the actions of a session, and the generic policies of a recording."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np


class Policy(Protocol):
    """Plays one session of a game, or of a world.

    Recordings, evaluation and agents share this protocol. `VectorPolicy` is its form for many sessions at once, as
    Gymnasium has vector environments beside single ones. A policy that sets `needs_frames = False` is not shown every
    frame of a game that is slow to draw.
    """

    def begin(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Start an episode with randomness of its own; return the `options` for `env.reset`."""
        ...

    def act(self, env: Any, observation: Any, info: dict[str, Any]) -> Any:
        """Choose the next action, an element of the action space.

        Args:
            env: the game, for policies that read its true state; None in a world, which has no other state.
            observation: what the game shows, or the frame uint8 (H, W, 3) of a world.
            info: what the game said of that frame.
        """
        ...


class VectorPolicy(Protocol):
    """Plays N sessions at once, from their frames."""

    def begin(self, count: int, seed: int) -> None:
        """Prepare for `count` sessions."""
        ...

    def act(self, frames: np.ndarray, begun: np.ndarray) -> np.ndarray:
        """Choose an action for each session.

        Args:
            frames: uint8 (N, H, W, 3).
            begun: bool (N,), which sessions have just begun.
        """
        ...


class RandomPolicy:
    """Samples the action space, and repeats each action for a random number of steps."""

    def __init__(self, action_repeat: int = 8) -> None:
        """Repeat each action for 1 to `action_repeat` steps."""
        self.action_repeat = action_repeat

    def begin(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Start an episode with a random stream of its own."""
        self.rng, self.left = rng, 0
        return {}

    def act(self, env: Any, observation: Any, info: dict[str, Any]) -> Any:
        """Repeat the last action, or sample a new one when its steps are over."""
        if self.left == 0:
            env.action_space.seed(int(self.rng.integers(2**31)))
            self.action, self.left = env.action_space.sample(), int(self.rng.integers(1, self.action_repeat + 1))
        self.left -= 1
        return self.action


class NoOpSpans:
    """Says at which steps to hold no key: spans of 8 to 64 steps that take `fraction` of all of them.

    No episode begins with one more often than by chance, so that short ones have fewer.
    """

    SHORTEST, LONGEST = 8, 64

    def __init__(self, fraction: float, rng: np.random.Generator) -> None:
        """Hold no key in `fraction` of the steps, 0 <= fraction < 1."""
        mean = (self.SHORTEST + self.LONGEST) / 2
        self.chance = fraction / (mean - (mean - 1) * fraction)  # to begin one, at a step outside
        self.rng, self.left = rng, 0

    def step(self) -> bool:
        """Say whether this step is in such a span."""
        if self.left == 0 and self.rng.random() < self.chance:
            self.left = int(self.rng.integers(self.SHORTEST, self.LONGEST + 1))
        inside = self.left > 0
        self.left -= inside
        return inside


class BeginnerPolicy:
    """Plays like a person who has never seen the game: holds one key for long, or taps random keys.

    A world that was only trained on a skilled policy does not know what follows from this, and it is how most people
    meet it first. In half of the episodes that policy plays for a while before, so that a key is held in motion too.
    """

    HOLD, TAP, LIFT = (40, 400), (1, 4), (1, 8)  # shortest and longest, in steps: a key held, tapped, none
    HOLDING = 0.5  # of the episodes hold a key, the others tap
    ONWARD, KEY = 0.5, "up"  # share of keys held that are this one, where a game has it: on into a wall, most often
    TAKING_OVER, AFTER = 0.5, (10, 80)  # of the episodes begin with the skilled policy, for so many steps

    def __init__(self, keys: Mapping[str, Any], skilled: Policy) -> None:
        """Press `keys`; `skilled` says how episodes begin, and plays before this beginner takes over."""
        self.keys, self.skilled = keys, skilled

    def begin(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Start an episode; return the options that the skilled policy would start it with."""
        self.rng, self.left, self.key = rng, 0, ""
        self.holding = bool(rng.random() < self.HOLDING)
        self.before = int(rng.integers(*self.AFTER)) if rng.random() < self.TAKING_OVER else 0
        return self.skilled.begin(rng, split)

    def act(self, env: Any, observation: Any, info: dict[str, Any]) -> Any:
        """Press the key that is down, or none; the skilled policy acts before this one takes over."""
        if self.before > 0:
            self.before -= 1
            return self.skilled.act(env, observation, info)
        if self.left == 0:
            lift = not self.holding and self.key != ""
            names = [name for name in self.keys if name]
            onward = self.holding and self.KEY in names and self.rng.random() < self.ONWARD
            self.key = "" if lift else self.KEY if onward else names[int(self.rng.integers(len(names)))]
            low, high = self.LIFT if lift else self.HOLD if self.holding else self.TAP
            self.left = int(self.rng.integers(low, high + 1))
        self.left -= 1
        return self.keys[self.key]


class Rest:
    """A long rest at the end of some episodes: the policy plays for a while, then holds no key until it is over.

    Where the game can do that (`Recipe.protect`), most are protected from what ends the episode, so that the rest
    lasts, and the others go on until the game ends them.
    """

    AFTER, STEPS = (10, 100), (64, 400)  # steps before it, steps of it
    PROTECTED = 0.75

    def __init__(self, share: float, protect: Mapping[str, Any], rng: np.random.Generator) -> None:
        """Rest in `share` of the episodes; `rng` decides whether in this one."""
        self.begins: int | None = None
        self.options: dict[str, Any] = {}
        self.steps: float = 0
        if rng.random() < share:
            self.begins = int(rng.integers(self.AFTER[0], self.AFTER[1] + 1))
            low, high = np.log(self.STEPS)
            self.steps = round(float(np.exp(rng.uniform(low, high))))
            if protect and rng.random() < self.PROTECTED:
                self.options = dict(protect)
            elif protect:
                self.steps = math.inf

    def resting(self, step: int) -> bool:
        """Say whether `step` is part of the rest."""
        return self.begins is not None and step >= self.begins

    def over(self, step: int) -> bool:
        """Say whether the rest, and with it the episode, is over before `step`."""
        return self.begins is not None and step >= self.begins + self.steps
