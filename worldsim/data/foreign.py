"""Make recipes of any Gymnasium environment: whatever it raises is an error of one line that names it."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import gymnasium as gym

from worldsim.data.policy import RandomPolicy
from worldsim.data.recipe import Recipe
from worldsim.errors import ConfigError, DataError, MissingDependency, WorldsimError, did_you_mean
from worldsim.registry import folder_game

EPISODE_STEPS = 1000  # for an environment without a limit of its own
FRAMES_PER_SECOND = 30.0  # for an environment that does not say

PACKAGES = {
    "ALE/": ("ale_py", "ale-py"),
    "BabyAI-": ("minigrid", "minigrid"),
    "MiniGrid-": ("minigrid", "minigrid"),
    "MiniWorld-": ("miniworld", "miniworld"),
    "Vizdoom": ("vizdoom.gymnasium_wrapper", "vizdoom"),
    "highway-": ("highway_env", "highway-env"),
}
"""Beginnings of well-known ids -> the module that registers them, and what to install."""


@contextlib.contextmanager
def game_errors(what: str) -> Iterator[None]:
    """Turn whatever a game raises within the `with` block into an error of one line.

    Args:
        what: the game does here: "cannot make the environment 'X-v0'".

    Raises:
        DataError: with `what`, and the cause.
    """
    try:
        yield
    except DataError as error:
        raise error if str(error).startswith(what) else DataError(f"{what}: {error}") from error
    except (WorldsimError, KeyboardInterrupt, GeneratorExit, MemoryError):
        raise
    except BaseException as error:  # also SystemExit, by which some games end the program
        raise DataError(f"{what}: {cause(error).rstrip('.')}.") from error


def cause(error: BaseException) -> str:
    """Say what was raised, in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def full_id(env_id: str) -> str:
    """Return an id that Gymnasium can make in any process: of a well-known package, with the package's name.

    Raises:
        MissingDependency: the package is not installed.
    """
    known = next((names for prefix, names in PACKAGES.items() if env_id.startswith(prefix)), None)
    if known is None or env_id in gym.registry or ":" in env_id:
        return env_id
    module, package = known
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(package, f"the environment {env_id!r}", f"pip install {package}") from error
    return f"{module}:{env_id}"


def foreign_recipe(env_id: str, max_episode_steps: int | None) -> Recipe:
    """Make a recipe for a Gymnasium id, with its own keys where it has some.

    Raises:
        DataError: the environment cannot be made, for whatever reason.
    """
    limit = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
    make_env = partial(gym.make, env_id, render_mode="rgb_array", disable_env_checker=True, **limit)
    game = folder_game(env_id.partition(":")[0])
    hint = "" if game is None else did_you_mean(env_id.partition(":")[2], game.recipes())
    try:
        with game_errors(f"cannot make the environment {env_id!r}"):
            env = make_env()
            steps = env.spec.max_episode_steps if env.spec else None
            fps = float(env.metadata.get("render_fps") or FRAMES_PER_SECOND)
            keys = own_keys(env)
            env.close()
    except DataError as error:
        raise DataError(f"{error}{hint}") from error
    return Recipe(
        name=env_id.split(":")[-1].split("/")[-1],
        summary=f"the Gymnasium environment {env_id}",
        env_id=env_id,
        make_env=make_env,
        make_policy=RandomPolicy,
        fps=fps,
        episode_steps=steps or EPISODE_STEPS,
        keys=keys,
        packages=("gymnasium", "numpy"),
    )


def own_keys(env: gym.Env) -> Mapping[str, Any]:
    """Get the keys of an environment that says which it has (`get_keys_to_action`), and the action of no key."""
    if not env.has_wrapper_attr("get_keys_to_action"):
        return {}
    from worldsim.envs.keymap import read_keys

    try:
        found = read_keys(env.get_wrapper_attr("get_keys_to_action")(), env.action_space)
    except ConfigError:  # keys that nobody's keyboard has are no reason not to record the game
        return {}
    return {"+".join(sorted(combo)): action for combo, action in found.items()}
