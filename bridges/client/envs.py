"""Gymnasium environments whose worlds a host serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gymnasium.vector import AutoresetMode

from worldsim.bridges.client.connection import ConnectionConfig
from worldsim.bridges.client.engine import LOCAL, RemoteEngine
from worldsim.envs.vector_env import WorldVectorEnv
from worldsim.envs.world_env import WorldEnv
from worldsim.errors import ConfigError


class RemoteEnv(WorldEnv):
    """A world that a host serves, as `worldsim/Remote-v0`: bit for bit the `WorldEnv` of the same world and seed.

    Args:
        address: of the host.
        world: which, where it serves several.
        render_mode: None, "rgb_array" or "human".
        prompt: of every `reset` whose options have none.
        engine: of another environment, to share its connection.
        settings: of the connection, see `ConnectionConfig`.

    Raises:
        BridgeError: there is no host.
        ConfigError: a setting that is not allowed.
    """

    def __init__(
        self,
        address: str = LOCAL,
        world: str | None = None,
        render_mode: str | None = None,
        prompt: str | None = None,
        engine: RemoteEngine | None = None,
        **settings: Any,
    ) -> None:
        """Connect, or share the `engine` of another environment."""
        own = engine is None
        super().__init__(
            render_mode=render_mode, prompt=prompt, engine=engine or RemoteEngine(address, world, _config(settings))
        )
        self._own_engine = own


class RemoteVectorEnv(WorldVectorEnv):
    """Vectorised `RemoteEnv`: one request a step, one pass at the host. See `WorldVectorEnv` for what is not here."""

    def __init__(
        self,
        num_envs: int = 1,
        address: str = LOCAL,
        world: str | None = None,
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        prompt: str | Sequence[str | None] | None = None,
        max_episode_steps: int | None = None,
        engine: RemoteEngine | None = None,
        **settings: Any,
    ) -> None:
        """Connect."""
        own = engine is None
        super().__init__(
            num_envs,
            render_mode=render_mode,
            autoreset_mode=autoreset_mode,
            prompt=prompt,
            max_episode_steps=max_episode_steps,
            engine=engine or RemoteEngine(address, world, _config(settings)),
        )
        self._own_engine = own


def _config(settings: Mapping[str, Any]) -> ConnectionConfig:
    paths = {name: Path(value) for name, value in settings.items() if name in ("key", "host_key") and value is not None}
    try:
        return ConnectionConfig(**{**settings, **paths})
    except TypeError as error:
        allowed = ", ".join(ConnectionConfig.__dataclass_fields__)
        raise ConfigError(f"unknown setting of the connection ({error}); allowed: {allowed}.") from error
