"""Plain connections to a host under test, and sessions over them."""

from __future__ import annotations

import itertools
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zmq
from gymnasium import spaces

from worldsim.bridges import messages, protocol
from worldsim.bridges.actions import to_json
from worldsim.bridges.conformance.checks import Failed, Skipped, expect, reply_faults
from worldsim.bridges.messages import Message


@dataclass
class Lab:
    """The state that all checks share: the host, and the faults of its replies.

    Attributes:
        world: the one that is checked, as the host describes it.
        hello: the host's reply.
        space: the world's action space.
        faults: replies that are not as declared, with how often.
        codes: errors that came.
    """

    address: str
    patience: float
    context: zmq.Context = field(default_factory=zmq.Context)
    ids: Any = field(default_factory=lambda: itertools.count(1))
    hello: dict[str, Any] = field(default_factory=dict)
    world: dict[str, Any] = field(default_factory=dict)
    space: spaces.Space = field(default_factory=lambda: spaces.Discrete(1))
    faults: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    replies: int = 0
    peers: list[Peer] = field(default_factory=list)
    opened: dict[str, None] = field(default_factory=dict)

    def peer(self, token: str | None = None, kind: int = zmq.DEALER, greet: bool = True) -> Peer:
        """Open a connection; by default it says hello."""
        made = Peer(self, token or secrets.token_urlsafe(24), kind)
        self.peers.append(made)
        if greet:
            made.greet()
        return made

    def open(self, peer: Peer | None = None, **fields: Any) -> Game:
        """Open a session."""
        peer = peer or self.peer()
        return self.game(peer, peer.ask("open", **{"world": self.world["name"], **fields}))

    def game(self, peer: Peer, reply: Message) -> Game:
        """Read a session from the reply that opened it."""
        header = reply.header
        return Game(self, peer, header["session"], header["watch"], header["step"], self.frame(reply))

    def frame(self, message: Message) -> np.ndarray:
        """Read the frame of a message, and check its size."""
        buffer = message.buffers["frame"]
        shape = (*self.world["frame_size"], 3)
        good = isinstance(buffer, np.ndarray) and buffer.dtype == np.uint8 and buffer.shape == shape
        expect(good, f"a raw frame, uint8 {shape}", getattr(buffer, "shape", buffer))
        return np.array(buffer)

    def actions(self, count: int, seed: int = 0) -> list[Any]:
        """Sample actions, as JSON."""
        self.space.seed(seed)
        return [to_json(self.space, self.space.sample()) for _ in range(count)]

    def keys(self, game: Game) -> list[str]:
        """List keys that the world knows: those of its `keys`, or arrows."""
        named = dict.fromkeys(key for combo in self.world["keys"] for key in combo.split("+") if key)
        found = [key for key in named or ("left", "right", "up", "down") if game.try_keys(key)]
        if not found:
            raise Skipped("no key does anything in this world")
        return found

    def tidy(self) -> None:
        """Close the sessions and connections that a check left open."""
        if self.opened:
            janitor = Peer(self, secrets.token_urlsafe(24), zmq.DEALER)
            janitor.greet()
            for token in self.opened:
                janitor.exchange(janitor.header("close", session=token))
            self.opened.clear()
            janitor.close()
        for peer in self.peers:
            peer.close()
        self.peers.clear()


