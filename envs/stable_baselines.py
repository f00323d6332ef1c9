"""The vector environment of Stable-Baselines3, whose interface is not Gymnasium's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvIndices, VecEnvObs, VecEnvStepReturn

from worldsim.envs.vector_env import WorldVectorEnv
from worldsim.errors import ConfigError


class SB3VecEnv(VecEnv):
    """A `WorldVectorEnv` with the interface of Stable-Baselines3.

    Example: `PPO("CnnPolicy", SB3VecEnv(gym.make_vec("worldsim/CarRacing-v0", 8, autoreset_mode="SameStep")))`

    Args:
        env: with autoreset in the same step, which is what Stable-Baselines3 expects.

    Raises:
        ConfigError: another autoreset mode.
    """

    def __init__(self, env: Any) -> None:
        """Take over `env`."""
        found = env.unwrapped
        if not isinstance(found, WorldVectorEnv) or found.autoreset_mode != AutoresetMode.SAME_STEP:
            raise ConfigError("SB3VecEnv takes a WorldVectorEnv with autoreset_mode='SameStep'.")
        self.env: WorldVectorEnv = found
        self.render_mode = found.render_mode
        super().__init__(found.num_envs, found.single_observation_space, found.single_action_space)
        self._actions = np.empty(0)

    def reset(self) -> VecEnvObs:
        """Begin all episodes, with the seeds that `seed` set."""
        seeds = self._seeds if any(seed is not None for seed in self._seeds) else None
        observations, _ = self.env.reset(seed=seeds, options=self._options[0] or None)
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [{} for _ in range(self.num_envs)]
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """Store the actions for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Draw the next frames."""
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        over = terminated | truncated
        each: list[dict[str, Any]] = [
            {"TimeLimit.truncated": bool(t and not e)} for t, e in zip(truncated, terminated, strict=True)
        ]
        for i in np.flatnonzero(over):
            each[i]["terminal_observation"] = infos["final_obs"][i]
        return observations, rewards.astype(np.float32), over, each

    def close(self) -> None:
        """End all episodes."""
        self.env.close()

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Get an attribute of the vector environment, once for each index."""
        return [getattr(self.env, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Set an attribute of the vector environment."""
        setattr(self.env, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Call a method of the vector environment for each index, which it gets as `index`."""
        return [getattr(self.env, method_name)(*args, index=i, **kwargs) for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Say that no environment is wrapped."""
        return [False for _ in self._get_indices(indices)]

    def get_images(self) -> Sequence[np.ndarray | None]:
        """Get the last frames."""
        return list(self.env.render() or [None] * self.num_envs)
