"""Counts and latencies of a host: what the verb `stats` and the page for Prometheus say."""

from __future__ import annotations

import time
from typing import Any

from worldsim.bridges import protocol
from worldsim.bridges.host.hosted import Hosted
from worldsim.bridges.host.service import Service
from worldsim.engine.stats import percentiles_ms


def host_stats(service: Service, account: str | None = None) -> dict[str, Any]:
    """Collect counts, latencies and a line for each session; tokens are cut short, because they are secrets.

    Args:
        service: of the host.
        account: whose prompts are shown, see `accounts`; None shows all.
    """
    now = time.monotonic()
    lines = [
        _line(service, hosted, now, account in (None, hosted.account))
        for hosted in list(service.sessions.values())[: protocol.MAX_BATCH]
    ]
    return {
        "uptime": now - service.started,
        "sessions": len(service.sessions),
        "clients": len(set(map(id, service.peers.values()))),
        "requests": dict(service.counts),
        "errors": dict(service.errors),
        "step_ms": percentiles_ms(list(service.latencies)),
        "worlds": {name: served.engine.stats() for name, served in service.worlds.items()},
        "lines": [line for line in lines if line],
    }


def _line(service: Service, hosted: Hosted, now: float, shown: bool) -> dict[str, Any]:
    record = service.worlds[hosted.world].engine.sessions.get(hosted.number)
    if record is None:  # closed while another thread asks
        return {}
    return {
        "session": hosted.token[:6],
        "world": hosted.world,
        "step": record.step,
        "fps": hosted.fps,
        "prompt": record.prompt[:40] if shown else "",
        "watchers": len(hosted.watchers),
        "lease": round(hosted.lease_end - now, 1),
    }
