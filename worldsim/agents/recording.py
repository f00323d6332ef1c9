"""An agent as the policy of a recording, so that a world can be trained on the situations that its agent reaches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from worldsim.agents.agent import Agent, RandomVectorPolicy
from worldsim.data.frames import see_frame
from worldsim.data.policy import Policy
from worldsim.data.record import RecordConfig, recipe_for
from worldsim.errors import ConfigError

ACTION_REPEAT = 8  # steps that a random action is repeated for, at most


class AgentPolicy:
    """Plays by a saved agent that samples its actions; mixes in random ones, repeated for a few steps.

    Args:
        agent: its folder.
        base: makes the recipe's own policy, which still chooses how episodes begin.
        random: share of the steps with random actions.
    """

    def __init__(self, agent: Path, base: Callable[[], Policy], random: float = 0.1) -> None:
        """Load the agent."""
        torch.set_num_threads(1)
        self.agent = Agent.load(agent, greedy=False)
        self.base, self.random = base(), random
        self.wild = RandomVectorPolicy(self.agent.space, self.agent.actions, ACTION_REPEAT)

    def begin(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Start a new episode."""
        options = self.base.begin(rng, split)
        self.rng, self.left, self.begun = rng, 0, True
        self.agent.begin(1, int(rng.integers(2**31)))
        self.wild.begin(1, int(rng.integers(2**31)))
        return options

    def act(self, env: Any, observation: Any, info: dict[str, Any]) -> Any:
        """Choose the agent's action, or a random one."""
        frames = see_frame(env, observation, self.agent.card.frame_size)[None]
        own = self.agent.act(frames, np.array([self.begun]))[0]  # it looks even when it may not act
        # A random action lasts (1 + ACTION_REPEAT) / 2 steps on average; the chance to begin one makes up for that.
        mean = (1 + ACTION_REPEAT) / 2
        if self.left == 0 and self.rng.random() < self.random / (mean - (mean - 1) * self.random):
            self.left, self.wild_begun = int(self.rng.integers(1, ACTION_REPEAT + 1)), True
        self.begun = False
        if self.left == 0:
            return own
        self.left -= 1
        action = self.wild.act(frames, np.array([self.wild_begun]))[0]
        self.wild_begun = False
        return action


def policy_for(config: RecordConfig) -> Callable[[], Policy]:
    """Return the function that makes the agent that `config` names as its policy.

    Raises:
        DataError: there is no such agent.
        ConfigError: it plays another kind of game.
    """
    recipe = recipe_for(config)
    agent = Agent.load(config.policy)
    env = recipe.make_env()
    try:
        space = env.action_space
    finally:
        env.close()
    if space != agent.space:
        raise ConfigError(f"the agent {config.policy} acts in {agent.space}; {config.game} has {space}.")
    return partial(AgentPolicy, Path(config.policy), recipe.make_policy, config.random)
