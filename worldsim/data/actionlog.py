"""Action logs: the keys or numbers at each frame of a video, as CSV or JSON lines, converted to actions.

A log has a row for each frame. Its columns determine the action space:

    action                  whole numbers, a choice among --num-actions (default: the largest, and 1): Discrete
    action_0, action_1 ...  numbers within --low and --high: Box
    keys                    names of the keys held, joined by "+", such as "left+space"; empty for none: MultiBinary
    left, space, w, ...     a column for each key, 0 or 1: MultiBinary
    mouse_x, mouse_dx ...   numbers of a mouse, within --low and --high: Box
    keys and numbers        both in one log: a Box of a 0 or 1 for each key, then the numbers

Commas, semicolons or tabs separate the columns of a CSV file. Other columns: `frame` (its number, checked), `time` and
`#...` (ignored), `reward`, `terminated`, `prompt`.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.errors import DataError, did_you_mean

KEYS = (
    "left", "right", "up", "down", "space", "return", "tab", "left shift", "right shift", "left ctrl", "right ctrl",
    "left alt", "right alt", *"abcdefghijklmnopqrstuvwxyz0123456789",
)  # fmt: skip
MOUSE = ("mouse_x", "mouse_y", "mouse_dx", "mouse_dy", "mouse_wheel")
SEPARATORS = (",", ";", "\t")
OTHERS = ("frame", "time", "reward", "terminated", "prompt")
MOST_COMBINATIONS = 512  # of keys, that a card lists
YES, NO = ("1", "true", "yes"), ("0", "false", "no", "")


@dataclass(frozen=True)
class ActionLog:
    """One log of N rows."""

    path: Path
    actions: dict[str, list[str]]  # the action columns
    rewards: np.ndarray  # float32 (N,)
    terminated: np.ndarray  # bool (N,)
    prompts: list[str]  # (N,)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.prompts)


def read_log(path: Path, prompt: str = "") -> ActionLog:
    """Read a .csv (with a row of names), .jsonl or .ndjson file.

    Args:
        path: of the log.
        prompt: the words of every frame, where the log has no column `prompt`.

    Raises:
        DataError: no such file, one that cannot be read, unknown or missing columns, or a value that is not allowed.
    """
    columns = _read(path)
    actions = {name: values for name, values in columns.items() if is_action(name)}
    for name in columns:
        if name not in actions and name not in OTHERS and not name.startswith("#"):
            hint = did_you_mean(name, [*OTHERS, "action", "keys", *KEYS[:13]])
            raise DataError(f"{path}: unknown column {name!r}.{hint} Also action_0, action_1 ..., letters and digits.")
    kinds = {"numbers" if is_number(name) else "keys" if name in KEYS else name for name in actions}
    if len(kinds) != 1 and kinds != {"keys", "numbers"}:
        found = ", ".join(actions) or "none"
        raise DataError(
            f"{path}: the action columns are {found}; allowed: one of `action`, `action_0` and so on, `keys`, or "
            "columns named by keys; keys and numbers may be together."
        )
    if not (rows := len(next(iter(actions.values())))):
        raise DataError(f"{path} has no rows.")
    frames = [_number(path, "frame", row, value) for row, value in enumerate(columns.get("frame", []))]
    for row, frame in enumerate(frames):
        if frame != frames[0] + row:
            raise DataError(
                f"{path}: row {row} is of frame {frame:g}, not {frames[0] + row:g}; every frame needs one row."
            )
    rewards = [_number(path, "reward", row, value) for row, value in enumerate(columns.get("reward", ["0"] * rows))]
    ends = [_flag(path, "terminated", row, value) for row, value in enumerate(columns.get("terminated", ["0"] * rows))]
    return ActionLog(
        path, actions, np.asarray(rewards, np.float32), np.asarray(ends, bool), columns.get("prompt", [prompt] * rows)
    )


def is_action(name: str) -> bool:
    """Say whether a column of this name is (a part of) the action."""
    return name in ("action", "keys", *KEYS) or is_number(name)


def is_number(name: str) -> bool:
    """Say whether a column of this name has numbers within a range."""
    return name in MOUSE or (name.startswith("action_") and name[7:].isdigit())


@dataclass(frozen=True)
class Actions:
    """The action space of several logs, the actions of each, and the keys of the actions."""

    space: spaces.Space
    of_log: list[np.ndarray]
    keys: dict[str, Any]


def read_actions(
    logs: Sequence[ActionLog], num_actions: int | None = None, low: float = -1.0, high: float = 1.0
) -> Actions:
    """Find one action space for all logs, and convert their rows to its actions.

    Raises:
        DataError: logs of different kinds, or a value outside the space.
    """
    found = [[name for name in log.actions if name == "action" or is_number(name)] for log in logs]
    names = [sorted(columns, key=_order) for columns in found]
    keyed = [any(name == "keys" or name in KEYS for name in log.actions) for log in logs]
    if all(keyed) and not any(names):
        return _keys(logs)
    if any(keyed) and not all(keyed):
        first, other = logs[0], logs[keyed.index(not keyed[0])]
        raise DataError(
            f"{other.path} has the action columns {sorted(other.actions)}, but {first.path} has "
            f"{sorted(first.actions)}."
        )
    for log, columns in zip(logs, names, strict=True):
        if columns != names[0]:
            raise DataError(f"{log.path} has the action columns {columns}, but {logs[0].path} has {names[0]}.")
    values = [np.stack([_numbers(log, name) for name in names[0]], axis=1) for log in logs]  # (N, columns) each
    if names[0] == ["action"]:
        choices = num_actions or 1 + int(max(part.max() for part in values))
        for log, part in zip(logs, values, strict=True):
            wrong = np.nonzero((part[:, 0] % 1 != 0) | (part[:, 0] < 0) | (part[:, 0] >= choices))[0]
            if len(wrong):
                row = int(wrong[0])
                raise DataError(
                    f"{log.path}: row {row} has the action {part[row, 0]:g}; allowed: whole numbers from 0 to "
                    f"{choices - 1}. More with --num-actions; numbers that are no choices go into action_0 and so on."
                )
        return Actions(spaces.Discrete(choices), [part[:, 0].astype(np.int64) for part in values], {})
    expected = [f"action_{i}" for i in range(sum(name not in MOUSE for name in names[0]))]
    if [name for name in names[0] if name not in MOUSE] != expected:
        raise DataError(f"{logs[0].path} has the action columns {names[0]}; they must be numbered from 0: {expected}.")
    for log, part in zip(logs, values, strict=True):
        wrong = np.argwhere((part < low) | (part > high))
        if len(wrong):
            row, column = wrong[0]
            raise DataError(
                f"{log.path}: row {row} has {names[0][column]} = {part[row, column]:g}; allowed: {low:g} to {high:g}. "
                "Give the range with --low and --high."
            )
    count = len(names[0])
    if not any(keyed):
        space = spaces.Box(np.float32(low), np.float32(high), (count,), np.float32)
        return Actions(space, [part.astype(np.float32) for part in values], {})
    held = _keys(logs)
    switches, rest = held.of_log[0].shape[1], [float(np.clip(0, low, high))] * count
    lows, highs = ([end] * switches + [bound] * count for end, bound in ((0.0, low), (1.0, high)))
    both = [np.concatenate(parts, axis=1).astype(np.float32) for parts in zip(held.of_log, values, strict=True)]
    space = spaces.Box(np.float32(lows), np.float32(highs), dtype=np.float32)
    return Actions(space, both, {combo: [*action, *rest] for combo, action in held.keys.items()})


def _keys(logs: Sequence[ActionLog]) -> Actions:
    held = [_held(log) for log in logs]
    used = {key for rows in held for row in rows for key in row}
    used |= {name for log in logs for name in log.actions if name in KEYS}
    if not used:
        raise DataError(
            f"no key is ever held in {', '.join(str(log.path) for log in logs)}; there is nothing to learn."
        )
    names = sorted(used, key=KEYS.index)
    combinations = [frozenset(), *(frozenset([key]) for key in names), *(row for rows in held for row in rows)]

    def action(row: frozenset[str]) -> list[int]:
        return [int(key in row) for key in names]

    keys = {"+".join(sorted(row)): action(row) for row in list(dict.fromkeys(combinations))[:MOST_COMBINATIONS]}
    arrays = [np.asarray([action(row) for row in rows], np.int8) for rows in held]
    return Actions(spaces.MultiBinary(len(names)), arrays, keys)


def _held(log: ActionLog) -> list[frozenset[str]]:
    """Read the keys held in each row."""
    if "keys" not in log.actions:
        columns = {key: values for key, values in log.actions.items() if key in KEYS}
        flags = {key: [_flag(log.path, key, row, v) for row, v in enumerate(vs)] for key, vs in columns.items()}
        return [frozenset(key for key in flags if flags[key][row]) for row in range(len(log))]
    rows = [frozenset(key.strip().lower() for key in text.split("+") if key.strip()) for text in log.actions["keys"]]
    for row, keys in enumerate(rows):
        for key in keys - set(KEYS):
            raise DataError(
                f"{log.path}: row {row} has the unknown key {key!r}.{did_you_mean(key, KEYS[:13])} Also a-z, 0-9."
            )
    return rows


def _read(path: Path) -> dict[str, list[str]]:
    """Read columns of text by name."""
    if path.suffix.lower() not in (".csv", ".jsonl", ".ndjson"):
        raise DataError(f"the action log {path} is neither .csv nor .jsonl.")
    try:
        if path.suffix.lower() == ".csv":
            with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin a file with a mark
                head = file.readline()
                file.seek(0)
                separator = max(SEPARATORS, key=head.count)
                names, *rows = [row for row in csv.reader(file, delimiter=separator) if row] or [[]]
        else:
            lines = [json.loads(line) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            if not all(isinstance(line, dict) for line in lines):
                raise DataError(f'{path}: every line must be an object, such as {{"action": 1}}.')
            names = list(lines[0]) if lines else []
            for number, line in enumerate(lines):
                if line.keys() != set(names):
                    raise DataError(f"{path}: line {number} has {sorted(line)}, but the first has {sorted(names)}.")
            rows = [[_text(line[name]) for name in names] for line in lines]
    except (OSError, UnicodeDecodeError, RecursionError, csv.Error, json.JSONDecodeError) as error:
        raise DataError(f"cannot read the action log {path}: {error}") from error
    names = [name.strip().lower() for name in names]
    if len(set(names)) != len(names):
        raise DataError(f"{path} has two columns of one name: {', '.join(names)}.")
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise DataError(f"{path}: row {number} has {len(row)} values for {len(names)} columns.")
    return {name: [row[i].strip() for row in rows] for i, name in enumerate(names)}


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else "" if value is None else str(value)


def _numbers(log: ActionLog, name: str) -> np.ndarray:
    return np.asarray([_number(log.path, name, row, value) for row, value in enumerate(log.actions[name])])


def _number(path: Path, name: str, row: int, text: str) -> float:
    try:
        number = float(text if "." in text else text.replace(",", "."))  # as spreadsheets of some countries write them
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{path}: row {row} has {name} = {text!r}; it must be a number.")
    return number


def _flag(path: Path, name: str, row: int, text: str) -> bool:
    if text.lower() not in (*YES, *NO):
        raise DataError(f"{path}: row {row} has {name} = {text!r}; allowed: 1 and 0, true and false, yes and no.")
    return text.lower() in YES


def _order(name: str) -> tuple[int, str]:
    if name == "action":
        return 0, ""
    return (int(name[7:]), "") if name not in MOUSE else (10**9 + MOUSE.index(name), "")
