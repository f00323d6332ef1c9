"""Four scripted policies that play as people do in their first minute, from frames alone.

The same policies play a world and the real game. Each session has its own policy with its own noise.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import gymnasium as gym
import numpy as np

from worldsim.data.policy import BeginnerPolicy, Policy
from worldsim.evaluation.probe import Labels, Probe

TAP = (1, 6)  # shortest and longest time of a tapped key, and of none, in steps
NOISE = 0.03  # deviation of the steering beginner's hand


class HoldPolicy:
    """Holds one action throughout the session."""

    needs_frames = False

    def __init__(self, action: Any) -> None:
        """Hold `action`."""
        self.action = action

    def begin(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Start a session; there is nothing to sample."""
        return {}

    def act(self, env: Any, observation: Any, info: dict[str, Any]) -> Any:
        """Hold the action."""
        return self.action


class TapPolicy:
    """Presses a random key for a few steps, then no key for a few steps."""

    needs_frames = False

    def __init__(self, probe: Probe) -> None:
        """Tap the keys of a probe's game."""
        self.keys = probe.recipe.keys

    def begin(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Start a session without a key."""
        self.rng, self.left, self.key = rng, 0, ""
        return {}

    def act(self, env: Any, observation: Any, info: dict[str, Any]) -> Any:
        """Press the current key, or none."""
        if self.left == 0:
            names = [name for name in self.keys if name]
            self.key = "" if self.key else names[int(self.rng.integers(len(names)))]
            self.left = int(self.rng.integers(TAP[0], TAP[1] + 1))
        self.left -= 1
        return self.keys[self.key]


class SteerPolicy:
    """Steers towards what it sees, with a delay of some 300 ms and an unsteady hand."""

    def __init__(self, probe: Probe, space: gym.Space, labels: Labels) -> None:
        """Steer by the sight of a probe."""
        self.probe, self.space, self.labels = probe, space, labels

    def begin(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Start a session straight ahead."""
        self.rng, self.step = rng, 0
        self.targets: deque[float] = deque([0.0] * self.probe.delay, maxlen=self.probe.delay + 1)
        return {}

    def act(self, env: Any, observation: np.ndarray, info: dict[str, Any]) -> Any:
        """Steer to the target of some steps ago."""
        self.targets.append(self.probe.steer(observation, self.labels, self.targets[-1]))
        target = self.targets[0] + NOISE * float(self.rng.standard_normal())
        action = self.probe.steered(target, self.step, self.space)
        self.step += 1
        return action


class ScriptPolicy:
    """Plays a list of actions, then repeats the last one."""

    needs_frames = False

    def __init__(self, actions: list[Any]) -> None:
        """Play `actions`, at least one."""
        self.actions, self.step = actions, 0

    def begin(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Start from the first action."""
        self.step = 0
        return {}

    def act(self, env: Any, observation: Any, info: dict[str, Any]) -> Any:
        """Play the next action."""
        self.step += 1
        return self.actions[min(self.step, len(self.actions)) - 1]


BEGINNERS = ("hold", "tap", "steer", "rest")


def beginner(name: str, probe: Probe, space: gym.Space, labels: Labels, seed: list[int]) -> Policy:
    """Make the policy of that name, one of BEGINNERS, for one session of its own seed."""
    keys = probe.recipe.keys
    others = [key for key in keys if key]
    held = BeginnerPolicy.KEY if BeginnerPolicy.KEY in keys else others[0] if others else ""
    policy: Policy
    if name == "tap":
        policy = TapPolicy(probe)
    elif name == "steer":
        policy = SteerPolicy(probe, space, labels)
    else:
        policy = HoldPolicy(keys[held if name == "hold" else ""])
    policy.begin(np.random.default_rng(seed), "heldout")
    return policy
