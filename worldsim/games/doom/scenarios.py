"""The Doom scenarios: what keys do in them, what they are called, and the things that can be seen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from worldsim.errors import ConfigError, did_you_mean

Buttons = Mapping[str, tuple[str, ...]]  # keys held -> game buttons, in the order of the action space

WALK: Buttons = {
    "": (),
    "up": ("MOVE_FORWARD",),
    "left": ("TURN_LEFT",),
    "right": ("TURN_RIGHT",),
    "left+up": ("TURN_LEFT", "MOVE_FORWARD"),
    "right+up": ("TURN_RIGHT", "MOVE_FORWARD"),
}
TURRET: Buttons = {
    "": (),
    "left": ("TURN_LEFT",),
    "right": ("TURN_RIGHT",),
    "space": ("ATTACK",),
    "left+space": ("TURN_LEFT", "ATTACK"),
    "right+space": ("TURN_RIGHT", "ATTACK"),
}
CONTROLS: Mapping[str, Buttons] = {
    "all": {**WALK, "a": ("MOVE_LEFT",), "d": ("MOVE_RIGHT",), **TURRET},
    "walk": WALK,
    "strafe": {"": (), "left": ("MOVE_LEFT",), "right": ("MOVE_RIGHT",)},
    "turret": TURRET,
}
"""Sets of controls. "all" suits every scenario, so that one world can have them all."""


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A ViZDoom scenario: how often it is recorded, how it is played, and the words for its scenery."""

    share: float  # of the episodes of a recording of all scenarios; those where one dies soon are more
    style: Literal["walk", "dodge", "aim"]  # how the policy plays it
    controls: str  # the set of controls that is its own
    timeout: int  # game tics
    hurt: float = 0.0  # reward that a lost point of health costs, with its own controls
    skill: int | None = None  # of the monsters, with all controls: 1 to 5; None: the scenario's own
    places: tuple[str, ...]  # wordings for the scenery
    kinds: frozenset[str]  # of things that are there without any event


SCENARIOS: Mapping[str, Scenario] = {
    "health_gathering_supreme": Scenario(
        share=0.2,
        style="walk",
        controls="walk",
        timeout=2100,
        skill=1,
        places=(
            "a grey stone maze over green acid",
            "a maze with a green acid floor",
            "grey stone walls and green acid",
            "grey walls over an acid floor",
            "the acid maze of Doom",
        ),
        kinds=frozenset({"medkit", "poison"}),
    ),
    "take_cover": Scenario(
        share=0.36,
        style="dodge",
        controls="strafe",
        timeout=2100,
        hurt=1.0,  # alone, a tic lived for each tic says nothing of the eight hits that end it
        places=(
            "a long grey hall",
            "a hall with a brick wall",
            "a wide grey room with bricks",
            "a firing range in Doom",
        ),
        kinds=frozenset({"imp", "fireball"}),
    ),
    "my_way_home": Scenario(
        share=0.22,
        style="walk",
        controls="walk",
        timeout=2100,
        skill=1,
        places=(
            "a maze of rooms",  # each room has walls of its own, so no colour is named
            "rooms and corridors",
            "a walk through many rooms",
            "a maze of rooms in Doom",
        ),
        kinds=frozenset({"armor"}),
    ),
    "defend_the_center": Scenario(
        share=0.22,
        style="aim",
        controls="turret",
        timeout=2100,
        places=(
            "a round brown arena",
            "a round arena of brown stone",
            "the middle of a round hall",
            "a circular arena in Doom",
        ),
        kinds=frozenset({"marine", "demon"}),
    ),
}
KINDS: Mapping[str, str] = {  # the game's object name -> kind
    "CustomMedikit": "medkit",
    "Medikit": "medkit",
    "Poison": "poison",
    "GreenArmor": "armor",
    "DoomImp": "imp",
    "DoomImpBall": "fireball",
    "CacodemonBall": "fireball",
    "BaronBall": "fireball",
    "MarineChainsawVzd": "marine",
    "Demon": "demon",
    "Cacodemon": "cacodemon",
    "BaronOfHell": "baron",
    "Zombieman": "zombie",
    "Soulsphere": "skull",
    "ExplosiveBarrel": "barrel",
}
NOUNS: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # kind -> wordings for one, wordings for several
    "medkit": (("a medkit", "a health kit", "a white medkit"), ("medkits", "health kits", "some medkits")),
    "poison": (("a poison vial", "a vial of poison", "poison"), ("poison vials", "vials of poison")),
    "armor": (("a green armor", "green armor"), ("green armors",)),
    "imp": (("an imp", "a brown imp"), ("imps", "several imps")),
    "fireball": (("a fireball", "a ball of fire"), ("fireballs", "balls of fire")),
    "marine": (("a marine", "a soldier"), ("marines", "soldiers")),
    "demon": (("a pink demon", "a demon"), ("demons", "pink demons")),
    "cacodemon": (("a cacodemon", "a flying cacodemon"), ("cacodemons", "several cacodemons")),
    "baron": (("a baron of hell", "a baron in green armour"), ("barons of hell", "barons")),
    "zombie": (("a zombie", "a zombie with a gun"), ("zombies", "several zombies")),
    "skull": (("a golden skull", "a yellow skull"), ("golden skulls", "yellow skulls")),
    "barrel": (("a barrel", "a metal barrel"), ("barrels", "metal barrels")),
}


def check_scenario(name: str) -> str:
    """Check a scenario's name. Raises ConfigError for one that there is not."""
    if name not in SCENARIOS:
        raise ConfigError(f"Doom has no scenario {name!r} here.{did_you_mean(name, SCENARIOS)}")
    return name
