"""CURVE keys, by which a host and its clients over a network know each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.auth

from worldsim.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class KeysConfig:
    """What `worldsim keys` does."""

    name: str
    """Of the host or the client, for the file names."""
    folder: Path = Path("keys")
    """Where they are written. A host admits the clients whose public keys lie beside its own, see --allow."""


def make_keys(config: KeysConfig) -> tuple[Path, Path]:
    """Make a pair of keys: NAME.key, which is public, and NAME.key_secret, which stays on its machine.

    Raises:
        ConfigError: the name is no file name, there is such a pair, or libzmq has no CURVE.
    """
    if not config.name or Path(config.name).name != config.name or config.name.startswith("."):
        raise ConfigError(f"name is {config.name!r}; allowed: a file name, such as 'host' or 'alice'.")
    public, secret = (config.folder / f"{config.name}.{ending}" for ending in ("key", "key_secret"))
    if public.exists() or secret.exists():
        raise ConfigError(f"{public} is there already; remove it first, or take another name.")
    if not zmq.has("curve"):
        raise ConfigError("this libzmq was built without CURVE; install pyzmq's wheel: pip install pyzmq.")
    config.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    zmq.auth.create_certificates(config.folder, config.name)
    secret.chmod(0o600)
    return public, secret
