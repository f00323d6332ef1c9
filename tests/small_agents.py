"""Small agents: a game that is learned in seconds, and settings that learn nothing in no time."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldsim.agents.discrete import DiscreteActions, find_actions
from worldsim.agents.training import AgentConfig

SEED = 11


class Lamp(gym.Env):
    """A lamp is on the left or on the right; pointing at it earns 1. Ten steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (24, 24, 3), np.uint8)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._look(), {}

    def step(self, action):
        reward = float(action == self.side)
        self.steps += 1
        return self._look(), reward, self.steps == 10, False, {}

    def _look(self):
        self.side = int(self.np_random.integers(2))
        frame = np.zeros((24, 24, 3), np.uint8)
        frame[:, self.side * 12 : self.side * 12 + 12] = 255
        return frame

    def render(self):
        return np.zeros((24, 24, 3), np.uint8)


gym.register("WorldsimLamp-v0", entry_point=lambda **settings: Lamp(**settings))


def small(game="CartPole-v1", **changes) -> AgentConfig:
    settings: dict[str, Any] = {
        "num_envs": 2,
        "n_steps": 8,
        "batch_size": 8,
        "epochs": 1,
        "steps": 32,
        "max_episode_steps": 6,
    }
    return AgentConfig(game=game, **(settings | changes))


def actions_for(*args, **settings) -> DiscreteActions:
    found = find_actions(*args, **settings)
    assert found is not None
    return found
