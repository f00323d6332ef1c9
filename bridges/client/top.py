"""`worldsim top`: show a host's statistics every second."""

from __future__ import annotations

import contextlib
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldsim.bridges import protocol
from worldsim.bridges.client.connection import Connection, ConnectionConfig
from worldsim.errors import MissingDependency

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

WIDTH = 140  # columns where the output is no terminal
MOST_LINES = 40  # sessions that are shown


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
    """Show the tables until Ctrl-C.

    Raises:
        BridgeError: there is no host.
        MissingDependency: rich is not installed.
    """
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError as error:
        raise MissingDependency("rich", "worldsim top", "pip install 'worldsim-engine[serve]'") from error

    settings = ConnectionConfig(key=config.key, host_key=config.host_key, timeout=2, patience=10)
    connection = Connection(config.address, settings, "worldsim top")
    console = Console(width=None if sys.stdout.isatty() else WIDTH, highlight=False)
    try:
        before, stats = None, connection.call("stats").header["stats"]
        lasting = console.is_terminal and not config.once
        with Live(console=console, screen=True) if lasting else contextlib.nullcontext() as live:
            while True:
                show = console.print if live is None else live.update
                show(page(stats, before, config.address))
                if config.once:
                    return
                time.sleep(config.every)
                before, stats = stats, connection.call("stats").header["stats"]
    finally:
        connection.close()


def page(stats: dict[str, Any], before: dict[str, Any] | None, address: str) -> RenderableType:
    """Make tables of a host's statistics; rates are since the statistics `before`.

    Names and prompts come from strangers: they are `Text`, in which markup has no meaning, without control codes.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    span = stats["uptime"] - before["uptime"] if before else stats["uptime"]
    old = before["requests"] if before else {}
    rates = {verb: (count - old.get(verb, 0)) / max(span, 1e-9) for verb, count in stats["requests"].items()}
    fastest = sorted(rates.items(), key=lambda pair: -pair[1])[:6]
    busy = ", ".join(f"{verb} {rate:.1f}/s" for verb, rate in fastest if rate)
    step, wrong = stats["step_ms"], ", ".join(f"{code} {count}" for code, count in stats["errors"].items())
    summary = (
        f"{address}   up {_span(stats['uptime'])}   {stats['sessions']} sessions, {stats['clients']} clients\n"
        f"step p50 {step['p50']:.1f} ms, p95 {step['p95']:.1f}, p99 {step['p99']:.1f}   {busy}\n"
        f"refused: {wrong or 'nothing'}\n"
    )
    worlds = Table("world", "runtime", *_right("sessions", "frames/s", "p50 ms", "memory MB"), box=None)
    for name, world in stats["worlds"].items():
        worlds.add_row(
            _text(name), _text(world["runtime"]), f"{world['sessions']}/{world['capacity']}",
            f"{world['frames_per_second']:.1f}", f"{world['step_ms']['p50']:.1f}",
            f"{world['memory_bytes'] / 1e6:.1f}",
        )  # fmt: skip
    sessions = Table("session", "world", *_right("step", "clock", "watch", "lease"), "prompt", box=None)
    for line in stats["lines"][:MOST_LINES]:
        clock = f"{line['fps']:.1f}" if line["fps"] else "-"
        sessions.add_row(
            _text(line["session"]), _text(line["world"]), str(line["step"]), clock, str(line["watchers"]),
            f"{line['lease']:.0f}", _text(line["prompt"]),
        )  # fmt: skip
    more = stats["sessions"] - len(stats["lines"][:MOST_LINES])
    return Group(
        *map(_text, summary.splitlines()),
        Text(),
        worlds,
        Text(),
        sessions,
        *([Text(f"... and {more} more")] if more > 0 else []),
    )


def _text(words: str) -> Text:
    from rich.text import Text

    return Text("".join(c if c.isprintable() else "?" for c in words), no_wrap=True, overflow="ellipsis")


def _right(*names: str) -> list[Any]:
    from rich.table import Column

    return [Column(name, justify="right") for name in names]


def _span(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
