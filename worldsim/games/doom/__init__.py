"""Doom: four ViZDoom scenarios with prompts, and with events that prompts can bring about."""

from __future__ import annotations

from worldsim.registry import GameEnv

ENVS = (
    GameEnv(  # the game of the shipped world; other arguments give the other scenarios
        name="RealDoom",
        entry_point="worldsim.games.doom.env:DoomGame",
        kwargs={"scenario": "health_gathering_supreme", "size": 64, "controls": "walk"},
    ),
    GameEnv(
        name="RealDoomTakeCover",
        entry_point="worldsim.games.doom.env:DoomGame",
        kwargs={"scenario": "take_cover", "size": 64, "controls": "strafe", "hurt": 1.0, "flashes": True},
    ),
)
