"""What goes into an engine and comes out of it, as plain data; no torch, so that remote clients have it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True, kw_only=True)
class SessionSpec:
    """How a session begins; see `engine.Engine.open`."""

    seed: int = 0
    prompt: str | None = None
    start: int | Mapping[str, Any] | None = None
    guidance: float | None = None


@dataclass(frozen=True)
class StepResult:
    """One frame of a session.

    Attributes:
        frame: uint8 (H, W, 3); yours to keep and to change.
        reward: learned.
        ended: learned probability that the episode ended with this frame.
        step: how many frames the session has by now.
        terminated: whether it did: drawn with that probability, from the session's seed and step alone.
    """

    frame: np.ndarray
    reward: float
    ended: float
    step: int
    terminated: bool


class EngineLike(Protocol):
    """What an environment asks of an engine: `engine.Engine` in this process, `bridges.client.RemoteEngine` elsewhere.

    Attributes:
        world: with `card`, `action_space` and `starts`, the clips to begin from.
        sessions: the open ones by number, with `frame`, `prompt`, `step`.
    """

    @property
    def world(self) -> Any:
        """What is played."""
        ...

    @property
    def sessions(self) -> Mapping[int, Any]:
        """The open ones."""
        ...

    def open_all(self, specs: Sequence[SessionSpec]) -> list[int]:
        """Begin several sessions, all or none."""
        ...

    def close(self, session: int | None = None) -> None:
        """End a session, or all and the engine."""
        ...

    def step(self, actions: Mapping[int, Any]) -> dict[int, StepResult]:
        """Draw the next frame of some sessions."""
        ...

    def fork(self, session: int, seed: int | None = None) -> int:
        """Fork a session; the two share nothing that either changes."""
        ...

    def snapshot(self, session: int) -> Any:
        """A session as it is now."""
        ...

    def restore(self, snapshot: Any, session: int | None = None) -> int:
        """Go back to a snapshot, or open a session from it."""
        ...

    def set_prompt(self, session: int, prompt: str) -> None:
        """Condition the frames from now on on `prompt`."""
        ...
