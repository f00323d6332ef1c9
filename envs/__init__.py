"""Gymnasium environments: generated worlds, and the real games they were recorded from.

Importing this module registers the ids; `gym.make("worldsim.envs:worldsim/CarRacing-v0")` does it by itself.
"""

from __future__ import annotations

import gymnasium as gym

from worldsim.envs.world_env import SHIPPED, WorldEnv

__all__ = ["SHIPPED", "WorldEnv"]

WORLDS = {"World": None, **{name.title().replace("-", ""): name for name in SHIPPED}}  # "CarRacing": "car-racing"
for name, world in WORLDS.items():
    gym.register(
        f"worldsim/{name}-v0",
        entry_point="worldsim.envs.world_env:WorldEnv",
        vector_entry_point="worldsim.envs.vector_env:WorldVectorEnv",
        kwargs={} if world is None else {"world": world},
    )
gym.register(
    "worldsim/RealCarRacing-v0",
    entry_point="worldsim.data.games.car_racing:CarRacingGame",
    kwargs={"max_steps": 250},
)
gym.register(
    "worldsim/RealDoom-v0",  # the game of the shipped world; other arguments give the other scenarios
    entry_point="worldsim.data.games.doom:DoomGame",
    kwargs={"scenario": "health_gathering_supreme", "size": 64, "controls": "walk"},
)
gym.register(
    "worldsim/RealDoomTakeCover-v0",
    entry_point="worldsim.data.games.doom:DoomGame",
    kwargs={"scenario": "take_cover", "size": 64, "controls": "strafe", "hurt": 1.0, "flashes": True},
)
gym.register(
    "worldsim/Remote-v0",
    entry_point="worldsim.bridges.client:RemoteEnv",
    vector_entry_point="worldsim.bridges.client:RemoteVectorEnv",
)
