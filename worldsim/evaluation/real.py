"""Short rollouts of the real game, where it is installed, to hold a world against."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np

from worldsim.data.frames import resize_frame
from worldsim.data.recipe import Explorer, Recipe
from worldsim.errors import MissingDependency


def find_recipe(name: str) -> Recipe | None:
    """The built-in recipe of that name, or None where there is none or its game is not installed."""
    try:
        from worldsim.data.games import recipes

        return recipes().get(name)
    except MissingDependency:
        return None


def open_game(recipe: Recipe | None) -> gym.Env | None:
    """The game of a recipe, or None where there is none or it is not installed."""
    try:
        return None if recipe is None else recipe.make_env()
    except MissingDependency:
        return None


def begin(env: gym.Env, explorer: Explorer, rng: np.random.Generator, steps: int) -> tuple[np.ndarray, dict] | None:
    """A new episode, played by the explorer for some steps; None if it ended before.

    Returns:
        The last observation and its info.
    """
    options = explorer.begin(rng, "heldout")
    observation, info = env.reset(seed=int(rng.integers(2**31)), options=options)
    for _ in range(steps):
        observation, _, terminated, truncated, info = env.step(explorer.act(env, observation, info))
        if terminated or truncated:
            return None
    return observation, info


def play(env: gym.Env, first: np.ndarray, actions: list[Any], size: tuple[int, int]) -> np.ndarray:
    """Frames of some actions, those after an end left out, uint8 (1 + at most len(actions), H, W, 3)."""
    frames = [resize_frame(first, size)]
    for action in actions:
        observation, _, terminated, truncated, _ = env.step(action)
        if terminated:  # some games draw nothing new after the end
            break
        frames.append(resize_frame(observation, size))
        if truncated:
            break
    return np.stack(frames)


def rollouts(
    recipe: Recipe, env: gym.Env, plans: list[list[Any]], size: tuple[int, int], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Frames of the real game under each plan of actions, after a random while of the explorer's play."""
    explorer = recipe.make_explorer()
    for plan in plans:
        begun = None
        for _ in range(10):
            begun = begin(env, explorer, rng, int(rng.integers(20, 60)))
            if begun is not None:
                yield play(env, begun[0], plan, size)
                break
