"""Actions as a message carries them: JSON or a raw buffer."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.errors import ActionError


def from_json(space: spaces.Space, value: Any) -> Any:
    """Read an element of `space` from plain JSON; `Engine.check` says whether it is inside the space.

    Raises:
        ActionError: it cannot be one.
    """
    try:
        if isinstance(space, spaces.Dict):
            if not isinstance(value, dict) or set(value) != set(space.spaces):
                raise ActionError(f"the action must be an object with the entries {', '.join(space.spaces)}.")
            return {key: from_json(inner, value[key]) for key, inner in space.spaces.items()}
        if isinstance(space, spaces.Discrete):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ActionError(f"the action must be an integer; allowed: {space}.")
            return value
        return _cast(space, np.asarray(value))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        if isinstance(error, ActionError):
            raise
        raise ActionError(f"the action cannot be read ({error}); allowed: {space}.") from None


def to_json(space: spaces.Space, action: Any) -> Any:
    """Write an action as plain JSON: the exact inverse of `from_json`, for float32 too."""
    if isinstance(space, spaces.Dict):
        return {key: to_json(inner, action[key]) for key, inner in space.spaces.items()}
    return np.asarray(action).tolist()


def from_buffer(space: spaces.Space, array: Any) -> Any:
    """Read an element of `space` from a raw buffer.

    Raises:
        ActionError: it cannot be one.
    """
    if not isinstance(array, np.ndarray) or isinstance(space, spaces.Dict):
        raise ActionError(f"the action must be a raw buffer, or JSON for a Dict space; allowed: {space}.")
    if isinstance(space, spaces.Discrete):
        return from_json(space, array.item() if array.size == 1 else None)
    return _cast(space, array)


def _cast(space: spaces.Space, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "iuf":
        raise ActionError(f"the action must be numbers, not {array.dtype}; allowed: {space}.")
    if isinstance(space, spaces.Box):
        return array.astype(space.dtype)
    if array.dtype.kind == "f" or not np.array_equal(array.astype(space.dtype), array):
        raise ActionError(f"the action must be integers that fit; allowed: {space}.")
    return array.astype(space.dtype)
