"""The events of a game that its prompts cause; `events` measures whether a world shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol


class Event(Protocol):
    """An event that a prompt causes at once: an object appears, or a lasting state changes."""

    @property
    def words(self) -> Sequence[str]:
        """Wordings for the moment it happens."""
        ...

    @property
    def thing(self) -> str:
        """The label of the thing that appears, or ""."""
        ...

    @property
    def slot(self) -> str:
        """The label of the state that changes, or ""."""
        ...

    @property
    def value(self) -> str:
        """What the state changes to."""
        ...

    @property
    def lasting(self) -> Sequence[str]:
        """Wordings for as long as the state lasts."""
        ...


@dataclass(frozen=True, kw_only=True)
class EventBook:
    """The events of a game, whose recordings are labelled with "scenario", "event" and what the events change."""

    events: Mapping[str, Event]  # by name
    places: Mapping[str, Sequence[str]]  # scenario -> wordings for its scenery
    held_out: frozenset[tuple[str, str]]  # (scenario, event) that training never shows
    frames: int  # that the words of an event are in force
    blocked: str  # the label that says there is no room for a thing ahead

    def labels(self) -> set[str]:
        """The labels that a recording must have to be measured; things that appear may be missing."""
        return {"scenario", "event", self.blocked, *(event.slot for event in self.events.values() if event.slot)}
