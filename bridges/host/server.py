"""A host: one ROUTER socket, the service behind it, and the loop that drives both."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import stat
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator

from worldsim.bridges import protocol
from worldsim.bridges.frames import SharedFolder
from worldsim.bridges.host.checkpoints import Checkpoints
from worldsim.bridges.host.clients import MOST_PEERS
from worldsim.bridges.host.records import ServiceConfig
from worldsim.bridges.host.resume import resume
from worldsim.bridges.host.service import Service
from worldsim.bridges.host.turns import Turns
from worldsim.engine.engine import Engine
from worldsim.errors import BridgeError, ConfigError, printable

log = logging.getLogger("worldsim.host")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
MOST_AT_ONCE = 256  # messages that are read before clocks are looked at: a flood does not stop them
QUEUE = 64  # messages that may wait for one slow peer, or from it
PARTING = 100  # ms without a request after which a stopping host ends
LONGEST_PARTING = 2.0  # seconds after which it ends in any case
LONGEST_READ = 0.005  # seconds after which messages that wait at the socket wait for the next turn
TIDY = 0.05  # seconds between two checks of leases and checkpoints


@dataclass(frozen=True, kw_only=True)
class HostConfig:
    """Where a host is reached, and what it stores."""

    bind: str = "127.0.0.1"
    """Address; any but a loopback one needs keys."""
    port: int = protocol.PORT
    """0 takes a free one."""
    ipc: bool = True
    """Whether programs on this machine may connect by ipc too; see `ipc_address`."""
    key: Path | None = None
    """The host's secret CURVE key, a file that `worldsim keys` makes."""
    allow: Path | None = None
    """A folder with the public keys of the clients that may connect (default: the key's folder)."""
    shared: bool = True
    """Whether frames may go through shared memory."""
    checkpoints: Path | None = None
    """A folder where live sessions are written."""
    every: float = 10.0
    """Seconds between two checkpoints of a session; events in between are written as they happen."""
    fsync: float = 2.0
    """Seconds between two rounds that write checkpoints through to the disk: what a power cut may cost; 0 for none."""
    resume: bool = False
    """Go on with the sessions in that folder."""
    service: ServiceConfig = field(default_factory=ServiceConfig)


