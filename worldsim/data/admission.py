"""Checks what is recorded or imported, so that every later stage can take it: training, playing, hosting, agents.

What a world cannot have is refused here, at the first door, with what is allowed. `check_episode` is for episodes that
are written and for those that are read, which may be a stranger's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.data.episodes import Dataset, Episode, read_episode
from worldsim.errors import ActionError, ConfigError, DataError
from worldsim.spaces import ActionCodec, space_from_json, space_to_json

LONGEST_PROMPT = 10_000  # characters, as a world's card has it
LARGEST_BOUND = 1e9  # of a Box; larger ones stand for none, and random actions within them break games and models
LARGEST_REWARD = 1e30


def check_space(space: spaces.Space) -> dict[str, Any]:
    """Describe an action space, as `space_to_json`, if recordings, models, players and agents can all have it.

    Raises:
        ConfigError: they cannot: another kind of space, too many numbers, or bounds that stand for none.
    """
    data = space_to_json(space)
    for name, part in boxes(space):
        if not (np.all(part.low <= part.high) and np.all(part.low < np.inf) and np.all(part.high > -np.inf)):
            raise ConfigError(f"the action space{name} is {part}; allowed: bounds with finite numbers between them.")
        bounds = np.concatenate([np.ravel(part.low), np.ravel(part.high)]).astype(np.float64)
        if (np.isfinite(bounds) & (np.abs(bounds) > LARGEST_BOUND)).any():
            raise ConfigError(
                f"the action space{name} has bounds of {np.abs(bounds[np.isfinite(bounds)]).max():.3g}; allowed: up to "
                f"{LARGEST_BOUND:.0g}, or infinite. Wrap the environment in gymnasium.wrappers.RescaleAction, say."
            )
    if space_from_json(data) != space:
        raise ConfigError(f"the action space {space} is not the same after it was written and read; wrap it.")
    return data


def boxes(space: spaces.Space, name: str = "") -> Iterable[tuple[str, spaces.Box]]:
    """Yield the boxes of a space, each with where it is."""
    if isinstance(space, spaces.Box):
        yield name, space
    elif isinstance(space, spaces.Dict):
        for key, inner in space.spaces.items():
            yield from boxes(inner, f"{name}[{key!r}]")


def read_reward(value: Any) -> float:
    """Read the reward of a step: a finite number, or an array of one.

    Raises:
        DataError: it is something else.
    """
    try:
        array = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if value is None or array.size != 1 or not abs(float(array.reshape(()))) <= LARGEST_REWARD:
        raise DataError(f"the reward is {value!r:.80}; allowed: one finite number, up to {LARGEST_REWARD:g}.")
    return float(array.reshape(()))


def read_prompt(info: Mapping[str, Any], default: str = "") -> dict[str, Any]:
    """Read the prompt and the labels that an environment puts into its `info`, as `Episode.prompts` has them.

    Raises:
        DataError: the prompt is no text, or the labels are no dict of plain values.
    """
    text, labels = info.get("prompt"), info.get("labels")
    if labels is not None and not isinstance(labels, Mapping):
        raise DataError(f"info['labels'] is {type(labels).__name__} {labels!r:.60}; allowed: a dict of plain values.")
    found = {str(key): _plain(str(key), value) for key, value in (labels or {}).items()}
    return {**found, "text": check_text(default if text is None else text, "info['prompt']")}


def check_text(text: Any, name: str = "the prompt") -> str:
    """Return a prompt that is text which files can have.

    Raises:
        DataError: it is something else, or too long.
    """
    if not isinstance(text, str):
        raise DataError(f"{name} is {type(text).__name__} {text!r:.60}; allowed: text (str).")
    if len(text) > LONGEST_PROMPT:
        raise DataError(f"{name} has {len(text)} characters; allowed: {LONGEST_PROMPT}.")
    if re.search("[\ud800-\udfff]", text):
        raise DataError(f"{name} is {text!r:.60}, which has halves of characters (surrogates); allowed: whole ones.")
    return str(text)


def _plain(name: str, value: Any) -> Any:
    """A label as JSON has it."""
    value = (
        value.item() if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and not value.ndim) else value
    )
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        raise DataError(
            f"the label {name!r:.60} is {type(value).__name__} {value!r:.60}; allowed: text, finite numbers, true and "
            "false, and lists of these."
        ) from None


def check_episode(episode: Episode, space: spaces.Space, frame_size: tuple[int, int]) -> None:
    """Check that an episode is one of a recording: its parts fit together, and every number can be trained on.

    Raises:
        DataError: says what is wrong, at which step.
    """
    steps, frames = len(episode), episode.frames
    if frames.dtype != np.uint8 or frames.shape != (steps + 1, *frame_size, 3):
        raise DataError(
            f"frames are {frames.dtype} of shape {frames.shape}; allowed: uint8 {(steps + 1, *frame_size, 3)}, "
            "one more than rewards."
        )
    for name in ("rewards", "terminated", "truncated"):
        if getattr(episode, name).shape != (steps,):
            raise DataError(f"{name} have the shape {getattr(episode, name).shape}; allowed: {(steps,)}.")
    rewards = np.asarray(episode.rewards)
    wrong = np.flatnonzero(~np.isfinite(rewards)) if rewards.dtype.kind in "fiub" else np.arange(steps)
    if wrong.size:
        raise DataError(f"the reward of step {wrong[0]} is {rewards[wrong[0]]!s:.40}; allowed: finite numbers.")
    index = episode.prompt_index
    if index.shape != (steps + 1,) or index.dtype.kind not in "iu" or not episode.prompts:
        raise DataError(f"prompt_index is {index.dtype} of shape {index.shape}; allowed: one number for each frame.")
    if index.min() < 0 or index.max() >= len(episode.prompts):
        raise DataError(f"prompt_index reaches from {index.min()} to {index.max()}, of {len(episode.prompts)} prompts.")
    for prompt in episode.prompts:
        check_text(prompt["text"] if isinstance(prompt, Mapping) and "text" in prompt else None)
    check_actions(episode.actions, steps, space)


def check_actions(actions: Any, steps: int, space: spaces.Space) -> None:
    """Check the actions of so many steps.

    Raises:
        DataError: another number of them, or one that is outside the space or not finite.
    """
    codec = ActionCodec(space)
    try:
        codec.check_all(actions)
        flat = codec.flatten(actions)
    except (ActionError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{error!s:.300}") from error
    if flat.shape != (steps, codec.size) or not np.isfinite(flat).all():
        raise DataError(f"there are {len(flat)} actions for {steps} steps, or one that is not finite.")


def read_checked(path: Path, dataset: Dataset) -> Episode:
    """Read an episode of a dataset, and check it.

    Raises:
        DataError: names the file, and what no episode of the dataset can have.
    """
    episode = read_episode(path)
    try:
        check_episode(episode, dataset.action_space, dataset.frame_size)
    except DataError as error:
        raise DataError(f"{path}: {error} Delete the file and run the recording again.") from error
    return episode
