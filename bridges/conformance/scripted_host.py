"""A scripted host for one client under test: it makes frames up, logs all requests, and causes one trouble."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zmq

from worldsim.bridges import messages, protocol
from worldsim.bridges.conformance.checks import Failed, brief
from worldsim.bridges.messages import Message
from worldsim.bridges.protocol import new_token
from worldsim.errors import ProtocolError

FRAMES = 8  # with fewer the run would end before the troubles
MOST_TRIES = 200  # of one request
KEYS = ("left", "right")
WORLD = {
    "name": "made-up",
    "frame_size": [40, 56],  # not square, so that a client that swaps height and width fails
    "fps": 30.0,
    "action_space": {"type": "discrete", "n": 2, "start": 0, "dtype": "int64"},
    "keys": {"": 0, "left": 0, "right": 1},
    "prompts": ["a cart"],
    "starts": 0,
    "episode_steps": None,
    "fingerprint": "made-up",
}


@dataclass
class Asked:
    """A request that the host got.

    Attributes:
        times: how often it has come so far.
        turn: the number of a new step in the run, from 1; 0 for other verbs.
    """

    peer: bytes
    enveloped: bool
    message: Message
    parts: list[bytes]
    client: str = ""
    times: int = 1
    turn: int = 0
    reply: dict[str, Any] | None = None
    frame: np.ndarray | None = None

    @property
    def verb(self) -> str:
        """The verb of the request."""
        return self.message.header["verb"]


class Trouble:
    """What goes wrong in a run; this base class does nothing wrong.

    Attributes:
        may_end: whether the client may end before its time.
    """

    may_end = False

    def refuse(self, host: ScriptedHost, asked: Asked) -> dict[str, Any] | None:
        """Return an error to refuse the request, or None to do it."""

    def answer(self, host: ScriptedHost, asked: Asked) -> None:
        """Send the reply of a request that was done."""
        host.reply(asked)


@dataclass
class Session:
    """The state of a session."""

    token: str
    step: int = 1
    prompt: str = "a cart"


@dataclass
class ScriptedHost:
    """Serve made-up frames to one client, log all its requests, and cause a trouble.

    Attributes:
        faults: what the client did wrong.
        done: number of steps so far.
        forgot: whether earlier connections were forgotten.
        heard: when the last message came.
        marks: start times, by the names that troubles give them.
        tries: counts, by the names that troubles give them.
    """

    trouble: Trouble
    world: Mapping[str, Any] = field(default_factory=lambda: WORLD)
    faults: list[str] = field(default_factory=list)
    sessions: dict[str, Session] = field(default_factory=dict)
    done: int = 0
    forgot: bool = False
    client: str = ""
    heard: float = field(default_factory=time.monotonic)
    marks: dict[str, float] = field(default_factory=dict)
    tries: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Bind a free port."""
        self.name = new_token()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 100
        self._socket.bind("tcp://127.0.0.1:*")
        self.address = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self._greeted: set[bytes] = set()
        self._book: dict[int, Asked] = {}  # by id
        self._highest = 0  # id
        self._later: list[tuple[float, Asked]] = []
        self._unanswered: int | None = None  # the id of the step that has no reply yet

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        self._context.destroy(linger=100)

    def serve(self, ended: Callable[[], bool], patience: float) -> None:
        """Serve until the client has ended, has done something wrong, or is silent for too long.

        Raises:
            Failed: it is silent.
        """
        while not ended() and not (self.faults and time.monotonic() - self.marks["fault"] > 0.3):
            for due, asked in list(self._later):
                if due <= time.monotonic():
                    self._later.remove((due, asked))
                    self.reply(asked)
            if self._socket.poll(10):
                self.heard = time.monotonic()
                self._take(self._socket.recv_multipart())
                if self.faults:
                    self.marks.setdefault("fault", self.heard)
            elif time.monotonic() - self.heard > patience:
                last = f"{self.done} steps were done, and no request has come"
                raise Failed("requests until all frames are drawn", f"silence for {patience:g} s: {last}")

    def reply(self, asked: Asked, **more: Any) -> None:
        """Send the reply to a request."""
        assert asked.reply is not None
        if self._unanswered == asked.message.header["id"]:
            self._unanswered = None
        header = messages.reply_to(asked.message.header, **asked.reply, **more)
        self._send(asked, messages.pack(header, None if asked.frame is None else {"frame": asked.frame}))

    def later(self, seconds: float, asked: Asked) -> None:
        """Send the reply to a request after some seconds."""
        self._later.append((time.monotonic() + seconds, asked))

    def push(self, asked: Asked, header: Mapping[str, Any], frame: np.ndarray | None) -> None:
        """Push a message."""
        buffers = None if frame is None else {"frame": frame}
        self._send(asked, messages.pack({"v": protocol.VERSION, **header}, buffers))

    def forget(self) -> None:
        """Forget all connections, as a restarted host has."""
        self._greeted.clear()
        self.name, self.forgot = new_token(), True

    def restart(self) -> None:
        """Close the socket for a moment, and serve the same sessions again."""
        self._socket.close(linger=0)
        self.forget()
        time.sleep(0.2)
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 100
        for _ in range(100):
            try:
                self._socket.bind(self.address)
                return
            except zmq.ZMQError:
                time.sleep(0.05)
        raise Failed("the port to be free again", "somebody took it; run the check again")

    def _take(self, parts: list[bytes]) -> None:
        peer, enveloped = parts[0], len(parts) > 1 and not parts[1]
        parts = parts[2 if enveloped else 1 :]
        try:
            message = messages.unpack(parts)
            verb = messages.check_request(message)
        except ProtocolError as error:
            self.faults.append(f"a request that is not in order ({error.code}): {error}")
            header = messages.error_to(_header(parts), error)
            self._send(Asked(peer, enveloped, Message({}), parts), messages.pack(header))
            return
        asked = self._note(Asked(peer, enveloped, message, parts))
        error = None
        if verb != "hello" and peer not in self._greeted:
            if not self.forgot:
                self.faults.append(f"{verb} came before hello on a new connection")
            error = {"code": "hello-first", "message": "say hello."}
        error = error or self.trouble.refuse(self, asked)
        if error is None and (asked.reply is None or verb == "hello"):  # hello is done anew on each connection
            error = self._do(asked)
        if error is None:
            self.trouble.answer(self, asked)
            return
        if self._unanswered == message.header["id"]:
            self._unanswered = None
        self._send(asked, messages.pack(messages.reply_to(message.header, error=error)))

    def _note(self, asked: Asked) -> Asked:
        """Log a request; a repeated one gets the reply of the first."""
        header = asked.message.header
        known = self._book.get(header["id"])
        if known is not None and (known.message.header != header or known.parts[1:] != asked.parts[1:]):
            self.faults.append(f"the id {header['id']} came again with another body: {brief(header)}")
            known = None
        if known is not None:
            asked.times, asked.turn, asked.reply, asked.frame = known.times + 1, known.turn, known.reply, known.frame
            if asked.times == MOST_TRIES:
                self.faults.append(f"{asked.verb} came {MOST_TRIES} times; expected a pause before it is sent again")
        elif asked.verb != "hello" and header["id"] < self._highest:
            self.faults.append(f"the new id {header['id']} came after {self._highest}; expected a higher one")
        if asked.verb != "hello":  # hello may overtake a lost request
            self._highest = max(self._highest, header["id"])
        if known is None and asked.verb == "step":
            if self._unanswered is not None:
                self.faults.append(
                    f"a step came while the one before, id {self._unanswered}, had no reply yet: expected that the "
                    "client waits, sends the same again if it must, and takes no other message for the reply"
                )
            asked.turn, self._unanswered = self.done + 1, header["id"]
        self._book[header["id"]] = asked
        return asked

    def _do(self, asked: Asked) -> dict[str, Any] | None:
        """Do a request, and store its reply with it; return an error if it cannot be done."""
        header, verb = asked.message.header, asked.verb
        if verb == "hello":
            if self.client not in ("", header["client"]):
                self.faults.append("hello with another client token than before; expected the same for all connections")
            self.client = header["client"]
            self._greeted.add(asked.peer)
            asked.reply = self._hello()
            return None
        if verb == "open":
            return self._open(asked)
        tokens = header.get("sessions") or ([header["session"]] if "session" in header else [])
        unknown = [token for token in tokens if token not in self.sessions]
        if unknown and verb not in ("close", "close_batch"):
            self.faults.append(f"{verb} of a session that there is not")
            return {"code": "no-session", "message": "no session goes by that token."}
        if verb in ("close", "close_batch", "keep", "unwatch", "drop"):
            asked.reply = {}
            for token in tokens if verb.startswith("close") else ():
                self.sessions.pop(token, None)
            return None
        if verb == "stats":
            asked.reply = {"stats": {}}
            return None
        if verb not in ("step", "reset", "prompt", "render", "watch", "input") or "session" not in header:
            return {"code": "unsupported", "message": "this host is made up; it can open, step, reset and close."}
        return self._play(asked, self.sessions[header["session"]])

    def _open(self, asked: Asked) -> dict[str, Any] | None:
        if asked.message.header.get("world") not in (None, self.world["name"]):
            return {"code": "no-world", "message": f"this host serves {self.world['name']}."}
        if self.sessions:
            self.faults.append("a second session was opened, under another id; expected one")
        session = Session(new_token())
        self.sessions[session.token] = session
        session.prompt = asked.message.header.get("prompt") or session.prompt
        state = {"step": session.step, "prompt": session.prompt}
        asked.reply = {"session": session.token, "watch": new_token(), "world": self.world["name"], **state}
        asked.frame = made_up(session.step)
        return None

    def _play(self, asked: Asked, session: Session) -> dict[str, Any] | None:
        header, verb = asked.message.header, asked.verb
        if verb in ("step", "input") and (wrong := self._wrong_action(asked.message)):
            self.faults.append(f"{verb}: {wrong}")
            return {"code": "bad-action", "message": wrong}
        if verb == "step":
            if header["step"] != session.step:
                self.faults.append(
                    f"step {header['step']} under the new id {header['id']}, but the session has {session.step}: "
                    "expected the number of the last reply, and the same id where a request is sent again"
                )
                return {"code": "out-of-order", "message": "another step is next.", "step": session.step}
            session.step, self.done = session.step + 1, self.done + 1
            asked.reply = {"step": session.step, "reward": 1.0, "ended": 0.125, "terminated": False, "truncated": False}
        elif verb == "input":
            asked.reply = {"step": session.step}
        else:
            session.step = 1 if verb == "reset" else session.step
            session.prompt = header.get("prompt") or session.prompt
            asked.reply = {"step": session.step, "prompt": session.prompt}
            if verb in ("render", "watch"):
                asked.reply |= {"role": "owner", "world": self.world["name"]}
            asked.reply |= {"fps": 0.0} if verb == "watch" else {}
        asked.frame = made_up(session.step) if verb in ("step", "reset", "render") else None
        return None

    def _wrong_action(self, message: Message) -> str:
        """Say what is wrong with the action of a request, if anything."""
        header, buffer = message.header, message.buffers.get("action")
        found = [value for value in (header.get("action"), header.get("keys"), buffer) if value is not None]
        if len(found) != 1:
            return f"expected one of action, keys, buffer action; came {len(found)}"
        if header.get("keys") is not None:
            unknown = [key for key in header["keys"].split("+") if key and key not in KEYS]
            return f"keys that the world does not know: {unknown}; expected of {', '.join(KEYS)}" if unknown else ""
        value = found[0]
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.item()
        good = isinstance(value, int) and not isinstance(value, bool) and value in (0, 1)
        return "" if good else f"expected an action that is 0 or 1; came {brief(value)}"

    def _hello(self) -> dict[str, Any]:
        limits = {"sessions": 16, "snapshots": 16, "rate": 10000.0, "message_bytes": 2**20}
        said = {"host": self.name, "software": "worldsim check_client", "worlds": [dict(self.world)]}
        return said | {"lease": 60.0, "limits": limits, "encodings": ["raw"]}

    def _send(self, asked: Asked, parts: list[Any]) -> None:
        self._socket.send_multipart([asked.peer, *([b""] if asked.enveloped else []), *parts])


def made_up(step: int) -> np.ndarray:
    """Make up the frame of a step."""
    height, width = WORLD["frame_size"]
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 0], frame[..., 1] = np.arange(width) * 4, 9 * step % 256
    frame[:, step % width] = 255
    return frame


def _header(parts: Sequence[bytes]) -> dict[str, Any]:
    try:
        return messages.read_header(parts)
    except ProtocolError:
        return {}
