"""The worlds that come with worldsim; the one list of them."""

from __future__ import annotations

from pathlib import Path

WORLDS = Path(__file__).resolve().parent / "worlds"
SHIPPED = ("car-racing", "car-racing-wild", "doom")


def world_path(name: str | Path) -> str | Path:
    """Find the folder of a shipped world; any other name stays as it is."""
    return WORLDS / name if name in SHIPPED else name


def env_id(name: str) -> str:
    """Give the Gymnasium id of a shipped world, such as worldsim/CarRacing-v0 of "car-racing"."""
    return f"worldsim/{name.title().replace('-', '')}-v0"
