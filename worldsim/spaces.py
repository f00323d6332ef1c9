"""Action spaces of Gymnasium: as JSON, and their actions as flat numbers, which models and recordings share.

No torch, as clients of remote worlds need this too.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.errors import ActionError, ConfigError


def space_to_json(space: spaces.Space) -> dict[str, Any]:
    """A JSON description of a Discrete, MultiDiscrete, MultiBinary, Box or Dict space.

    Raises:
        ConfigError: the space is of another kind.
    """
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
        return {"type": "dict", "spaces": {key: space_to_json(value) for key, value in space.spaces.items()}}
    raise ConfigError(
        f"action space {space} cannot be recorded; "
        "allowed: Discrete, MultiDiscrete, MultiBinary, Box, Dict of these. Wrap the environment to convert it."
    )


def space_from_json(data: dict[str, Any]) -> spaces.Space:
    """The inverse of `space_to_json`.

    Raises:
        ConfigError: the description is not one that `space_to_json` writes.
    """
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
            inner = {key: space_from_json(value) for key, value in data["spaces"].items()}
            return spaces.Dict(OrderedDict(inner))  # a plain dict would be sorted
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"damaged action space description {data!r}: {error}") from error
    raise ConfigError(
        f"unknown action space type {kind!r}; allowed: discrete, multi_discrete, multi_binary, box, dict."
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
        return {k: np.asarray(v) for k, v in action.items()} if isinstance(action, dict) else np.asarray(action)

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


def _flatten(space: spaces.Space, actions: Any) -> np.ndarray:
    if isinstance(space, spaces.Dict):
        parts = [_flatten(inner, actions[key]) for key, inner in space.spaces.items()]
        return np.concatenate(parts, axis=-1)
    array = np.asarray(actions)
    if isinstance(space, spaces.Discrete):
        return np.eye(int(space.n), dtype=np.float32)[array - int(space.start)]
    lead = array.shape[: array.ndim - len(space.shape or ())]
    array = array.reshape(*lead, -1)
    if isinstance(space, spaces.MultiDiscrete):
        sizes, array = space.nvec.reshape(-1), array - space.start.reshape(-1)
        return np.concatenate([np.eye(n, dtype=np.float32)[array[..., i]] for i, n in enumerate(sizes)], axis=-1)
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
