"""Every exception that worldsim raises on purpose, as one tree.

WorldsimError
|- ConfigError          a setting that cannot work (ValueError)
|- DataError            a dataset or episode that cannot be read (ValueError)
|- WorldError           a world folder that cannot be loaded (ValueError)
|  |- WorldNotFound     nothing at that path or id
|  `- WorldFormatError  a card of another format version
|- InputError           what a caller passed in (ValueError)
|  |- ActionError       an action outside the world's action space
|  |- FrameError        a frame of the wrong size or dtype
|  |- PromptError       a prompt this world cannot take
|  `- SnapshotError     a snapshot that cannot be restored
|     |- SnapshotDamaged    its file is not whole
|     `- SnapshotMismatch   it belongs to another world, runtime or version, or was closed
|- SessionError         a call at the wrong time, such as a step before reset (RuntimeError)
|- EngineFull           no room for one more session or snapshot (RuntimeError)
|- RuntimeUnavailable   a runtime that this machine cannot build (RuntimeError)
|- BridgeError          a host that cannot be reached, or does not do what was asked (RuntimeError)
|  `- ProtocolError     a message that the protocol does not allow; it has a code
|- TrainingDiverged     the loss is not finite or has exploded (RuntimeError)
`- MissingDependency    an optional package is not installed (ImportError)

A message says what failed, the value got, the values allowed, and what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class WorldsimError(Exception):
    """Base of every error raised by worldsim."""


class ConfigError(WorldsimError, ValueError):
    """A setting that cannot work."""


class DataError(WorldsimError, ValueError):
    """A dataset or an episode cannot be read."""


class WorldError(WorldsimError, ValueError):
    """A world folder is damaged or incomplete."""


class WorldNotFound(WorldError):
    """There is no world at that path or id."""


class WorldFormatError(WorldError):
    """A world was saved with another format version."""


class InputError(WorldsimError, ValueError):
    """A caller passed something a world cannot take."""


class ActionError(InputError):
    """An action is outside the world's action space."""


class FrameError(InputError):
    """A frame has the wrong size or dtype."""


class PromptError(InputError):
    """A world cannot take this prompt."""


class SnapshotError(InputError):
    """A snapshot cannot be restored."""


class SnapshotDamaged(SnapshotError):
    """A snapshot's file is not whole."""


class SnapshotMismatch(SnapshotError):
    """A snapshot belongs to another world, runtime or version, or was closed."""


class SessionError(WorldsimError, RuntimeError):
    """A call came at the wrong time."""


class EngineFull(WorldsimError, RuntimeError):
    """There is no room for one more session or snapshot."""


class RuntimeUnavailable(WorldsimError, RuntimeError):
    """This machine cannot build a runtime."""


class BridgeError(WorldsimError, RuntimeError):
    """A host cannot be reached, or does not do what was asked."""


class ProtocolError(BridgeError):
    """A message that the protocol does not allow.

    Attributes:
        code: one of `bridges.protocol.ERRORS`.
        more: further fields of the error.
    """

    def __init__(self, code: str, message: str, more: dict[str, Any] | None = None) -> None:
        """Say what was wrong, with its `code`."""
        super().__init__(message)
        self.code, self.more = code, more or {}


class TrainingDiverged(WorldsimError, RuntimeError):
    """A training loss is not finite or has exploded."""


class MissingDependency(WorldsimError, ImportError):
    """An optional package is not installed."""

    def __init__(self, package: str, purpose: str, install: str) -> None:
        """Say which `package` is missing, for what `purpose`, and the command that installs it."""
        super().__init__(f"{purpose} needs the package {package!r}, which is not installed; run: {install}")
        self._made_of = package, purpose, install

    def __reduce__(self) -> tuple[type[MissingDependency], tuple[str, str, str]]:
        """Copy and pickle it by what it was made of."""
        return type(self), self._made_of


def printable(text: str, most: int = 300) -> str:
    """A stranger's text for a terminal or a log: what is no printable character is escaped, and what is long is cut."""
    shown = text if len(text) <= most else text[:most] + "..."
    return "".join(part if part.isprintable() else part.encode("unicode_escape").decode() for part in shown)


def check_ranges(owner: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Check that numbers of a config, or each of a tuple of them, are within their ranges, both ends included.

    Raises:
        ConfigError: names the first that is not, the value got and those allowed; nan is in no range.
    """
    for name, (low, high) in ranges.items():
        value = getattr(owner, name)
        for number in value if isinstance(value, tuple | list) else (value,):
            if number is not None and not low <= number <= high:
                raise ConfigError(f"{name} is {value!r:.100}; allowed: {low:g} to {high:g}.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The tail of an unknown-name message: the closest match if there is one, and all allowed names."""
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(known) or 'none'}."
