"""Four scripted policies that play as people do in their first minute, from frames alone.

The same objects play a world and the real game. Each session has a policy of its own, with noise of its own.
"""

from __future__ import annotations

from collections import deque
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

from worldsim.data.recipe import Beginner
from worldsim.evaluation.probe import Labels, Probe

TAP = (1, 6)  # shortest and longest time of a tapped key, and of none, in steps
NOISE = 0.03  # deviation of the steering beginner's hand


class Policy(Protocol):
    """Plays one session.

    Attributes:
        looks: whether it needs to see every frame.
    """

    looks: bool

    def act(self, frame: np.ndarray) -> Any:
        """The next action, an element of the action space, after a frame uint8 (H, W, 3)."""
        ...


class Hold:
    """Holds one action for good."""

    looks = False

    def __init__(self, action: Any) -> None:
        """Hold `action`."""
        self.action = action

    def act(self, frame: np.ndarray) -> Any:
        """The held action."""
        return self.action


class Tap:
    """Presses any key for a few steps, then none for a few."""

    looks = False

    def __init__(self, probe: Probe, rng: np.random.Generator) -> None:
        """Tap the keys of a probe's game."""
        self.keys, self.rng = probe.recipe.keys, rng
        self.left, self.key = 0, ""

    def act(self, frame: np.ndarray) -> Any:
        """The key that is down, or none."""
        if self.left == 0:
            names = [name for name in self.keys if name]
            self.key = "" if self.key else names[int(self.rng.integers(len(names)))]
            self.left = int(self.rng.integers(TAP[0], TAP[1] + 1))
        self.left -= 1
        return self.keys[self.key]


class Steer:
    """Steers towards what it sees, late by some 300 ms and with an unsteady hand."""

    looks = True

    def __init__(self, probe: Probe, space: gym.Space, labels: Labels, rng: np.random.Generator) -> None:
        """Steer by the sight of a probe."""
        self.probe, self.space, self.labels, self.rng = probe, space, labels, rng
        self.wishes: deque[float] = deque([0.0] * probe.delay, maxlen=probe.delay + 1)
        self.step = 0

    def act(self, frame: np.ndarray) -> Any:
        """What it wished to do some steps ago."""
        self.wishes.append(self.probe.steer(frame, self.labels, self.wishes[-1]))
        wish = self.wishes[0] + NOISE * float(self.rng.standard_normal())
        action = self.probe.steered(wish, self.step, self.space)
        self.step += 1
        return action


class Script:
    """Plays given actions, then the last one of them."""

    looks = False

    def __init__(self, actions: list[Any]) -> None:
        """Play `actions`, at least one."""
        self.actions, self.step = actions, 0

    def act(self, frame: np.ndarray) -> Any:
        """The next action."""
        self.step += 1
        return self.actions[min(self.step, len(self.actions)) - 1]


BEGINNERS = ("hold", "tap", "steer", "rest")


def beginner(name: str, probe: Probe, space: gym.Space, labels: Labels, seed: list[int]) -> Policy:
    """A policy by name, one of BEGINNERS, for one session of its own seed."""
    rng, keys = np.random.default_rng(seed), probe.recipe.keys
    if name == "tap":
        return Tap(probe, rng)
    if name == "steer":
        return Steer(probe, space, labels, rng)
    others = [key for key in keys if key]
    held = Beginner.KEY if Beginner.KEY in keys else others[0] if others else ""
    return Hold(keys[held if name == "hold" else ""])
