"""A client's connection to a host: it sends a request again until the host replies. Needs numpy and pyzmq only."""

from __future__ import annotations

import secrets
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import zmq
import zmq.auth

from worldsim.bridges import messages, protocol
from worldsim.bridges.frames import SharedReader, from_jpeg
from worldsim.bridges.messages import Message
from worldsim.errors import (
    ActionError,
    BridgeError,
    ConfigError,
    EngineFull,
    InputError,
    PromptError,
    ProtocolError,
    SessionError,
    SnapshotMismatch,
    WorldsimError,
)

ERRORS: dict[str, type[WorldsimError]] = {
    "bad-action": ActionError,
    "bad-prompt": PromptError,
    "bad-start": InputError,
    "bad-snapshot": SnapshotMismatch,
    "no-snapshot": SnapshotMismatch,
    "no-session": SessionError,
    "full": EngineFull,
}
"""The error class that a local engine raises, by code; any other code is a ProtocolError."""

QUEUE = 64  # messages that may wait at a socket
LARGE = 256 * 1024  # bytes of a frame above which it is read without a copy


@dataclass(frozen=True, kw_only=True)
class ConnectionConfig:
    """How to reach a host."""

    timeout: float = 5.0
    """Seconds without a reply after which a request is sent again, over a new connection."""
    patience: float = 60.0
    """Seconds without a reply after which the request fails; long enough for a host to be restarted."""
    encoding: str = "auto"
    """Of frames: raw, jpeg, shm; auto is shm where host and client share memory, else raw."""
    quality: int = 90
    """Of jpeg."""
    copy: bool = True
    """Whether frames are copied; without a copy they are read-only, and in shared memory valid for three more steps."""
    key: Path | None = None
    """The client's secret CURVE key, for a host that has keys."""
    host_key: Path | None = None
    """The host's public CURVE key."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.timeout, self.patience) <= 0:
            raise ConfigError(f"timeout is {self.timeout} and patience {self.patience}; allowed: over 0.")
        if self.encoding not in ("auto", *protocol.ENCODINGS):
            raise ConfigError(f"encoding is {self.encoding!r}; allowed: auto, {', '.join(protocol.ENCODINGS)}.")
        if (self.key is None) != (self.host_key is None):
            raise ConfigError("key and host_key go together: the client's secret key and the host's public one.")


class Connection:
    """A connection to a host; for one thread.

    Args:
        address: such as "tcp://127.0.0.1:5570" or "ipc:///run/...".
        config: settings.

    Attributes:
        hello: the host's description of itself and its worlds.
        pushed: pushed messages that were not read yet: frames of watched sessions, goodbyes.
        encoding: of the frames.

    Raises:
        BridgeError: there is no host, or it does not speak this version.
    """

    def __init__(self, address: str, config: ConnectionConfig | None = None, name: str = "worldsim.bridges.client"):
        """Connect and say hello."""
        self.address, self.config, self.name = address, config or ConnectionConfig(), name
        self.client = secrets.token_urlsafe(24)
        self.pushed: deque[Message] = deque(maxlen=QUEUE)
        self._ids = 0
        self._context = zmq.Context()
        self._socket: zmq.Socket | None = None
        self._large = False  # whether frames are over LARGE
        self._reader = SharedReader()
        self._greeted = False
        self.hello: dict[str, Any] = {}
        self.encoding = "raw"
        try:
            self._connect()
            self._greet(time.monotonic() + self.config.patience)
        except BaseException:
            self.close()
            raise

    def call(self, verb: str, buffers: messages.Buffers | None = None, **fields: Any) -> Message:
        """Send a request, and wait for its reply.

        A request without a reply is sent again; the host does nothing twice. A restarted host gets a new `hello`.

        Args:
            verb: one of `protocol.VERBS`.
            buffers: as `messages.pack` takes them.
            fields: of the request; those that are None are left out.

        Raises:
            BridgeError: no reply in time.
            WorldsimError: an error of the host, as the class that a local engine raises; else a ProtocolError.
        """
        self._ids += 1
        header = {"v": protocol.VERSION, "id": self._ids, "verb": verb}
        header |= {name: value for name, value in fields.items() if value is not None}
        return self._ask(messages.pack(header, buffers), self._ids, time.monotonic() + self.config.patience)

    def poll(self, seconds: float) -> Message | None:
        """Wait some seconds for a pushed message."""
        end = time.monotonic() + seconds
        while not self.pushed:
            message = self._receive(max(0.0, end - time.monotonic()))
            if message is not None and not self._is_push(message) or message is None and time.monotonic() >= end:
                return None
        return self.pushed.popleft()

    def frame(self, buffer: Any) -> Any:
        """Decode the frame of a message to uint8; one in shared memory is read-only, and overwritten steps later."""
        if isinstance(buffer, bytes):
            return from_jpeg(buffer)
        return self._reader.read(buffer) if isinstance(buffer, Mapping) else buffer

    def close(self) -> None:
        """Close the connection; sessions live on until their leases end. May be called again."""
        if self._socket is not None:
            self._socket.close(linger=100)
            self._socket = None
        self._reader.forget()
        self._context.term()

    def _ask(self, parts: list[Any], number: int, end: float, greet: bool = True) -> Message:
        while True:
            if greet and not self._greeted:
                self._greet(end)
            self._send(parts)
            message = self._answer(number, min(end, time.monotonic() + self.config.timeout))
            if message is None:
                if time.monotonic() >= end:
                    raise BridgeError(
                        f"the host at {self.address} has not answered for {self.config.patience:g} s. Is it running "
                        "(worldsim serve)? Give it more `patience`, or start it again with --resume."
                    )
                self._connect()  # the old connection may be dead without an error
                continue
            error = message.header.get("error")
            if error is None:
                return message
            if error["code"] == "hello-first":
                self._greeted = False
            elif error["code"] in ("too-fast", "stopping"):
                time.sleep(min(float(error.get("wait", 0.1)), max(0.0, end - time.monotonic())))
            else:
                raise _error(error)
            if time.monotonic() >= end:
                raise _error(error)

    def _greet(self, end: float) -> None:
        self._ids += 1
        fields = {"client": self.client, "name": self.name}
        header = {"v": protocol.VERSION, "id": self._ids, "verb": "hello", **fields}
        self.hello = self._ask(messages.pack(header), self._ids, end, greet=False).header
        self._greeted = True
        sizes = [3 * height * width for height, width in (world["frame_size"] for world in self.hello["worlds"])]
        self._large = max(sizes, default=0) >= LARGE
        if self.config.encoding == "auto":
            self.encoding = "shm" if SharedReader.shares(self.hello.get("shm")) else "raw"
        else:
            self.encoding = self.config.encoding

    def _connect(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
        socket = self._socket = self._context.socket(zmq.DEALER)
        socket.setsockopt(zmq.SNDHWM, QUEUE)
        socket.setsockopt(zmq.RCVHWM, QUEUE)
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        if self.config.key is not None and self.config.host_key is not None:
            public, secret = zmq.auth.load_certificate(self.config.key)
            if secret is None:
                raise ConfigError(f"{self.config.key} is a public key; give the secret one: {self.config.key}_secret.")
            socket.curve_publickey, socket.curve_secretkey = public, secret
            socket.curve_serverkey = zmq.auth.load_certificate(self.config.host_key)[0]
        try:
            socket.connect(self.address)
        except zmq.ZMQError as error:
            raise BridgeError(
                f"{self.address!r} is no address ({error}); try tcp://127.0.0.1:{protocol.PORT}"
            ) from error
        self._greeted = False

    def _send(self, parts: list[Any]) -> None:
        assert self._socket is not None
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            pass  # there is no host; `_ask` sends it again after the timeout

    def _answer(self, number: int, end: float) -> Message | None:
        while (left := end - time.monotonic()) > 0:
            message = self._receive(left)
            if message is None:
                return None
            unread = message.header.get("id") is None and "error" in message.header  # it had no valid id
            if not self._is_push(message) and (message.header.get("id") == number or unread):
                return message  # another id: a late reply to an earlier request
        return None

    def _receive(self, seconds: float) -> Message | None:
        assert self._socket is not None
        self._socket.setsockopt(zmq.RCVTIMEO, int(1000 * seconds))
        try:
            if not self._large:
                return messages.unpack(self._socket.recv_multipart())
            return messages.unpack([frame.buffer for frame in self._socket.recv_multipart(copy=False)])
        except zmq.Again:
            return None

    def _is_push(self, message: Message) -> bool:
        push = message.header.get("verb") in protocol.PUSHES
        if push:
            self.pushed.append(message)
        return push


def _error(error: Mapping[str, Any]) -> WorldsimError:
    code, message = str(error.get("code")), str(error.get("message"))
    kind = ERRORS.get(code)
    if kind is not None:
        return kind(message)
    return ProtocolError(code, f"{message} ({code})", {k: v for k, v in error.items() if k not in ("code", "message")})
