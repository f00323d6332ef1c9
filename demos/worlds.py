"""Make the environment of a name: a shipped world, a world folder, a hub id or a Gymnasium id."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import gymnasium as gym

from worldsim.errors import ConfigError, WorldError, WorldNotFound, did_you_mean

SHIPPED = {
    "car-racing": "worldsim/CarRacing-v0",
    "car-racing-wild": "worldsim/CarRacingWild-v0",
    "doom": "worldsim/Doom-v0",
    "real-car-racing": "worldsim/RealCarRacing-v0",
    "real-doom": "worldsim/RealDoom-v0",
    "real-doom-take-cover": "worldsim/RealDoomTakeCover-v0",
}
"""Short names for what comes with worldsim: the worlds, and the games they were recorded from."""

UNTIMED: dict[str, dict[str, Any]] = {"worldsim/RealCarRacing-v0": {"max_steps": None}}
"""Arguments that take away a time limit of the environment's own: people stop when they like."""


def make_env(name: str) -> gym.Env:
    """Make the environment called `name`, with render_mode "rgb_array" and, where possible, no time limit.

    Args:
        name: a name of `SHIPPED`, a folder with a world.json, a hub id ("user/name"), or a Gymnasium id such as
            "CartPole-v1" or "package:Name-v0".

    Raises:
        WorldNotFound: none of these.
        WorldError: it is there, but cannot be made.
        ConfigError: it has no render mode "rgb_array".
    """
    env_id, folder = SHIPPED.get(name, name), Path(name).expanduser()
    if env_id in gym.registry or ":" in env_id:
        return _make(env_id, name)
    import worldsim.envs  # noqa: F401 -- registers the ids; late, as it brings the models and torch

    if env_id in gym.registry or name in SHIPPED:
        return _make(env_id, name)
    if (folder / "world.json").is_file():
        return _make("worldsim/World-v0", name, world=str(folder))
    if folder.is_dir():
        raise WorldNotFound(f"the folder {name!r} holds no world: it has no world.json. Make one with: worldsim train")
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) and not re.search(r"-v\d+$", name):
        return _make("worldsim/World-v0", name, world=name)
    raise _unknown(name)


def _make(env_id: str, name: str, **kwargs: Any) -> gym.Env:
    try:
        kwargs |= UNTIMED.get(env_id, {})
        env = gym.make(env_id, render_mode="rgb_array", max_episode_steps=-1, disable_env_checker=True, **kwargs)
    except (gym.error.UnregisteredEnv, ModuleNotFoundError) as error:
        raise _unknown(name) from error
    except (gym.error.Error, TypeError) as error:
        raise WorldError(f"cannot make the environment {env_id!r}: {error}") from error
    if "rgb_array" not in (modes := env.metadata.get("render_modes", [])):
        env.close()
        raise ConfigError(f"{name!r} cannot be shown: it needs the render mode 'rgb_array' and has only {modes}.")
    return env


def _unknown(name: str) -> WorldNotFound:
    ids = difflib.get_close_matches(name, gym.registry)
    like = f" Gymnasium ids like it: {', '.join(ids)}." if ids else ""
    return WorldNotFound(
        f"{name!r} is no shipped world, no world folder and no known Gymnasium id.{did_you_mean(name, SHIPPED)}{like} "
        "A game that another package registers is package:Name-v0."
    )


def short_name(name: str) -> str:
    """Turn the last part of a path or id into the beginning of a file name, such as "car-racing" or "CartPole-v1"."""
    last = name.rstrip("/").split("/")[-1].split(":")[-1]
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in last).lstrip(".") or "world"
