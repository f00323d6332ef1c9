"""Discrete action sets: a few actions of a game that an agent chooses among, by their keys.

An action is stored by its keys ("left+up"), so that an agent that learned in a world finds the same actions in the
real game.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.envs.keymap import derive_keys
from worldsim.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class DiscreteActions:
    """Some actions of a space, numbered from 0.

    Attributes:
        names: the keys that mean each.
        values: the actions, (N, *space.shape) in the space's dtype.
    """

    names: tuple[str, ...]
    values: np.ndarray

    def __len__(self) -> int:
        """Return the number of actions."""
        return len(self.names)


def find_actions(
    space: spaces.Space, keys: Mapping[str, Any], wanted: Sequence[str] = (), discrete: bool = True
) -> DiscreteActions | None:
    """Find the discrete action set, or None if the agent uses the numbers of a Box.

    Args:
        space: of the game.
        keys: its keys and their actions; where there are none they are made for the space.
        wanted: only these; nothing means all.
        discrete: choose among keys even where the space is a Box.

    Raises:
        ConfigError: there are no such keys, or the space is one that an agent cannot act in.
    """
    if isinstance(space, spaces.Box) and not discrete and not wanted:
        return None
    if isinstance(space, spaces.Discrete) and not wanted:
        start, count = int(space.start), int(space.n)
        names = {int(action): key for key, action in keys.items()}
        values = np.arange(start, start + count, dtype=space.dtype)
        return DiscreteActions(tuple(names.get(value, str(value)) for value in values.tolist()), values)
    if isinstance(space, spaces.Dict | spaces.Tuple):
        raise ConfigError(
            f"an agent cannot act in the space {space}; allowed: Discrete, Box, MultiDiscrete, MultiBinary."
        )
    known = {"+".join(sorted(combo.split("+"))): action for combo, action in keys.items()}
    known = known or {"+".join(sorted(combo)): action for combo, action in derive_keys(space).items()}
    names = tuple("+".join(sorted(name.split("+"))) for name in wanted) or tuple(known)
    for name in names:
        if name not in known:
            raise ConfigError(f"the game has no keys {name!r}.{did_you_mean(name, known)}")
    if len(set(names)) != len(names):
        raise ConfigError(f"actions are {list(names)}; each may be there once.")
    dtype = space.dtype
    return DiscreteActions(names, np.stack([np.asarray(known[name], dtype) for name in names]))
