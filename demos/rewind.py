"""The snapshots of the last seconds of a session, by which steps are taken back one by one."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from worldsim.errors import EngineFull

if TYPE_CHECKING:
    from worldsim.engine.session import Snapshot

SECONDS = 30.0  # that can be taken back
MOST = 600  # steps that are kept, however fast the world goes


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The state of one side before a step: the environment's snapshot and the side's own fields; see `Side`."""

    snapshot: Snapshot
    reward: float
    total: float
    terminated: bool
    truncated: bool
    prompt: str
    labels: dict[str, Any]


class Rewindable(Protocol):
    """An object whose steps can be taken back, such as a `Side`."""

    def moment(self) -> Moment:
        """Take the state of now. Raises EngineFull when there is no room for a snapshot."""
        ...

    def go_back(self, moment: Moment) -> None:
        """Go back to `moment`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Before:
    """A session before a step: a moment of each side, the prompt that was asked for, and how many steps were made."""

    moments: Sequence[Moment]
    prompt: str | None
    steps: int

    def close(self) -> None:
        """Free the memory of the snapshots."""
        for moment in self.moments:
            moment.snapshot.close()


class Past:
    """The states before each of the last steps.

    Snapshots share memory with the session, one frame of it per step. Where the environment has no room for one more,
    the oldest are forgotten.

    Args:
        sides: of the session; all must have snapshots for anything to be kept.
        fps: steps per second.
    """

    def __init__(self, sides: Sequence[Rewindable], fps: float) -> None:
        """Begin with nothing."""
        self.sides, self.most = sides, min(round(SECONDS * fps), MOST)
        self._kept: deque[Before] = deque()

    def __len__(self) -> int:
        """Count the steps that can be taken back."""
        return len(self._kept)

    def keep(self, prompt: str | None, steps: int) -> None:
        """Store the sides as they are, before a step changes them."""
        while (moments := self._moments()) is None:
            if not self._kept:
                return  # not even one fits: this step cannot be taken back, nor any before it
            self._kept.popleft().close()
        self._kept.append(Before(moments=moments, prompt=prompt, steps=steps))
        if len(self._kept) > self.most:
            self._kept.popleft().close()

    def go_back(self) -> Before | None:
        """Take the last step of all sides back; return None if none is stored."""
        if not self._kept:
            return None
        before = self._kept.pop()
        for side, moment in zip(self.sides, before.moments, strict=True):
            side.go_back(moment)
        before.close()
        return before

    def clear(self) -> None:
        """Forget all."""
        while self._kept:
            self._kept.pop().close()

    def _moments(self) -> list[Moment] | None:
        """Take a moment of every side, or of none."""
        moments: list[Moment] = []
        try:
            for side in self.sides:
                moments.append(side.moment())
        except EngineFull:
            Before(moments=moments, prompt=None, steps=0).close()
            return None
        return moments
