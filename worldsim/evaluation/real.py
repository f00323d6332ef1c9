"""Short rollouts of the real game, where it is installed, to hold a world against."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from worldsim.data.frames import resize_frame
from worldsim.data.recipe import Explorer, Recipe
from worldsim.errors import MissingDependency

SUDDEN = ("events", "changes")  # options of a reset that make something happen later, which nobody here has asked for
ATTEMPTS = 10  # episodes that may end too soon


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


@dataclass
class Run:
    """A rollout in the making.

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
        """Keep a frame."""
        self.frames.append(resize_frame(observation, self.size))
        self.prompts.append(str(info.get("prompt", "")))
        self.info = info

    def play(self, env: gym.Env, actions: Sequence[Any]) -> bool:
        """Play on; whether the episode lasted that long. The frame of an end is not kept: some games draw none."""
        for action in actions:
            observation, _, terminated, truncated, info = env.step(action)
            if terminated or truncated:
                return False
            self.actions.append(action)
            self.note(observation, info)
        return True


def begin(env: gym.Env, explorer: Explorer, rng: np.random.Generator, steps: int, size: tuple[int, int]) -> Run | None:
    """A new episode, played by the explorer for some steps; None if all tried ones ended before."""
    for _ in range(ATTEMPTS):
        options = {key: value for key, value in explorer.begin(rng, "heldout").items() if key not in SUDDEN}
        observation, info = env.reset(seed=int(rng.integers(2**31)), options=options)
        run = Run(size)
        run.note(observation, info)
        if all(run.play(env, [explorer.act(env, run.frames[-1], run.info)]) for _ in range(steps)):
            return run
    return None


def rollouts(
    recipe: Recipe, env: gym.Env, plans: list[list[Any]], size: tuple[int, int], rng: np.random.Generator
) -> Iterator[tuple[np.ndarray, dict[str, Any]]]:
    """Frames of the real game under each plan of actions, after a random while of the explorer's play.

    Yields:
        uint8 (1 + at most len(plan), H, W, 3), fewer where the episode ended; and the info of the last.
    """
    explorer = recipe.make_explorer()
    for plan in plans:
        steps = int(rng.integers(20, 60))
        run = begin(env, explorer, rng, steps, size)
        if run is not None:
            run.play(env, plan)
            yield np.stack(run.frames[steps:]), run.info
