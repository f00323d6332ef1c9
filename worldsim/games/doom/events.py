"""What can happen in the middle of an episode of Doom: things that appear, lights and fog, made by console commands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from worldsim.errors import ConfigError

TELL = 12  # steps, about a second: so long the words of an event are in force
STATES = 1.5  # lights and fog are drawn more often than things, as most of the time they are in force already


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happens at once: a thing appears ahead, or the light or the fog changes until further notice."""

    words: tuple[str, ...]  # wordings for the moment it happens
    commands: tuple[str, ...]  # to the game's console
    thing: str = ""  # the kind of thing that appears
    slot: str = ""  # "light" or "fog": the lasting state that changes
    value: str = ""  # what it changes to
    lasting: tuple[str, ...] = ()  # wordings for as long as the state lasts


def _appears(thing: str, name: str, *nouns: str, monster: bool = True) -> Event:
    words = tuple(
        wording.format(noun)
        for noun in nouns
        for wording in ("{} appears ahead", "{} appears", "{} appears in front", "suddenly {} ahead")
    )
    # with new strength the player lives to see more than one monster
    return Event(words=words, commands=(*(("give health",) if monster else ()), f"summon {name}"), thing=thing)


def _light(value: str, color: str, words: tuple[str, ...], lasting: tuple[str, ...] = ()) -> Event:
    return Event(words=words, commands=(f'testcolor "{color}"',), slot="light", value=value, lasting=lasting)


def _fog(value: str, color: str, words: tuple[str, ...], lasting: tuple[str, ...] = ()) -> Event:
    # with the usual visibility the fog would begin far away, where a small room has ended
    commands = (f'testfade "{color}"', f"r_visibility {CLEAR if value == 'none' else 0.3}")
    return Event(words=words, commands=commands, slot="fog", value=value, lasting=lasting)


CLEAR = 8  # the game's usual visibility

EVENTS: Mapping[str, Event] = {
    "imp": _appears("imp", "DoomImp", "an imp", "a brown imp"),
    "demon": _appears("demon", "Demon", "a pink demon", "a demon"),
    "cacodemon": _appears("cacodemon", "Cacodemon", "a cacodemon", "a flying cacodemon"),
    "baron": _appears("baron", "BaronOfHell", "a baron of hell", "a baron in green armour"),
    "zombie": _appears("zombie", "ZombieMan", "a zombie", "a zombie with a gun"),
    "armor": _appears("armor", "GreenArmor", "a green armor", "green armor", monster=False),
    "skull": _appears("skull", "Soulsphere", "a golden skull", "a yellow skull", monster=False),
    "barrel": _appears("barrel", "ExplosiveBarrel", "a barrel", "a metal barrel", monster=False),
    "lights out": _light(
        "dark",
        "50 50 5c",
        ("the lights go out", "it gets dark", "the light goes out", "darkness falls"),
        ("in the dark", "in darkness", "the lights are out"),
    ),
    "red light": _light(
        "red",
        "ff 30 30",
        ("the light turns red", "red light comes on", "everything turns red", "a red alarm light comes on"),
        ("in red light", "under red light", "lit in red"),
    ),
    "lights on": _light("normal", "ff ff ff", ("the lights come back", "the light is normal again", "it gets bright")),
    "grey fog": _fog(
        "grey",
        "d0 d0 d0",
        ("thick fog rolls in", "grey fog rolls in", "fog comes up", "everything fades into grey fog"),
        ("in grey fog", "in thick fog", "grey fog everywhere"),
    ),
    "red fog": _fog(
        "red",
        "ff 00 00",
        ("red fog rolls in", "a red mist comes up", "red fog comes up"),
        ("in red fog", "in a red mist", "red fog everywhere"),
    ),
    "green fog": _fog(
        "green",
        "00 c0 00",
        ("green fog rolls in", "a green mist comes up", "green fog comes up"),
        ("in green fog", "in a green mist", "green fog everywhere"),
    ),
    "fog lifts": _fog("none", "00 00 00", ("the fog lifts", "the fog is gone", "the air clears")),
}
ENDS: Mapping[str, str] = {"light": "lights on", "fog": "fog lifts"}
"""The event that ends the state of a slot."""

RESET = ('testcolor "00 00 00"', f"r_visibility {CLEAR}")
"""Before a new episode, which forgets the colour: so that the game draws all of them by the tables it works out for
colours, which differ a little from those it begins with."""

HELD_OUT_PAIRS: frozenset[tuple[str, str]] = frozenset(
    {
        ("health_gathering_supreme", "red fog"),
        ("health_gathering_supreme", "baron"),
        ("take_cover", "lights out"),
        ("take_cover", "skull"),
        ("my_way_home", "imp"),
        ("my_way_home", "red light"),
        ("defend_the_center", "cacodemon"),
        ("defend_the_center", "green fog"),
    }
)
"""(scenario, event) that only the split "unseen" shows."""


def plan_events(scenario: str, split: str, steps: int, rng: np.random.Generator) -> list[tuple[int, str]]:
    """Draw the events of an episode: (step, name), in order; each takes place then or as soon as it can.

    A light or a fog ends before another one comes. The split "unseen" has the held-out events of the scenario only.
    """
    held = {name for place, name in HELD_OUT_PAIRS if place == scenario}
    names = [name for name in EVENTS if name not in ENDS.values() and (name in held) == (split == "unseen")]
    often = np.array([STATES if EVENTS[name].slot else 1.0 for name in names])
    free = dict.fromkeys(ENDS, 0)  # slot -> the step from which it is free
    plan: list[tuple[int, str]] = []
    step = int(rng.integers(4, 30))
    while step < steps:
        weights = often * [free.get(EVENTS[name].slot, 0) <= step for name in names]
        if weights.any():
            name = str(rng.choice(names, p=weights / weights.sum()))
            plan.append((step, name))
            if slot := EVENTS[name].slot:
                end = step + int(rng.integers(25, 60))
                plan.append((end, ENDS[slot]))
                free[slot] = end + TELL
        step += int(rng.integers(12, 32))
    return sorted(plan)


def check_event(name: str) -> str:
    """Check an event's name. Raises ConfigError for one that there is not."""
    if name not in EVENTS:
        raise ConfigError(f"Doom has no event {name!r}; allowed: {', '.join(EVENTS)}.")
    return name
