"""Named road and ground colours for a racing game.

A palette is a (road, ground) pair, written "road/ground" or by the name of a theme. Some pairs never occur in
training although each of their words does: they show whether a world understands the words or only the pairs.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from worldsim.errors import InputError, did_you_mean

Rgb = tuple[int, int, int]

ROADS: dict[str, Rgb] = {
    "grey": (102, 102, 102),
    "black": (28, 28, 32),
    "brick": (158, 70, 54),
    "dirt": (126, 88, 52),
    "white": (238, 238, 240),
    "blue": (52, 92, 210),
    "yellow": (230, 200, 44),
    "purple": (134, 62, 174),
}
"""Road colour by name. Channels stay below 250: the game adds up to 5 to unvisited tiles."""

GROUNDS: dict[str, tuple[Rgb, Rgb]] = {
    "grass": ((102, 204, 102), (102, 230, 102)),
    "snow": ((222, 230, 240), (244, 248, 252)),
    "sand": ((214, 186, 122), (228, 204, 144)),
    "night": ((14, 18, 48), (22, 28, 68)),
    "mars": ((172, 78, 46), (192, 94, 58)),
    "autumn": ((218, 128, 30), (234, 148, 48)),
    "sea": ((30, 112, 180), (44, 132, 204)),
    "ash": ((142, 142, 146), (158, 158, 162)),
    "blossom": ((242, 166, 194), (252, 186, 210)),
    "forest": ((22, 82, 40), (30, 100, 50)),
}
"""Ground colours by name: the plain ground, and the squares drawn on it."""


class Palette(NamedTuple):
    """A road and a ground, each by name."""

    road: str
    ground: str

    def __str__(self) -> str:
        """Write the palette as "road/ground"."""
        return f"{self.road}/{self.ground}"


CLASSIC = Palette("grey", "grass")
THEMES: dict[str, Palette] = {
    "classic": CLASSIC,
    "night": Palette("grey", "night"),
    "snow": Palette("black", "snow"),
    "desert": Palette("black", "sand"),
    "mars": Palette("black", "mars"),
    "autumn": Palette("grey", "autumn"),
    "forest": Palette("dirt", "forest"),
    "sea": Palette("white", "sea"),
    "volcano": Palette("black", "ash"),
    "spring": Palette("grey", "blossom"),
}

UNSEEN = (
    Palette("brick", "snow"),
    Palette("yellow", "night"),
    Palette("purple", "grass"),
    Palette("blue", "sand"),
    Palette("white", "mars"),
    Palette("dirt", "sea"),
    Palette("yellow", "forest"),
    Palette("blue", "blossom"),
)
"""Pairs that never occur in training."""

CLASSIC_SHARE, THEME_SHARE = 0.3, 0.3  # of the episodes; the others draw any pair
MIN_CONTRAST = 90.0  # Euclidean RGB distance below which a road is lost in its ground


def road_rgb(road: str) -> Rgb:
    """Get the colour of a road by name, 0..255. Raises InputError for an unknown one."""
    if road not in ROADS:
        raise InputError(f"No road is called {road!r}.{did_you_mean(road, ROADS)}")
    return ROADS[road]


def ground_rgb(ground: str) -> Rgb:
    """Get the main colour of a ground by name, 0..255. Raises InputError for an unknown one."""
    if ground not in GROUNDS:
        raise InputError(f"No ground is called {ground!r}.{did_you_mean(ground, GROUNDS)}")
    return GROUNDS[ground][0]


def parse_palette(name: str) -> Palette:
    """Get the palette called `name`: a theme or "road/ground". Raises InputError for an unknown one."""
    if name in THEMES:
        return THEMES[name]
    road, slash, ground = name.partition("/")
    if not slash:
        raise InputError(f"No theme is called {name!r}; write 'road/ground' for a pair.{did_you_mean(name, THEMES)}")
    road_rgb(road)  # these two raise for unknown names
    ground_rgb(ground)
    return Palette(road, ground)


def contrasts(palette: Palette) -> bool:
    """Say whether the road stands out from both colours of the ground."""
    road = np.array(ROADS[palette.road])
    return all(np.linalg.norm(road - np.array(shade)) >= MIN_CONTRAST for shade in GROUNDS[palette.ground])


PAIRS = tuple(p for road in ROADS for ground in GROUNDS if contrasts(p := Palette(road, ground)) and p not in UNSEEN)
"""Every pair that training may show."""


def sample_palette(rng: np.random.Generator, split: str, other_than: Palette | None = None) -> Palette:
    """Draw a palette of a split; "unseen" draws the held-out pairs, any other split the training pairs."""
    while True:
        share = rng.random()
        if split == "unseen":
            palette = UNSEEN[rng.integers(len(UNSEEN))]
        elif share < CLASSIC_SHARE:
            palette = CLASSIC
        elif share < CLASSIC_SHARE + THEME_SHARE:
            palette = list(THEMES.values())[rng.integers(1, len(THEMES))]  # the first is the classic one
        else:
            palette = PAIRS[rng.integers(len(PAIRS))]
        if palette != other_than:
            return palette