class Peer:
    """A plain connection to the host.

    Args:
        lab: to which it belongs.
        token: the client's.
        kind: of the socket.

    Attributes:
        pushed: pushed messages that were not read yet.
    """

    def __init__(self, lab: Lab, token: str, kind: int) -> None:
        """Connect."""
        self.lab, self.token, self.kind = lab, token, kind
        self.pushed: list[Message] = []
        self._verbs: dict[int, Any] = {}  # of requests, by id
        self._early: list[Message] = []
        self.socket = lab.context.socket(kind)
        self.socket.linger = 0
        self.socket.connect(lab.address)

    def close(self) -> None:
        """Close the connection."""
        self.socket.close()

    def greet(self) -> Message:
        """Say hello."""
        return self.ask("hello", client=self.token, name="check_host")

    def header(self, verb: Any, number: Any = None, **fields: Any) -> dict[str, Any]:
        """Make the header of a request, by default with a new id."""
        number = next(self.lab.ids) if number is None else number
        return {"v": protocol.VERSION, "id": number, "verb": verb, **fields}

    def send(self, header: Mapping[str, Any], buffers: messages.Buffers | None = None) -> None:
        """Send a request."""
        if isinstance(number := header.get("id"), int):
            self._verbs[number] = header.get("verb")
        self.socket.send_multipart(messages.pack(header, buffers))

    def answer(self, number: int | None) -> Message:
        """Wait for the reply to a request.

        Raises:
            Failed: there is none.
        """
        end = time.monotonic() + self.lab.patience
        while True:
            for message in self._early:
                if message.header.get("id") == number:
                    self._early.remove(message)
                    return message
            message = self.receive(end - time.monotonic())
            if message is None:
                raise Failed(f"a reply to {self._verbs.get(number or 0)}", f"none within {self.lab.patience:g} s")
            self._early.append(message)

    def receive(self, seconds: float) -> Message | None:
        """Wait some seconds for the next reply, and collect pushes meanwhile."""
        end = time.monotonic() + seconds
        while self.socket.poll(max(0, int(1000 * (end - time.monotonic())))):
            message = messages.unpack(self.socket.recv_multipart())
            self._note(message)
            if message.header.get("verb") not in protocol.PUSHES:
                return message
            self.pushed.append(message)
        return None

    def pushes(self, seconds: float, count: int = 10_000) -> list[Message]:
        """Wait some seconds for up to `count` pushes."""
        end = time.monotonic() + seconds
        while len(self.pushed) < count and time.monotonic() < end:
            message = self.receive(min(0.01, end - time.monotonic()))
            if message is not None:
                self._early.append(message)
        taken, self.pushed[:count] = self.pushed[:count], []
        return taken

    def exchange(self, header: Mapping[str, Any], buffers: messages.Buffers | None = None) -> Message:
        """Send a request and wait for its reply; on too-fast wait and send it again."""
        while True:
            self.send(header, buffers)
            number = header.get("id")
            whole = isinstance(number, int) and not isinstance(number, bool) and 0 <= number <= protocol.MAX_INT
            reply = self.answer(number if whole else None)
            error = reply.header.get("error")
            if not error or error["code"] != "too-fast":
                return reply
            time.sleep(error["wait"])

    def ask(self, verb: str, buffers: messages.Buffers | None = None, **fields: Any) -> Message:
        """Send a request that must be granted."""
        return self.must(self.header(verb, **fields), buffers)

    def must(self, header: Mapping[str, Any], buffers: messages.Buffers | None = None) -> Message:
        """Send a header that must be granted."""
        reply = self.exchange(header, buffers)
        expect("error" not in reply.header, f"{header['verb']} to be granted", reply)
        return reply

    def insist(self, header: Mapping[str, Any]) -> Message:
        """Send a request that must be granted, again and again until its reply arrives, as a client does."""
        end = time.monotonic() + self.lab.patience
        while True:
            self.send(header)
            message = self.receive(0.5)
            if message is not None and message.header.get("id") == header["id"]:
                return message
            expect(time.monotonic() < end, f"a reply to {header['verb']}", "none")

    def refused(self, code: str | Sequence[str], verb: Any, buffers: Any = None, **fields: Any) -> dict[str, Any]:
        """Send a request that must be refused with one of some codes; return the error."""
        return self.refuse(code, self.header(verb, **fields), buffers)

    def refuse(self, code: str | Sequence[str], header: Mapping[str, Any], buffers: Any = None) -> dict[str, Any]:
        """Send a header that must be refused with one of some codes; return the error."""
        codes = (code,) if isinstance(code, str) else code
        reply = self.exchange(header, buffers)
        said = {name: value for name, value in header.items() if name not in ("v", "id")}
        expect(reply.header.get("error", {}).get("code") in codes, f"{' or '.join(codes)} for {str(said)[:160]}", reply)
        return reply.header["error"]

    def refuse_parts(self, code: str, parts: Sequence[bytes], number: int | None = None) -> None:
        """Send parts that are no request, and must be refused with a code."""
        self.socket.send_multipart(list(parts))
        reply = self.answer(number)
        said = b" ".join(parts)[:60]
        expect(reply.header.get("error", {}).get("code") == code, f"{code} for {said!r}", reply)

    def _note(self, message: Message) -> None:
        """Compare a message with its declaration, and count its faults."""
        self.lab.replies += 1
        self.lab.faults.update(reply_faults(message))
        header = message.header
        for token in (header.get("session"), *(header.get("sessions") or ())):
            if header.get("verb") in ("open", "fork", "open_batch") and isinstance(token, str):
                self.lab.opened[token] = None
        if error := header.get("error"):
            self.lab.codes[error["code"]] += 1
        asked = self._verbs.get(header.get("id") or 0)
        known = isinstance(asked, str) and asked in protocol.VERBS
        if known and header.get("verb") not in (asked, *protocol.PUSHES):
            self.lab.faults[f"a reply of the verb {header.get('verb')} to {asked}"] += 1


@dataclass
class Game:
    """A session of a check."""

    lab: Lab
    peer: Peer
    token: str
    watch: str
    step: int
    frame: np.ndarray

    def request(self, action: Any = None, **fields: Any) -> dict[str, Any]:
        """Make the header of a step."""
        control = fields or {"action": self.lab.actions(1)[0] if action is None else action}
        return self.peer.header("step", session=self.token, step=self.step, **control)

    def play(self, *actions: Any, **fields: Any) -> list[np.ndarray]:
        """Step under each action; return the frames."""
        return [self.take(self.peer.must(self.request(action, **fields))) for action in actions or (None,)]

    def take(self, reply: Message) -> np.ndarray:
        """Check that a step's reply has the next number; return its frame."""
        expect(reply.header.get("step") == self.step + 1, f"step {self.step + 1}", reply)
        self.step, self.frame = self.step + 1, self.lab.frame(reply)
        return self.frame

    def same(self) -> None:
        """Check that the session has neither drawn a frame nor changed the last one."""
        reply = self.peer.ask("render", session=self.token)
        expect(reply.header["step"] == self.step, f"the session still at step {self.step}", reply)
        equal(self.lab.frame(reply), self.frame, "the same last frame")

    def fork(self) -> Game:
        """Fork the session."""
        return self.lab.game(self.peer, self.peer.ask("fork", session=self.token))

    def try_keys(self, keys: str) -> bool:
        """Say whether the world knows some keys."""
        reply = self.peer.exchange(self.peer.header("input", session=self.token, keys=keys))
        return "error" not in reply.header


def equal(came: Any, expected: Any, what: str) -> None:
    """Check that frames, or lists of them, are equal bit for bit."""
    differ = [i for i, (a, b) in enumerate(zip(came, expected, strict=True)) if not np.array_equal(a, b)]
    expect(not differ, what, f"others, from index {differ[0] if differ else 0} of {len(came)} on")
