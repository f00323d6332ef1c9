"""Gymnasium's CarRacing, with roads and grounds of named colours."""

from __future__ import annotations

from worldsim.registry import GameEnv

ENVS = (
    GameEnv(
        name="RealCarRacing",
        entry_point="worldsim.games.car_racing.env:CarRacingGame",
        kwargs={"max_steps": 250},
        untimed={"max_steps": None},
    ),
)
