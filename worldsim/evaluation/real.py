"""Short rollouts of the real game, where it is installed, to compare a world with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from worldsim import registry
from worldsim.data.frames import resize_frame
from worldsim.data.policy import Policy
from worldsim.data.recipe import Recipe
from worldsim.errors import MissingDependency

ATTEMPTS = 10  # episodes that may end too soon


def find_recipe(name: str) -> Recipe | None:
    """Find the recipe of that name; None without a recipe, or if its game is not installed."""
    try:
        return registry.find_recipe(name)
    except MissingDependency:
        return None


def open_game(recipe: Recipe | None) -> gym.Env | None:
    """Make the game of a recipe; None without a recipe, or if the game is not installed."""
    try:
        return None if recipe is None else recipe.make_env()
    except MissingDependency:
        return None


@dataclass
class Run:
    """A rollout while it is played.

    Attributes:
        size: height and width of its frames.
        frames: uint8 (H, W, 3) each.
        actions: that led from a frame to the next, one less.
        prompts: in force at each frame, "" where the game says none.
        info: the last one.
    """

    size: tuple[int, int]
    frames: list[np.ndarray] = field(default_factory=list)
    actions: list[Any] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    info: dict[str, Any] = field(default_factory=dict)

    def note(self, observation: np.ndarray, info: dict[str, Any]) -> None:
        """Store a frame."""
        self.frames.append(resize_frame(observation, self.size))
        self.prompts.append(str(info.get("prompt", "")))
        self.info = info

    def play(self, env: gym.Env, actions: Sequence[Any]) -> bool:
        """Play on; say whether the episode lasted. The frame of a termination is not stored: some games draw none."""
        for action in actions:
            observation, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                return False
            self.actions.append(action)
            self.note(observation, info)
        return True


def begin_options(recipe: Recipe, policy: Policy, rng: np.random.Generator) -> dict[str, Any]:
    """Begin an episode of a policy; return the options of the reset, without scheduled events."""
    options = policy.begin(rng, "heldout")
    return {key: value for key, value in options.items() if key not in recipe.scheduled_options}


def begin(
    recipe: Recipe, env: gym.Env, policy: Policy, rng: np.random.Generator, steps: int, size: tuple[int, int]
) -> Run | None:
    """Play a new episode by a policy for some steps; None if all attempts terminated earlier."""
    for _ in range(ATTEMPTS):
        options = begin_options(recipe, policy, rng)
        observation, info = env.reset(seed=int(rng.integers(2**31)), options=options)
        run = Run(size)
        run.note(observation, info)
        if all(run.play(env, [policy.act(env, run.frames[-1], run.info)]) for _ in range(steps)):
            return run
    return None


def rollouts(
    recipe: Recipe, env: gym.Env, plans: list[list[Any]], size: tuple[int, int], rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Play each plan of actions in the real game, after a random number of steps of the recipe's policy.

    Yields:
        uint8 (1 + at most len(plan), H, W, 3), fewer where the episode ended; and the info of the last.
    """
    policy = recipe.make_policy()
    for plan in plans:
        steps = int(rng.integers(20, 60))
        run = begin(recipe, env, policy, rng, steps, size)
        if run is not None:
            run.play(env, plan)
            yield np.stack(run.frames[steps:]), run.info
