"""Verbs of the bridge: serve, top, keys."""

from __future__ import annotations

from collections.abc import Sequence

from worldsim.commands.parsing import parse


def serve(args: Sequence[str]) -> None:
    """Host worlds for game engines, browsers and agents elsewhere.

    Example: worldsim serve --worlds car-racing doom --web
    Clients come by ZeroMQ (docs/protocol.md). --resume goes on with the sessions of a host that was stopped or killed.
    """
    from worldsim.bridges.host.serve import ServeConfig
    from worldsim.bridges.host.serve import serve as run

    run(parse(ServeConfig, "serve", args, serve.__doc__, flat=True))


def top(args: Sequence[str]) -> None:
    """Watch a host: its sessions, requests and latencies.

    Example: worldsim top --address tcp://127.0.0.1:5570
    """
    from worldsim.bridges.client.top import TopConfig
    from worldsim.bridges.client.top import top as run

    run(parse(TopConfig, "top", args, top.__doc__))


def keys(args: Sequence[str]) -> None:
    """Make a pair of keys for a host or a client, for connections over a network.

    Example: worldsim keys alice --folder keys
    """
    from worldsim.bridges.keys import KeysConfig
    from worldsim.bridges.keys import make_keys as run

    for path in run(parse(KeysConfig, "keys", args, keys.__doc__)):
        print(path)
