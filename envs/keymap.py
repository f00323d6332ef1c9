"""Keys, and the actions that they stand for.

A key is a name, as pygame spells it: "left", "space", "w", "1". A combination is names joined by "+", such as
"left+up"; the empty one is no key. Nothing here knows pygame: a keyboard, a gamepad, a script and a test all say names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldsim.errors import ConfigError
from worldsim.spaces import plain_action

ARROWS = ("left", "up", "right", "down")

ALIASES = {"w": "up", "a": "left", "s": "down", "d": "right"}
"""Letters that mean an arrow, in games that have no other use for these letters."""

PAIRS = (("left", "right"), ("down", "up"), ("1", "2"), ("3", "4"), ("5", "6"), ("7", "8"), ("9", "0"))
"""Keys that push a number down and up, for spaces that come without keys."""

SINGLES: tuple[str, ...] = ("up", "down", "left", "right", *"1234567890")
"""Keys that only switch something on, for spaces that come without keys."""

MOST_ENTRIES = 729  # combinations that are spelled out: six numbers with three choices each

_CODES = {
    **dict(enumerate(("right", "left", "down", "up"), 0x4000004F)),  # SDL 2
    **dict(enumerate(("left ctrl", "left shift", "left alt", "left meta", "right ctrl", "right shift"), 0x400000E0)),
    **dict(enumerate(("up", "down", "right", "left"), 273)),  # SDL 1: some Gymnasium games still say these
    9: "tab",
    13: "return",
    32: "space",
}


class KeyMap:
    """Combinations of keys and the action of each.

    Attributes:
        entries: set of key names -> action, an element of the space. The empty set is there.
        names: every key that does something: arrows, then others in order of appearance.
    """

    def __init__(self, entries: Mapping[frozenset[str], Any]) -> None:
        """Keep `entries`, which must have the empty set."""
        used = {name for combo in entries for name in combo}
        if used.isdisjoint(ARROWS):  # steered by letters: arrows shall do too
            entries = {frozenset(ALIASES.get(name, name) for name in combo): act for combo, act in entries.items()}
            used = set()
        self._aliases = {letter: arrow for letter, arrow in ALIASES.items() if letter not in used}
        self.entries = dict(entries)
        names = dict.fromkeys(name for combo in entries for name in sorted(combo))
        self.names = (*(name for name in ARROWS if name in names), *(name for name in names if name not in ARROWS))

    def knows(self, key: str) -> bool:
        """Say whether `key`, or the arrow that it stands for, is in the map."""
        return self._aliases.get(key, key) in self.names

    def choose(self, held: Iterable[str]) -> frozenset[str]:
        """Choose the largest combination of the pressed keys; of several, the one with the key that was pressed last.

        Args:
            held: names of keys in the order they were pressed; unknown ones are ignored.
        """
        order = {self._aliases.get(key, key): i for i, key in enumerate(held)}
        fitting = [combo for combo in self.entries if order.keys() >= combo]
        return max(fitting, key=lambda combo: (len(combo), sorted((order[key] for key in combo), reverse=True)))

    def action(self, held: Iterable[str]) -> Any:
        """Get the action of the pressed keys; without a known key, the action of no key."""
        return self.entries[self.choose(held)]

    def named(self) -> dict[str, Any]:
        """Write the map as plain data, as a world's card has it: {"": ..., "left+up": ...}."""
        return {"+".join(sorted(combo)): plain_action(action) for combo, action in self.entries.items()}


def keymap_for(env: gym.Env) -> KeyMap:
    """Get the keys of `env`: its own `get_keys_to_action`, or keys made for its action space.

    Raises:
        ConfigError: an action space that keys cannot be made for, or keys whose action is outside it.
    """
    own = None
    if env.has_wrapper_attr("get_keys_to_action"):
        own = env.get_wrapper_attr("get_keys_to_action")()
    return KeyMap(read_keys(own, env.action_space) if own else derive_keys(env.action_space))


def read_keys(keys: Mapping[Any, Any], space: spaces.Space) -> dict[frozenset[str], Any]:
    """Read keys in worldsim's form ("left+up") or in Gymnasium's (tuples or strings of characters, tuples of codes).

    Raises:
        ConfigError: an action outside `space`, or a key that is neither a name nor a code.
    """
    entries = {_combination(combo): _element(space, action) for combo, action in keys.items()}
    if frozenset() not in entries:
        entries[frozenset()] = rest_action(space)
    for combo, action in entries.items():
        if not space.contains(action):
            raise ConfigError(f"the keys {'+'.join(sorted(combo))!r} stand for {action!r}, which is not in {space}.")
    return entries


def _combination(combo: Any) -> frozenset[str]:
    if isinstance(combo, str):
        if "+" in combo[1:] or combo in SINGLES or combo in _CODES.values():
            return frozenset(combo.split("+"))
    elif isinstance(combo, int):
        combo = (combo,)
    if not isinstance(combo, Sequence):
        raise ConfigError(f"{combo!r} are no keys; allowed: 'left+up', a string of characters, or a tuple of codes.")
    return frozenset(_key_name(part) for part in combo if part is not None)  # a string has a character for each key


def _key_name(key: str | int) -> str:
    if isinstance(key, str):
        return "space" if key == " " else key.lower()
    if (code := int(key)) in _CODES:
        return _CODES[code]
    if not 32 < code < 127:
        raise ConfigError(f"{code} is no key that worldsim knows; use its name, such as 'left' or 'f1'.")
    return chr(code).lower()


