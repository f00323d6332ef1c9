"""What it takes to record one game: an environment, someone to play it, and words for what is seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium as gym
import numpy as np

SPLITS = ("train", "heldout", "unseen")


class Explorer(Protocol):
    """Plays a game so that a recording covers it: all actions, in all situations."""

    def begin(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Start a new episode; return the `options` for `env.reset`."""
        ...

    def act(self, env: gym.Env, observation: Any, info: dict[str, Any]) -> Any:
        """The next action, an element of `env.action_space`."""
        ...


class RandomExplorer:
    """Samples the action space, holding each action for a random number of steps."""

    def __init__(self, hold: int = 8) -> None:
        """Hold each action for 1 to `hold` steps."""
        self.hold = hold

    def begin(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Start a new episode with a random stream of its own."""
        self.rng, self.left = rng, 0
        return {}

    def act(self, env: gym.Env, observation: Any, info: dict[str, Any]) -> Any:
        """The held action, or a new sample of the action space when its time is over."""
        if self.left == 0:
            env.action_space.seed(int(self.rng.integers(2**31)))
            self.action, self.left = env.action_space.sample(), int(self.rng.integers(1, self.hold + 1))
        self.left -= 1
        return self.action


class Pauses:
    """Says at which steps to do nothing: stretches of 8 to 64 steps that take `share` of all of them.

    No episode begins with one more often than by chance, so that short ones have fewer.
    """

    SHORTEST, LONGEST = 8, 64

    def __init__(self, share: float, rng: np.random.Generator) -> None:
        """Pause in `share` of the steps, 0 <= share < 1."""
        mean = (self.SHORTEST + self.LONGEST) / 2
        self.chance = share / (mean - (mean - 1) * share)  # to begin one, at a step outside
        self.rng, self.left = rng, 0

    def step(self) -> bool:
        """Whether this step is in a pause."""
        if self.left == 0 and self.rng.random() < self.chance:
            self.left = int(self.rng.integers(self.SHORTEST, self.LONGEST + 1))
        pausing = self.left > 0
        self.left -= pausing
        return pausing


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to record one game.

    The environment puts `info["prompt"]` (the words in force for the frame just returned) and `info["labels"]`
    (JSON scalars: the true state behind the words) into every info; both are optional. The label "event" names what the
    words say happens now, "" where nothing does: training shows such moments more often. (Without it: any new words.)
    """

    name: str
    summary: str
    env_id: str  # what the provenance says was recorded
    make_env: Callable[[], gym.Env]  # top-level function: workers import it by name
    make_explorer: Callable[[], Explorer]
    fps: float  # frames per second of game time
    episode_steps: int  # an episode is cut after so many steps
    frame_size: tuple[int, int] = (64, 64)  # (height, width)
    keys: Mapping[str, Any] = field(default_factory=dict)  # "left+up" -> action; "" is no key
    notices: tuple[str, ...] = ()  # licences of what the frames show
    packages: tuple[str, ...] = ()  # distributions whose versions go into the provenance
    unseen: bool = False  # has prompts that are held out of training
