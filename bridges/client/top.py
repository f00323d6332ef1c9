"""`worldsim top`: print a host's statistics every second."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldsim.bridges import protocol
from worldsim.bridges.client.connection import Connection, ConnectionConfig


@dataclass(frozen=True, kw_only=True)
class TopConfig:
    """What `worldsim top` does."""

    address: str = f"tcp://127.0.0.1:{protocol.PORT}"
    """Of the host."""
    every: float = 1.0
    """Seconds between two looks."""
    once: bool = False
    """Print one table and end."""
    key: Path | None = None
    """Secret CURVE key, for a host that has keys."""
    host_key: Path | None = None
    """The host's public CURVE key."""


def top(config: TopConfig) -> None:
    """Print the table until Ctrl-C.

    Raises:
        BridgeError: there is no host.
    """
    settings = ConnectionConfig(key=config.key, host_key=config.host_key, timeout=2, patience=10)
    connection = Connection(config.address, settings, "worldsim top")
    before: dict[str, Any] | None = None
    try:
        while True:
            stats = connection.call("stats").header["stats"]
            page = table(stats, before, config.address)
            if config.once or not sys.stdout.isatty():
                print(page, flush=True)
            else:
                print(f"\x1b[H\x1b[J{page}", end="", flush=True)
            if config.once:
                return
            before = stats
            time.sleep(config.every)
    finally:
        connection.close()


def table(stats: dict[str, Any], before: dict[str, Any] | None, address: str) -> str:
    """Format a host's statistics; rates are since the statistics `before`."""
    span = stats["uptime"] - before["uptime"] if before else stats["uptime"]
    old = before["requests"] if before else {}
    rates = {verb: (count - old.get(verb, 0)) / max(span, 1e-9) for verb, count in stats["requests"].items()}
    busy = ", ".join(
        f"{verb} {rate:.1f}/s" for verb, rate in sorted(rates.items(), key=lambda pair: -pair[1])[:6] if rate
    )
    step, wrong = stats["step_ms"], ", ".join(f"{code} {count}" for code, count in stats["errors"].items())
    lines = [
        f"{address}   up {_span(stats['uptime'])}   {stats['sessions']} sessions, {stats['clients']} clients",
        f"step p50 {step['p50']:.1f} ms, p95 {step['p95']:.1f}, p99 {step['p99']:.1f}   {busy}",
        f"refused: {wrong or 'nothing'}",
        "",
        f"{'world':16} {'runtime':9} {'sessions':>9} {'frames/s':>9} {'p50 ms':>7} {'memory MB':>10}",
    ]
    for name, world in stats["worlds"].items():
        lines.append(
            f"{name[:16]:16} {world['runtime'][:9]:9} {world['sessions']:4}/{world['capacity']:<4} "
            f"{world['frames_per_second']:9.1f} {world['step_ms']['p50']:7.1f} {world['memory_bytes'] / 1e6:10.1f}"
        )
    lines += ["", f"{'session':8} {'world':16} {'step':>8} {'clock':>6} {'watch':>5} {'lease':>6}  prompt"]
    for line in stats["lines"][:40]:
        clock = f"{line['fps']:.1f}" if line["fps"] else "-"
        lines.append(
            f"{line['session']:8} {line['world'][:16]:16} {line['step']:8} {clock:>6} {line['watchers']:5} "
            f"{line['lease']:6.0f}  {line['prompt']}"
        )
    if len(stats["lines"]) > 40:
        lines.append(f"... and {stats['sessions'] - 40} more")
    return "\n".join(lines) + "\n"


def _span(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
