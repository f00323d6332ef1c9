"""What it takes to record one game: an environment, someone to play it, and words for what is seen."""

from __future__ import annotations

import math
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


class Beginner:
    """Plays as somebody who has never seen the game: holds one key for long, or taps any of them now and then.

    A world that was only trained on a skilled policy does not know what follows from this, and it is how most people
    meet it first. In half of the episodes that policy plays for a while before, so that a key is held in motion too.
    """

    HOLD, TAP, LIFT = (40, 400), (1, 4), (1, 8)  # shortest and longest, in steps: a key held, tapped, none
    HOLDING = 0.5  # of the episodes hold a key, the others tap
    ONWARD, KEY = 0.5, "up"  # share of keys held that are this one, where a game has it: on into a wall, most often
    TAKING_OVER, AFTER = 0.5, (10, 80)  # of the episodes begin with the explorer, for so many steps

    def __init__(self, keys: Mapping[str, Any], explorer: Explorer) -> None:
        """Press `keys`; `explorer` says how episodes begin, and plays before this beginner takes over."""
        self.keys, self.explorer = keys, explorer

    def begin(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Start a new episode; return the options that the explorer would start it with."""
        self.rng, self.left, self.key = rng, 0, ""
        self.holding = bool(rng.random() < self.HOLDING)
        self.before = int(rng.integers(*self.AFTER)) if rng.random() < self.TAKING_OVER else 0
        return self.explorer.begin(rng, split)

    def act(self, env: gym.Env, observation: Any, info: dict[str, Any]) -> Any:
        """The key that is down, or none; the explorer's action before it takes over."""
        if self.before > 0:
            self.before -= 1
            return self.explorer.act(env, observation, info)
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

    Where the game can do that (`Recipe.protect`), most are protected from what ends the episode, so that the truth
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
        """Whether `step` is part of the rest."""
        return self.begins is not None and step >= self.begins

    def over(self, step: int) -> bool:
        """Whether the rest, and with it the episode, is over before `step`."""
        return self.begins is not None and step >= self.begins + self.steps


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
    protect: Mapping[str, Any] = field(default_factory=dict)  # options of a reset under which nothing ends an episode
    notices: tuple[str, ...] = ()  # licences of what the frames show
    packages: tuple[str, ...] = ()  # distributions whose versions go into the provenance
    unseen: bool = False  # has prompts that are held out of training
