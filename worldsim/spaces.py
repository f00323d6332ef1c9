"""Action spaces of Gymnasium: as JSON, and their actions as flat numbers, which models and recordings share.

No torch, as clients of remote worlds need this too.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.errors import ActionError, ConfigError

MOST_NUMBERS = 16_384  # of a flattened action: one for each choice, and the model has a weight for each
MOST_NESTED = 8  # spaces within spaces


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """A JSON description of a Discrete, MultiDiscrete, MultiBinary, Box or Dict space.

    Raises:
        ConfigError: the space is of another kind, or larger than `MOST_NUMBERS`.
    """
    data = _to_json(space)
    _check_size(data)
    return data


def _to_json(space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.Discrete):
        return {"type": "discrete", "n": int(space.n), "start": int(space.start), "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiDiscrete):
        nvec, start = space.nvec.tolist(), space.start.tolist()
        return {"type": "multi_discrete", "nvec": nvec, "start": start, "dtype": str(space.dtype)}
    if isinstance(space, spaces.MultiBinary):
        return {"type": "multi_binary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, spaces.Box):
        low, high = _bound_to_json(space.low), _bound_to_json(space.high)
        return {"type": "box", "low": low, "high": high, "dtype": str(space.dtype)}
    if isinstance(space, spaces.Dict):
        if odd := [key for key in space.spaces if not isinstance(key, str)]:
            raise ConfigError(
                f"a part of the action space is named {odd[0]!r}; allowed: strings. Wrap the environment."
            )
        return {"type": "dict", "spaces": {key: _to_json(value) for key, value in space.spaces.items()}}
    raise ConfigError(
        f"action space {space} cannot be recorded; "
        "allowed: Discrete, MultiDiscrete, MultiBinary, Box, Dict of these. Wrap the environment to convert it."
    )


def space_from_json(data: dict[str, Any]) -> spaces.Space:
    """The inverse of `space_to_json`.

    Raises:
        ConfigError: the description is not one that `space_to_json` writes. It may be a stranger's: how large it is
            is known before anything is made of it.
    """
    _check_size(data)
    return _from_json(data)


def _check_size(data: Any) -> None:
    size = _size(data, 0)
    if not 0 < size <= MOST_NUMBERS:
        raise ConfigError(
            f"an action would be {size} numbers; allowed: 1 to {MOST_NUMBERS}. Wrap the environment so that it takes "
            "fewer choices, such as several small ones instead of one large one (MultiDiscrete)."
        )


def _size(data: Any, depth: int) -> int:
    """Count the numbers of a flattened action of a description.

    Raises:
        ConfigError: it is damaged, or nested too deeply.
    """
    if not isinstance(data, dict) or depth > MOST_NESTED:
        raise ConfigError(
            f"damaged action space description {data!r:.100}; allowed: up to {MOST_NESTED} in each other."
        )
    try:
        kind = data.get("type")
        if kind == "dict":
            return sum(_size(inner, depth + 1) for inner in data["spaces"].values())
        shown = {"discrete": "n", "multi_discrete": "nvec", "multi_binary": "n", "box": "low"}.get(str(kind), "type")
        numbers = np.ravel(np.asarray(data[shown]))
        if kind == "box":
            return len(numbers)
        if kind not in ("discrete", "multi_discrete", "multi_binary"):
            return 1  # what is said of an unknown kind, says who makes the space
        if numbers.dtype.kind not in "iu" or not len(numbers) or min(numbers) < 1:
            raise ConfigError(f"damaged action space description: {shown} is {data[shown]!r:.100}; allowed: from 1.")
        return (math.prod if kind == "multi_binary" else sum)(map(int, numbers))
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"damaged action space description {data!r:.100}: {error!s:.100}") from error


def _from_json(data: dict[str, Any]) -> spaces.Space:
    try:
        kind = data["type"]
        if kind == "discrete":
            return spaces.Discrete(data["n"], start=data["start"], dtype=_integers(data))
        if kind == "multi_discrete":
            return spaces.MultiDiscrete(data["nvec"], dtype=_integers(data), start=data.get("start"))
        if kind == "multi_binary":
            return spaces.MultiBinary(data["n"])
        if kind == "box":
            low, high = (np.asarray(data[key], data["dtype"]) for key in ("low", "high"))
            return spaces.Box(low, high, dtype=low.dtype.type)
        if kind == "dict":
            inner = {key: _from_json(value) for key, value in data["spaces"].items()}
            return spaces.Dict(OrderedDict(inner))  # a plain dict would be sorted
    except (AssertionError, KeyError, TypeError, ValueError, OverflowError) as error:  # gymnasium asserts
        raise ConfigError(f"damaged action space description {data!r:.100}: {error!s:.100}") from error
    raise ConfigError(
        f"unknown action space type {kind!r:.40}; allowed: discrete, multi_discrete, multi_binary, box, dict."
    )


def _bound_to_json(bound: np.ndarray) -> Any:
    """Numbers in nested lists; an infinite one as "inf" or "-inf", because JSON has no such number."""
    return np.where(np.isfinite(bound), bound.astype(object), bound.astype(str)).tolist()


def _integers(data: dict[str, Any]) -> type[np.integer]:
    return np.dtype(data.get("dtype", "int64")).type


class ActionCodec:
    """Turns actions of a space into arrays and flat numbers; nothing else flattens an action.

    Args:
        space: Discrete, MultiDiscrete, MultiBinary, Box, or a Dict of these.

    Attributes:
        space: this.
        size: how many numbers an action is.
    """

    def __init__(self, space: spaces.Space) -> None:
        """Count the numbers."""
        self.space, self.size = space, spaces.flatdim(space)

    def check(self, action: Any) -> Any:
        """The action as an array, or a dict of arrays.

        Raises:
            ActionError: it is outside the space.
        """
        if isinstance(self.space, spaces.Box) and getattr(action, "dtype", None) == np.float64:
            action = action.astype(self.space.dtype)  # what numpy computes in by itself
        if not self.space.contains(action):
            kind = getattr(action, "dtype", type(action).__name__)
            raise ActionError(
                f"action {action!r} ({kind}) is outside the action space; allowed: {self.space}. "
                "Sample one with action_space.sample()."
            )
        return _arrays(action)

    def check_all(self, actions: Any) -> None:
        """Check a batch of actions, each of which must be inside the space.

        Args:
            actions: array of shape (T, *space.shape), or for a Dict space a dict of such arrays.

        Raises:
            ActionError: one is not: not finite, outside the bounds, or of another kind.
        """
        _check_all(self.space, actions)

    def stack(self, actions: list[Any]) -> Any:
        """A list of actions as one array of shape (T, *space.shape), or a dict of such arrays for a Dict space."""
        return _stack(self.space, actions)

    def flatten(self, actions: Any) -> np.ndarray:
        """A batch of actions as numbers of about unit size: one-hot for choices, -1..1 for bounded boxes.

        Args:
            actions: array of shape (..., *space.shape), or for a Dict space a dict of such arrays.

        Returns:
            float32 of shape (..., size).
        """
        return _flatten(self.space, actions)

    def flatten_list(self, actions: list[Any]) -> np.ndarray:
        """A list of T actions as numbers, float32 (T, size)."""
        return self.flatten(self.stack(actions)) if actions else np.zeros((0, self.size), np.float32)


def _arrays(action: Any) -> Any:
    """An action as an array, or a dict of arrays, also a nested one."""
    return {key: _arrays(part) for key, part in action.items()} if isinstance(action, dict) else np.asarray(action)


def _check_all(space: spaces.Space, actions: Any) -> None:
    if isinstance(space, spaces.Dict):
        if not isinstance(actions, dict) or set(actions) != set(space.spaces):
            raise ActionError(f"actions are {actions!r:.80}; allowed: a dict of {', '.join(map(str, space.spaces))}.")
        for key, inner in space.spaces.items():
            _check_all(inner, actions[key])
        return
    array = np.asarray(actions)
    if isinstance(space, spaces.Box):
        low, high, kinds = space.low, space.high, "biuf"
    elif isinstance(space, spaces.MultiDiscrete):
        low, high, kinds = space.start, space.start + space.nvec - 1, "biu"
    elif isinstance(space, spaces.Discrete):
        low, high, kinds = space.start, space.start + space.n - 1, "biu"
    else:
        low, high, kinds = 0, 1, "biu"
    if array.shape[1:] != (space.shape or ()) or array.dtype.kind not in kinds:
        raise ActionError(f"actions have the shape {array.shape} and dtype {array.dtype}; allowed: each in {space}.")
    array = array.astype(np.float64)
    if not (np.isfinite(array) & (array >= low) & (array <= high)).all():
        raise ActionError(f"actions reach from {array.min()} to {array.max()}; allowed: each in {space}.")


def _one_hot(index: np.ndarray, count: int) -> np.ndarray:
    """Integers (...,) to (..., count): not by an identity matrix, which has count x count numbers."""
    if index.size and not (index.min() >= 0 and index.max() < count):
        raise ActionError(f"choices reach from {index.min()} to {index.max()}; allowed: 0 to {count - 1}.")
    out = np.zeros((*index.shape, count), np.float32)
    np.put_along_axis(out, index[..., None], 1.0, -1)
    return out


def _flatten(space: spaces.Space, actions: Any) -> np.ndarray:
    if isinstance(space, spaces.Dict):
        parts = [_flatten(inner, actions[key]) for key, inner in space.spaces.items()]
        return np.concatenate(parts, axis=-1)
    array = np.asarray(actions)
    if isinstance(space, spaces.Discrete):
        return _one_hot(array - int(space.start), int(space.n))
    lead = array.shape[: array.ndim - len(space.shape or ())]
    array = array.reshape(*lead, -1)
    if isinstance(space, spaces.MultiDiscrete):
        sizes, array = space.nvec.reshape(-1), array - space.start.reshape(-1)
        return np.concatenate([_one_hot(array[..., i], int(n)) for i, n in enumerate(sizes)], axis=-1)
    array = array.astype(np.float32)
    if isinstance(space, spaces.Box):
        low, high = space.low.reshape(-1).astype(np.float32), space.high.reshape(-1).astype(np.float32)
        bounded = np.isfinite(low) & np.isfinite(high) & (high > low)
        low, high = np.where(bounded, low, -1), np.where(bounded, high, 1)
        return ((array - low) / (high - low) * 2 - 1).astype(np.float32)
    return array * 2 - 1  # MultiBinary


def _stack(space: spaces.Space, actions: list[Any]) -> Any:
    if isinstance(space, spaces.Dict):
        return {key: _stack(inner, [a[key] for a in actions]) for key, inner in space.spaces.items()}
    dtype = np.int64 if isinstance(space, spaces.Discrete) else space.dtype
    return np.asarray(actions, dtype).reshape(len(actions), *(space.shape or ()))


def plain_action(action: Any) -> Any:
    """Write an action as plain data, as JSON has it: numbers, lists, and dicts of these."""
    if isinstance(action, Mapping):
        return {key: plain_action(part) for key, part in action.items()}
    return np.asarray(action).tolist()


def actions_to_arrays(name: str, actions: Any) -> dict[str, np.ndarray]:
    """Actions of a recording as arrays with names, as files have them: those of a Dict space one a part."""
    if isinstance(actions, dict):  # names of parts are joined by dots, so those within them are written otherwise
        parts = {f"{name}.{str(key).replace('%', '%25').replace('.', '%2E')}": value for key, value in actions.items()}
        return {k: v for part, value in parts.items() for k, v in actions_to_arrays(part, value).items()}
    return {name: np.asarray(actions)}


def actions_from_arrays(name: str, arrays: dict[str, np.ndarray]) -> Any:
    """The inverse of `actions_to_arrays`; arrays of other names are passed over."""
    if name in arrays:
        return arrays[name]
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        if path.startswith(f"{name}."):
            parts = path.removeprefix(f"{name}.").split(".")
            *parents, leaf = (part.replace("%2E", ".").replace("%25", "%") for part in parts)
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = array
    return tree
