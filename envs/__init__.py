"""Gymnasium environments: generated worlds, and the real games they were recorded from.

Importing this module registers the ids; `gym.make("worldsim.envs:worldsim/CarRacing-v0")` does it by itself.
"""

from __future__ import annotations

import gymnasium as gym

from worldsim.envs.shipped import SHIPPED, env_id
from worldsim.envs.world_env import WorldEnv
from worldsim.registry import game_envs

__all__ = ["SHIPPED", "WorldEnv"]

for name in (None, *SHIPPED):
    gym.register(
        "worldsim/World-v0" if name is None else env_id(name),
        entry_point="worldsim.envs.world_env:WorldEnv",
        vector_entry_point="worldsim.envs.vector_env:WorldVectorEnv",
        kwargs={} if name is None else {"world": name},
    )
for env in game_envs():
    gym.register(f"worldsim/{env.name}-v0", entry_point=env.entry_point, kwargs=dict(env.kwargs))
gym.register(
    "worldsim/Remote-v0",
    entry_point="worldsim.bridges.client:RemoteEnv",
    vector_entry_point="worldsim.bridges.client:RemoteVectorEnv",
)
