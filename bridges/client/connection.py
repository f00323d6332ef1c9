"""A client's connection to a host: it sends a request again until the host replies. Needs numpy and pyzmq only."""

from __future__ import annotations

import os
import secrets
import time
from collections import deque
from collections.abc import Callable, Mapping
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
    printable,
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


@dataclass
class Request:
    """A request that was sent, or is about to be, and whose reply was not taken in yet.

    Attributes:
        parts: of the message.
        number: its id.
        take_in: is called with the reply, and whether it comes late: after an exception had interrupted the call.
    """

    parts: list[Any]
    number: int
    take_in: Callable[[Message, bool], Any]


class Connection:
    """A connection to a host; for one thread of the process that made it.

    An exception at any moment of a call (Ctrl-C, a signal, a timeout) leaves the request unfinished. The next call
    sends it again first, and takes in its reply, so that caller and host agree; the host does nothing twice.

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
        self._unfinished: Request | None = None
        self._refused = 0  # the last request that the host has refused
        self._whole = True  # whether no message was sent or read in part, when an exception came
        self._process = os.getpid()
        self._context = zmq.Context()
        self._context.linger = 0  # of sockets that an exception leaves behind
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

    @property
    def foreign(self) -> bool:
        """Whether another process made the connection, of which this one was forked: it must not be used here."""
        return os.getpid() != self._process

    def call(
        self,
        verb: str,
        buffers: messages.Buffers | None = None,
        take_in: Callable[[Message, bool], Any] = lambda message, late: message,
        **fields: Any,
    ) -> Any:
        """Send a request, and wait for its reply.

        A request without a reply is sent again; the host does nothing twice. A restarted host gets a new `hello`.

        Args:
            verb: one of `protocol.VERBS`.
            buffers: as `messages.pack` takes them.
            take_in: makes the result of the reply, and changes what follows from it; also called, with True, by the
                next call after this one was interrupted.
            fields: of the request; those that are None are left out.

        Raises:
            BridgeError: no reply in time, or another process made the connection.
            WorldsimError: an error of the host, as the class that a local engine raises; else a ProtocolError.
        """
        self.level()
        self._ids += 1
        header = {"v": protocol.VERSION, "id": self._ids, "verb": verb}
        header |= {name: value for name, value in fields.items() if value is not None}
        request = self._unfinished = Request(messages.pack(header, buffers), self._ids, take_in)
        return self._finish(request, late=False)

    def level(self) -> None:
        """Finish a request that an exception has interrupted, so that caller and host agree; else do nothing.

        Raises:
            BridgeError: no reply in time, or another process made the connection.
        """
        if self.foreign:
            raise BridgeError(
                f"the connection to {self.address} was made in process {self._process}, and this is its fork "
                f"{os.getpid()}, which cannot use it; make a new environment or engine after the fork."
            )
        if self._unfinished is not None:
            try:
                self._finish(self._unfinished, late=True)
            except WorldsimError:
                if self._unfinished is not None:
                    raise

    def _finish(self, request: Request, late: bool) -> Any:
        try:
            message = self._ask(request.parts, request.number, time.monotonic() + self.config.patience)
        except BaseException as error:
            if isinstance(error, WorldsimError) and self._refused == request.number:
                self._unfinished = None  # nothing has changed
            else:
                request.parts = [bytes(part) for part in request.parts]  # the caller may change its arrays
            raise
        result = request.take_in(message, late)
        self._unfinished = None
        return result

    def poll(self, seconds: float) -> Message | None:
        """Wait some seconds for a pushed message."""
        end = time.monotonic() + seconds
        self.level()
        if self._socket is None or not self._whole:
            self._connect()
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
        if self.foreign:
            return  # it is the other process's
        if self._socket is not None:
            self._socket.close(linger=100)
            self._socket = None
        self._reader.forget()
        self._context.destroy(linger=0)  # with sockets that an exception left behind

    def _ask(self, parts: list[Any], number: int, end: float, greet: bool = True) -> Message:
        while True:
            if self._socket is None or not self._whole:
                self._connect()
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
                self._refused = number
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
        before, self._socket = self._socket, None
        if before is not None:
            before.close(linger=0)
        socket = self._context.socket(zmq.DEALER)
        try:
            self._set_up(socket)
        except BaseException:
            socket.close(linger=0)
            raise
        self._greeted, self._whole = False, True
        self._socket = socket

    def _set_up(self, socket: zmq.Socket) -> None:
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

    def _send(self, parts: list[Any]) -> None:
        assert self._socket is not None
        self._whole = False
        try:
            self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            pass  # there is no host; `_ask` sends it again after the timeout
        self._whole = True

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
        if not self._socket.poll(int(1000 * seconds)):  # an exception while it waits does no harm
            return None
        self._whole = False
        if not self._large:
            parts: list[Any] = self._socket.recv_multipart()
        else:
            parts = [frame.buffer for frame in self._socket.recv_multipart(copy=False)]
        self._whole = True
        return messages.unpack(parts)

    def _is_push(self, message: Message) -> bool:
        push = message.header.get("verb") in protocol.PUSHES
        if push:
            self.pushed.append(message)
        return push


def _error(error: Mapping[str, Any]) -> WorldsimError:
    code, message = str(error.get("code")), printable(str(error.get("message")), 2000)
    kind = ERRORS.get(code)
    if kind is not None:
        return kind(message)
    return ProtocolError(code, f"{message} ({code})", {k: v for k, v in error.items() if k not in ("code", "message")})
