"""`worldsim serve`: load worlds, and run a host with its log, metrics and page."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

from worldsim.bridges.host.metrics import serve_metrics
from worldsim.bridges.host.server import LOOPBACK, Host, HostConfig, check_bind, check_free
from worldsim.engine.engine import Engine
from worldsim.engine.make import EngineConfig, make_engine
from worldsim.engine.tuning import cache_folder
from worldsim.envs.shipped import world_path
from worldsim.errors import ConfigError, MissingDependency, WorldError, printable

log = logging.getLogger("worldsim.host")
LONGEST_LINE = 2000  # characters of a log for people
MOST_FILES = 65_536  # that the host asks the system for: each connection takes one


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What `worldsim serve` does."""

    worlds: list[str] = field(default_factory=lambda: ["car-racing"])
    """Shipped worlds, world folders or hub ids."""
    host: HostConfig = field(default_factory=HostConfig)
    checkpoint: bool = True
    """Whether live sessions are written to disk, for --resume (default folder: one a port, in the cache folder)."""
    threads: int | None = None
    """CPU cores of each world (default: all)."""
    memory_mb: int = 1024
    """Of each world, for sessions and snapshots."""
    max_sessions: int | None = None
    """Of each world, besides what memory allows."""
    runtime: str = "auto"
    """The runtime of the model; "auto" is the fastest that `worldsim tune` found."""
    isolated: bool = False
    """Draw every session by itself: slower, and the same bits by construction (docs/engine.md)."""
    web: bool = False
    """Whether to serve the page for browsers too."""
    web_port: int = 8570
    web_token: str | None = None
    """A password for the page; required on a public address."""
    metrics_port: int | None = None
    """A page for Prometheus, on this machine only."""
    log_format: str = "json"
    """json: one object a line; text: for people."""

    def __post_init__(self) -> None:
        """Check."""
        if self.log_format not in ("json", "text"):
            raise ConfigError(f"log_format is {self.log_format!r}; allowed: json, text.")
        if self.web and self.host.bind not in LOOPBACK and not self.web_token:
            raise ConfigError("a page that others can reach needs a password: --web-token WORDS.")


class JsonLines(logging.Formatter):
    """A log as JSON, one object a line: time, level, event, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "event": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


class TextLines(logging.Formatter):
    """The same for people; what strangers wrote into it is escaped, so that no terminal obeys it."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        fields = " ".join(f"{name}={value}" for name, value in getattr(record, "fields", {}).items())
        trace = self.formatException(record.exc_info).splitlines() if record.exc_info else []
        lines = [f"{time.strftime('%H:%M:%S')} {record.getMessage()} {fields}".rstrip(), *trace]
        return "\n".join(printable(line, LONGEST_LINE) for line in lines)


def serve(config: ServeConfig) -> None:
    """Load the worlds and serve them until Ctrl-C or SIGTERM.

    Raises:
        ConfigError, WorldError, RuntimeUnavailable: before anything is served.
        BridgeError: the address cannot be bound.
    """
    set_up_log(config.log_format)
    _allow_files()
    check_bind(replace(config.host, checkpoints=config.host.checkpoints or Path()))
    if config.web:
        import worldsim.bridges.web  # noqa: F401  -- raises before worlds are loaded if a package is missing
    check_free(config.host)
    engines = load(config)
    place = config.host
    if config.checkpoint and place.checkpoints is None:
        place = replace(place, checkpoints=cache_folder() / "hosts" / str(place.port))
    with Host(engines, place) as host:
        host.stop_on_signals()
        stop_metrics = serve_metrics(host.service, config.metrics_port) if config.metrics_port is not None else None
        page = _start_page(config, host) if config.web else None
        fields = {"address": host.address, "worlds": list(engines), "checkpoints": str(place.checkpoints)}
        log.info("serving", extra={"fields": fields})
        try:
            host.run()
        finally:
            if page is not None and page.stdin is not None:
                page.stdin.close()
                page.wait(10)
            if stop_metrics is not None:
                stop_metrics()
        resume = " --resume goes on with them" if place.checkpoints else ""
        log.info(f"stopped;{resume}", extra={"fields": {"sessions": len(host.service.sessions)}})
    for engine in engines.values():
        engine.close()


def load(config: ServeConfig) -> dict[str, Engine]:
    """An engine for each world, by its name.

    Raises:
        ConfigError: two worlds of one name.
    """
    engines: dict[str, Engine] = {}
    settings = EngineConfig(
        memory_mb=config.memory_mb,
        max_sessions=config.max_sessions,
        threads=config.threads,
        runtime=config.runtime,
        isolated=config.isolated,
    )
    for name_or_path in config.worlds:
        log.info("loading", extra={"fields": {"world": name_or_path}})  # takes a while, and nobody should wonder
        engine = make_engine(world_path(name_or_path), settings)
        name = engine.world.card.name
        if name in engines:
            raise ConfigError(f"two worlds are called {name!r}; serve one of them on another port.")
        try:
            engine.world.book.load_encoder()
        except (MissingDependency, WorldError) as error:
            log.warning("new prompts are refused", extra={"fields": {"world": name, "error": str(error)}})
        sizes = list(engine.sizes["denoise"])  # measured now: it takes seconds, and no client should wait
        log.info("loaded", extra={"fields": {"world": name, "runtime": engine.runtime.name, "batches": sizes}})
        engines[name] = engine
    return engines


def set_up_log(log_format: str) -> None:
    """Log to stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    root = logging.getLogger("worldsim")
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)


def _allow_files() -> None:
    """Raise the limit of open files as far as this process may."""
    try:
        import resource
    except ImportError:
        return  # not on this system
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _start_page(config: ServeConfig, host: Host) -> subprocess.Popen[bytes]:
    """Start the page in a process of its own, so that it cannot hold up the host; it ends with the host."""
    words = ["--host", host.address, "--bind", config.host.bind, "--port", str(config.web_port), "--attached"]
    if config.host.key is not None:
        words += ["--key", str(config.host.key), "--host-key", str(config.host.key).removesuffix("_secret")]
    secrets = os.environ | ({"WORLDSIM_WEB_TOKEN": config.web_token} if config.web_token else {})
    command = [sys.executable, "-m", "worldsim.bridges.web", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr, env=secrets)