class Host:
    """Serves engines; `run` until `stop`.

    Args:
        engines: by the name of their world.
        config: settings.

    Attributes:
        service: sessions and clients.
        port: that it is bound to.

    Raises:
        ConfigError: a public address without keys, or settings that do not go together.
        BridgeError: the address is taken, or cannot be bound.
    """

    def __init__(self, engines: Mapping[str, Engine], config: HostConfig | None = None) -> None:
        """Bind."""
        self.config = config = config or HostConfig()
        check_bind(config)
        self._stopped = threading.Event()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._enveloped: set[bytes] = set()  # peers that are REQ sockets
        self._authenticator: ThreadAuthenticator | None = None
        self.shared = _shared_folder() if config.shared else None
        self._ipc: str | None = None
        self._keys_changed = 0
        try:
            checkpoints = Checkpoints(config.checkpoints, config.every, config.fsync) if config.checkpoints else None
            self.service = Service(engines, self._send, config.service, checkpoints, self.shared)
            self.turns = Turns(self.service)
            self._set_up()
            self.port = self._bind()
            if config.resume:
                count = resume(self.service)
                log.info("resumed", extra={"fields": {"sessions": count}})
        except Exception:
            self.close()
            raise

    def __enter__(self) -> Host:
        """Enter the context."""
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    @property
    def address(self) -> str:
        """The address for clients on this machine."""
        return tcp_address(self.config, "127.0.0.1" if self.config.bind in ("0.0.0.0", "*") else None, self.port)

    def run(self) -> None:
        """Serve until `stop` is called, then write all sessions and say goodbye."""
        tidied = 0.0
        while not self._stopped.is_set():
            now = time.monotonic()
            if now - tidied >= TIDY:
                self.service.tidy()
                if self._authenticator is not None:
                    self._admit_keys()
                tidied = time.monotonic()
            wait = min(self.turns.patience(now), self.service.patience(now), TIDY)
            try:
                self._take_in(int(1000 * wait))
                if self.service.draw():
                    self.turns.drew()
                self.turns.turn()
            except Exception:  # of no one request: those have their own answers
                log.exception("a turn failed")
                time.sleep(TIDY)
        self.service.bye()
        end = time.monotonic() + LONGEST_PARTING
        while time.monotonic() < end and self._take_in(PARTING):  # requests of the last moment are refused as stopping
            pass

    def stop(self) -> None:
        """Make `run` return; may be called from another thread or a signal handler."""
        self._stopped.set()

    def stop_on_signals(self) -> None:
        """Stop on Ctrl-C and on SIGTERM."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: self.stop())

    def close(self) -> None:
        """Close sockets and files; may be called again."""
        if hasattr(self, "service"):
            self.service.stop_jobs()
        self._socket.close(linger=500)  # the last messages still go out
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._context.term()
        if self.shared is not None:
            self.shared.close()
        if hasattr(self, "service") and self.service.checkpoints is not None:
            self.service.checkpoints.close()
        if self._ipc is not None:
            with contextlib.suppress(OSError):
                Path(self._ipc[len("ipc://") :]).unlink(missing_ok=True)

    def _set_up(self) -> None:
        socket, config = self._socket, self.config
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # errors for peers that are gone or slow, not silent drops
        socket.setsockopt(zmq.SNDHWM, QUEUE)
        socket.setsockopt(zmq.RCVHWM, QUEUE)
        socket.setsockopt(zmq.MAXMSGSIZE, 2 * self.service.message_bytes)  # beyond, the connection ends
        socket.setsockopt(zmq.TCP_KEEPALIVE, 1)
        socket.setsockopt(zmq.IPV6, ":" in config.bind)
        if config.key is not None:
            self._authenticator = ThreadAuthenticator(self._context)
            self._authenticator.start()
            self._admit_keys()
            public, secret = zmq.auth.load_certificate(config.key)
            if secret is None:
                raise ConfigError(f"{config.key} is a public key; the host needs the secret one: {config.key}_secret.")
            socket.curve_publickey, socket.curve_secretkey, socket.curve_server = public, secret, True

    def _admit_keys(self) -> None:
        """Admit the keys in the folder from now on, if it has changed; a key that is gone makes no new connection."""
        assert self._authenticator is not None and self.config.key is not None
        folder = self.config.allow or self.config.key.parent
        try:
            changed = folder.stat().st_mtime_ns
            if changed != self._keys_changed:
                self._authenticator.configure_curve(domain="*", location=str(folder))
                self._keys_changed = changed
        except OSError as error:
            log.warning("keys not read", extra={"fields": {"error": str(error)}})

    def _bind(self) -> int:
        try:
            self._socket.bind(tcp_address(self.config))
            bound = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
            port = int(bound.rsplit(":", 1)[1])
        except zmq.ZMQError as error:
            raise _taken(self.config, error) from error
        if self.config.ipc:
            try:
                address = ipc_address(port)
                self._socket.bind(address)
                self._ipc = address
            except (BridgeError, zmq.ZMQError) as error:
                log.warning("no ipc", extra={"fields": {"error": str(error)}})
        return port

    def _take_in(self, patience_ms: int) -> int:
        """Wait for a message, and read those that have come; return their number."""
        self._socket.setsockopt(zmq.RCVTIMEO, patience_ms)
        begun = 0.0
        for count in range(MOST_AT_ONCE):
            begun = begun or (time.monotonic() if count else 0.0)
            if begun and time.monotonic() - begun > LONGEST_READ:
                return count
            if count and not self._socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:  # type: ignore[operator]  -- a number
                return count
            try:
                frames = self._socket.recv_multipart(copy=False)
            except zmq.Again:
                return count
            key = "" if self._authenticator is None else str(frames[-1].get("User-Id"))
            address = _property(frames[-1], "Peer-Address")
            peer, *parts = (frame.bytes for frame in frames)
            if parts and not parts[0]:  # a REQ socket's empty part
                parts = parts[1:]
                self._enveloped.add(peer)
                if len(self._enveloped) > MOST_PEERS:
                    self._enveloped = {peer}
            else:
                self._enveloped.discard(peer)
            self.turns.put(peer, parts, key, address)
        return MOST_AT_ONCE

    def _send(self, peer: bytes, parts: list[Any]) -> bool:
        envelope = [peer, b""] if peer in self._enveloped else [peer]
        try:
            self._socket.send_multipart([*envelope, *parts], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False  # it does not read; it can send its request again
        except zmq.ZMQError as error:
            if error.errno == zmq.EHOSTUNREACH:
                self._enveloped.discard(peer)
                raise LookupError(peer) from None
            raise
        return True


def tcp_address(config: HostConfig, bind: str | None = None, port: int | None = None) -> str:
    """Make the address of a config, by default with its own host name and port."""
    bind, port = bind or config.bind, port or config.port
    return f"tcp://{f'[{bind}]' if ':' in bind else bind}:{port or '*'}"


def check_free(config: HostConfig) -> None:
    """Check that an address is free, before worlds are loaded.

    Raises:
        BridgeError: it is taken, or is none.
    """
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.setsockopt(zmq.IPV6, ":" in config.bind)
        try:
            socket.bind(tcp_address(config))
        except zmq.ZMQError as error:
            raise _taken(config, error) from error


def _taken(config: HostConfig, error: Exception) -> BridgeError:
    hint = "Another host may be there; give another --port, or 0 for a free one."
    return BridgeError(f"cannot bind {tcp_address(config)}: {error}. {hint}")


def ipc_address(port: int) -> str:
    """Make the ipc address of a host by its port; only its own user can connect there.

    Raises:
        BridgeError: the runtime folder is missing, or others can write there.
    """
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    folder = runtime / f"worldsim-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise BridgeError(
            f"the runtime folder {printable(str(folder))} cannot be made ({error.strerror}); set XDG_RUNTIME_DIR to a "
            "folder of your own, or use tcp."
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise BridgeError(
            f"the runtime folder {printable(str(folder))} is not yours alone (owner {found.st_uid}, mode "
            f"{stat.filemode(found.st_mode)}); allowed: a folder of user {os.getuid()} with the mode drwx------. "
            "Remove it, or set XDG_RUNTIME_DIR."
        )
    return f"ipc://{folder}/{port}"


def _shared_folder() -> SharedFolder | None:
    """Make the folder of shared frames, if there is room for it."""
    try:
        return SharedFolder()
    except OSError as error:
        log.warning("no shared memory", extra={"fields": {"error": str(error)}})
        return None


def _property(frame: zmq.Frame, name: str) -> str:
    try:
        return str(frame.get(name))
    except zmq.ZMQError:
        return ""  # this transport has none


def check_bind(config: HostConfig) -> None:
    """Check that a public address has keys.

    Raises:
        ConfigError: a public address without keys, or a missing key file.
    """
    if config.bind not in LOOPBACK and config.key is None:
        raise ConfigError(
            f"bind is {config.bind!r}, which others can reach, and there are no keys. Make some, and name the host's: "
            "worldsim keys host && worldsim keys alice && worldsim serve ... --bind "
            f"{config.bind} --key keys/host.key_secret"
        )
    if config.key is not None and not config.key.is_file():
        raise ConfigError(
            f"there is no key file {config.key}; make one: worldsim keys host --folder {config.key.parent}"
        )
    if config.resume and config.checkpoints is None:
        raise ConfigError("resume needs the folder of checkpoints.")
