"""Controls: an action or keys, from a request, and how those of two players become one action."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.bridges.actions import from_buffer, from_json
from worldsim.envs.keymap import KeyMap
from worldsim.errors import ActionError, ProtocolError

MOST_KEYS = 16


@dataclass(frozen=True)
class Keys:
    """Keys held down, in the order of their names."""

    names: tuple[str, ...]


def from_request(
    space: spaces.Space, keymap: KeyMap, header: Mapping[str, Any], buffers: Mapping[str, Any]
) -> Any | Keys:
    """Read the action or the keys of a `step` or an `input`.

    Raises:
        ProtocolError: bad-field, none or several of the three ways; bad-action, unknown keys.
        ActionError: it cannot be an action.
    """
    found = [name for name in ("action", "keys") if header.get(name) is not None]
    found += ["buffer action"] if "action" in buffers else []
    if len(found) != 1:
        raise ProtocolError("bad-field", f"there must be one of action, keys, buffer action; got {found or 'none'}.")
    if found[0] == "action":
        return from_json(space, header["action"])
    if found[0] == "keys":
        names = tuple(name for name in header["keys"].split("+") if name)
        unknown = [name for name in names if not keymap.knows(name)]
        if unknown or len(names) > MOST_KEYS:
            raise ProtocolError("bad-action", f"the keys {unknown[:8]} mean nothing here; known: {keymap.names}.")
        return Keys(names)
    return from_buffer(space, buffers["action"])


def resolve(control: Any, keymap: KeyMap) -> Any:
    """Turn keys into their action; an action stays as it is."""
    return keymap.action(control.names) if isinstance(control, Keys) else control


def split(first: Any, second: Any, parts: list[Any], space: spaces.Space, keymap: KeyMap) -> Any:
    """Combine the controls of two players: `parts` of the action are the second player's.

    Raises:
        ActionError: parts of keys, but a player holds an action.
    """
    if parts and isinstance(parts[0], str):
        names: list[str] = []
        for control, mine in ((first, lambda key: key not in parts), (second, lambda key: key in parts)):
            if isinstance(control, Keys):
                names += [name for name in control.names if mine(name)]
            elif not _same(control, keymap.entries[frozenset()]):
                raise ActionError("these controls are shared by keys; send 'keys' such as \"left+up\".")
        return keymap.action(names)
    whole = np.array(resolve(first, keymap), copy=True)
    theirs = np.asarray(resolve(second, keymap))
    if whole.shape != space.shape or theirs.shape != space.shape:
        raise ActionError(f"an action has the shape {whole.shape} or {theirs.shape}; allowed: {space.shape}.")
    whole.reshape(-1)[parts] = theirs.reshape(-1)[parts]
    return whole


def check_parts(parts: list[Any], space: spaces.Space, keymap: KeyMap) -> None:
    """Check the parts of a split.

    Raises:
        ProtocolError: bad-field.
    """
    if all(isinstance(part, str) and keymap.knows(part) for part in parts):
        return
    size = int(np.prod(space.shape)) if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)) else 0
    if not all(isinstance(part, int) and not isinstance(part, bool) and 0 <= part < size for part in parts):
        numbers = f"indices below {size}, or " if size else ""
        raise ProtocolError("bad-field", f"'parts' is {parts!r}; allowed: {numbers}keys of {', '.join(keymap.names)}.")


def _same(one: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))
