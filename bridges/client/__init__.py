"""Step worlds that a host serves: an engine, environments, and the connection below them.

Needs numpy, pyzmq and gymnasium; no torch. The names load when first used, so that a program that needs only the
connection does not load environments.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldsim.bridges.client.connection import Connection, ConnectionConfig
    from worldsim.bridges.client.engine import LOCAL, RemoteEngine, RemoteSession, RemoteSnapshot, RemoteWorld
    from worldsim.bridges.client.envs import RemoteEnv, RemoteVectorEnv

_HOME = {
    "LOCAL": "engine",
    "Connection": "connection",
    "ConnectionConfig": "connection",
    "RemoteEngine": "engine",
    "RemoteEnv": "envs",
    "RemoteSession": "engine",
    "RemoteSnapshot": "engine",
    "RemoteVectorEnv": "envs",
    "RemoteWorld": "engine",
}

__all__ = [
    "LOCAL",
    "Connection",
    "ConnectionConfig",
    "RemoteEngine",
    "RemoteEnv",
    "RemoteSession",
    "RemoteSnapshot",
    "RemoteVectorEnv",
    "RemoteWorld",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