def derive_keys(space: spaces.Space) -> dict[frozenset[str], Any]:
    """Make keys for a space that has none: digits and arrows for discrete actions, pairs of keys for numbers.

    Raises:
        ConfigError: a space of another kind than Discrete, MultiDiscrete, MultiBinary, Box and Dict of these.
    """
    rest = rest_action(space)
    if isinstance(space, spaces.Discrete):
        return _discrete_keys(space, rest)
    leaves = list(_leaves(space))
    parts = [[("", value)] for leaf in leaves for value in np.ravel(rest_action(leaf))]  # each number's keys and values
    choices, free = [found for leaf in leaves for found in _choices(leaf)], list(SINGLES)
    for i in sorted(range(len(parts)), key=lambda i: len(choices[i]) != 2):  # left and right go to what has both ways
        keys = _take(free, len(choices[i]))
        parts[i] += zip(keys, choices[i], strict=False)
        if math.prod(map(len, parts)) > MOST_ENTRIES:
            del parts[i][1:]  # this number and those after it stay at rest
            break
    made = {}
    for choice in product(*parts):
        made[frozenset(key for key, _ in choice if key)] = _joined(space, iter([value for _, value in choice]))
    return made


def _leaves(space: spaces.Space) -> Iterator[spaces.Space]:
    """List the spaces within Dict spaces, or the space itself."""
    if isinstance(space, spaces.Dict):
        for inner in space.spaces.values():
            yield from _leaves(inner)
    else:
        yield space


def _joined(space: spaces.Space, numbers: Iterator[Any]) -> Any:
    """Make an action of the numbers of its leaves."""
    if isinstance(space, spaces.Dict):
        return {key: _joined(inner, numbers) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(next(numbers))
    count = int(np.prod(space.shape or ()))
    return np.array([next(numbers) for _ in range(count)], space.dtype).reshape(space.shape or ())


def _choices(space: spaces.Space) -> list[list[float]]:
    """List what keys can set each number of `space` to, besides rest: the bounds of a Box, or one without bounds."""
    if isinstance(space, spaces.Box):
        low, high, rest = (np.ravel(array).astype(float) for array in (space.low, space.high, rest_action(space)))
        low, high = np.where(np.isfinite(low), low, rest - 1), np.where(np.isfinite(high), high, rest + 1)
        return [[end for end in (a, b) if end != c] for a, b, c in zip(low, high, rest, strict=True)]
    if isinstance(space, spaces.Discrete):
        rest = int(rest_action(space))
        return [[value for value in range(int(space.start), int(space.start + space.n)) if value != rest]]
    if isinstance(space, spaces.MultiDiscrete):
        starts, counts = np.ravel(space.start), np.ravel(space.nvec)
        return [list(range(start + 1, start + count)) for start, count in zip(starts, counts, strict=True)]
    return [[1] for _ in range(int(np.prod(space.shape or ())))]


def _take(free: list[str], count: int) -> list[str]:
    """Take `count` keys, or as many as there are, out of the `free` ones; two get a pair such as left and right."""
    pairs = [pair for pair in PAIRS if set(pair) <= set(free)] if count == 2 else []
    keys = list(pairs[0]) if pairs else free[:count]
    free[:] = [key for key in free if key not in keys]
    return keys


def _discrete_keys(space: spaces.Discrete, rest: Any) -> dict[frozenset[str], Any]:
    """Give the first ten actions digits, and arrows as Gymnasium's games have them."""
    arrows = {2: ("left", "right"), 3: ("left", "", "right")}.get(int(space.n), ("", "left", "up", "right", "down"))
    named = {key: i for i, key in enumerate(arrows[: int(space.n)])} | {
        str((i + 1) % 10): i for i in range(min(int(space.n), 10))
    }
    named.setdefault("", int(rest - space.start))
    return {frozenset({key} - {""}): space.start + i for key, i in named.items()}


def rest_action(space: spaces.Space) -> Any:
    """Get the action of no key: zero or the nearest value; of three discrete actions the middle one.

    Raises:
        ConfigError: a space of another kind than Discrete, MultiDiscrete, MultiBinary, Box and Dict of these.
    """
    if isinstance(space, spaces.Dict):
        return {key: rest_action(inner) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return space.start + (1 if space.n == 3 else 0)
    if isinstance(space, spaces.Box):
        return np.clip(np.zeros(space.shape, space.dtype), space.low, space.high)
    if isinstance(space, spaces.MultiDiscrete):
        return np.array(space.start, space.dtype)
    if isinstance(space, spaces.MultiBinary):
        return np.zeros(space.shape, space.dtype)
    raise ConfigError(
        f"there are no keys for the action space {space}; allowed: Discrete, MultiDiscrete, MultiBinary, Box, Dict. "
        "Give the environment a method get_keys_to_action, or wrap it to convert its actions."
    )


def _element(space: spaces.Space, action: Any) -> Any:
    """Convert `action`, which may come from JSON, to the type of `space`."""
    if isinstance(space, spaces.Dict) and isinstance(action, Mapping) and set(action) == set(space.spaces):
        return {key: _element(inner, action[key]) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Discrete):
        return space.dtype.type(action)
    return np.asarray(action, space.dtype) if isinstance(action, list | tuple | np.ndarray) else action
