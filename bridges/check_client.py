"""Whether a client keeps to the protocol: `python -m worldsim.bridges.check_client -- my-client {address} {frames}`.

For authors of clients. A made-up host is started, and the client with it: it must say hello, open one session, step it
as many frames as it is told, one after the other, and end. It is told the address and the number in place of {address}
and {frames}, and in WORLDSIM_ADDRESS and WORLDSIM_FRAMES. It is run once for each check; in most of them the host does
what networks and hosts do on bad days. Frames are made up too, so nothing but numpy and pyzmq is needed.
Past 400 lines, because each check and the host's misbehaviour that it needs are read together.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zmq

from worldsim.bridges import protocol
from worldsim.bridges.checks import Failed, Result, attempt, brief
from worldsim.bridges.hosted import new_token
from worldsim.bridges.protocol import Message
from worldsim.errors import ProtocolError

FRAMES = 8  # fewer would end before the troubles do
MOST_TRIES = 200  # of one request; more is hammering
KEYS = ("left", "right")
WORLD = {
    "name": "made-up",
    "frame_size": [40, 56],  # not square, so that who mixes up height and width sees it
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
    """A request that came.

    Attributes:
        times: how often it has come by now.
        turn: of a step, the how manieth new one of the run it is, from 1; else 0.
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
        """What is asked."""
        return self.message.header["verb"]


class Trouble:
    """What goes wrong in a run; nothing, in this one.

    Attributes:
        may_end: whether the client may end before its time.
    """

    may_end = False

    def refuse(self, host: ScriptedHost, asked: Asked) -> dict[str, Any] | None:
        """An error in place of doing what is asked."""

    def answer(self, host: ScriptedHost, asked: Asked) -> None:
        """Send the reply to what was done."""
        host.reply(asked)


class Plain(Trouble):
    """A session is opened and stepped, and every request is in order."""


class UnknownField(Trouble):
    """Replies with fields that are not known yet are taken as the others."""

    def answer(self, host: ScriptedHost, asked: Asked) -> None:
        """Add some."""
        host.reply(asked, colour="blue", more={"depth": [1, 2, None]})


class Lost(Trouble):
    """A request whose reply is lost is sent again: the same id, the same body."""

    def __init__(self, verb: str, *turns: int, times: int = 1) -> None:
        """Lose the replies to a verb, of those steps, so many times."""
        self.verb, self.turns, self.times = verb, turns or (0,), times

    def answer(self, host: ScriptedHost, asked: Asked) -> None:
        """Lose it."""
        if asked.verb != self.verb or asked.turn not in self.turns or asked.times > self.times:
            host.reply(asked)


class Late(Trouble):
    """A reply that comes late and twice is taken once, and not for that to the next request."""

    def __init__(self) -> None:
        """Nothing is held back yet."""
        self.first: Asked | None = None

    def answer(self, host: ScriptedHost, asked: Asked) -> None:
        """Keep the reply back until the request comes again, then send it to both, and once more."""
        if asked.turn == 3 and asked.times == 1:
            self.first = asked
        elif asked.turn == 3 and self.first is not None:
            for one in (self.first, asked, asked):
                host.reply(one)
        elif asked.turn == 4 and asked.times == 1:
            host.later(0.4, asked)
        else:
            host.reply(asked)


class Forgotten(Trouble):
    """On hello-first the client says hello with the token it had, and goes on."""

    def refuse(self, host: ScriptedHost, asked: Asked) -> dict[str, Any] | None:
        """Forget everyone, as a host that was started anew has."""
        if asked.turn == 3 and asked.times == 1 and not host.forgot:
            host.forget()
            return {"code": "hello-first", "message": "say hello."}
        return None


class TooFast(Trouble):
    """On too-fast the client waits for as long as it is told, and asks again."""

    wait = 0.5

    def refuse(self, host: ScriptedHost, asked: Asked) -> dict[str, Any] | None:
        """Refuse one step, and whoever comes too early."""
        if asked.verb != "step" or asked.turn < 3 or host.done >= 4:
            return None
        since = time.monotonic() - host.marks.setdefault("too-fast", time.monotonic())
        if since >= 0.8 * self.wait:
            return None
        if since > 0.001:
            host.faults.append(f"asked again after {since:.2f} s; expected: after {self.wait} s, as the error said")
        return {"code": "too-fast", "message": "wait.", "wait": self.wait}


class Stopping(Trouble):
    """On stopping the client asks again after a pause, until the host is back."""

    def refuse(self, host: ScriptedHost, asked: Asked) -> dict[str, Any] | None:
        """Say so for a while."""
        if asked.turn < 3 or time.monotonic() - host.marks.setdefault("stopping", time.monotonic()) > 0.6:
            return None
        host.tries["stopping"] += 1
        if host.tries["stopping"] == 100:
            host.faults.append("asked 100 times within 0.6 s; expected a pause before each")
        return {"code": "stopping", "message": "back in a moment."}


class Error(Trouble):
    """After an error the client does not go on as if it had a frame; it may end."""

    may_end = True

    def refuse(self, host: ScriptedHost, asked: Asked) -> dict[str, Any] | None:
        """Fail once."""
        if asked.turn != 3 or host.tries["error"]:
            return None
        host.tries["error"] += 1
        return {"code": "failed", "message": "made up."}


class Push(Trouble):
    """A push that nobody asked for is not taken for the reply, whatever its id."""

    def __init__(self, verb: str) -> None:
        """Of a kind."""
        self.verb = verb

    def answer(self, host: ScriptedHost, asked: Asked) -> None:
        """Push it while the client waits; the reply comes later."""
        if asked.turn not in (3, 5) or asked.times > 1:
            host.reply(asked)
            return
        fields, frame = {"resume": True}, None
        if self.verb == "frame":
            step = {"session": new_token(), "step": 4711, "reward": 0.5, "ended": 0.0}
            fields = step | {"terminated": False, "truncated": False, "prompt": "", "credits": 0, "dropped": 0}
            frame = made_up(0)
        host.push(asked, {"id": asked.message.header["id"], "verb": self.verb, **fields}, frame)
        host.later(0.3, asked)


class OtherSize(Trouble):
    """Frames of another size than hello said are shown, or end the client; they do not confuse it."""

    may_end = True

    def answer(self, host: ScriptedHost, asked: Asked) -> None:
        """Twice as large."""
        if asked.frame is not None and asked.turn >= 3:
            asked.frame = asked.frame.repeat(2, 0).repeat(2, 1)
        host.reply(asked)


class Restart(Trouble):
    """A host that is started anew at the same address is found again, and the session goes on."""

    def answer(self, host: ScriptedHost, asked: Asked) -> None:
        """Start anew after a reply, and later before one."""
        if asked.turn == 3 and asked.times == 1:
            host.reply(asked)
            time.sleep(0.1)  # so that it goes out
            host.restart()
        elif asked.turn == 5 and asked.times == 1:
            host.restart()
        else:
            host.reply(asked)


TROUBLES: dict[str, Callable[[], Trouble]] = {
    "plain": Plain,
    "unknown-field": UnknownField,
    "lost-hello": lambda: Lost("hello"),
    "lost-open": lambda: Lost("open"),
    "lost-step": lambda: Lost("step", 3, 6),
    "lost-twice": lambda: Lost("step", 4, times=2),
    "late-and-twice": Late,
    "hello-first": Forgotten,
    "too-fast": TooFast,
    "stopping": Stopping,
    "error": Error,
    "push-frame": lambda: Push("frame"),
    "push-bye": lambda: Push("bye"),
    "other-size": OtherSize,
    "restart": Restart,
}


@dataclass
class Session:
    """What the host keeps of one."""

    token: str
    step: int = 1
    prompt: str = "a cart"


@dataclass
class ScriptedHost:
    """Serves made-up frames to one client, keeps book of all that it asks, and has its troubles.

    Attributes:
        faults: what the client did wrong.
        done: steps that were done.
        forgot: whether connections were forgotten that were made before.
        heard: when the last message came.
        marks: when something began.
        tries: how often something was tried.
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
        """Let go of the socket."""
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

    # What troubles do.

    def reply(self, asked: Asked, **more: Any) -> None:
        """Send the reply to a request."""
        assert asked.reply is not None
        if self._unanswered == asked.message.header["id"]:
            self._unanswered = None
        header = protocol.reply_to(asked.message.header, **asked.reply, **more)
        self._send(asked, protocol.pack(header, None if asked.frame is None else {"frame": asked.frame}))

    def later(self, seconds: float, asked: Asked) -> None:
        """Send the reply in a while."""
        self._later.append((time.monotonic() + seconds, asked))

    def push(self, asked: Asked, header: Mapping[str, Any], frame: np.ndarray | None) -> None:
        """Send what was not asked for."""
        buffers = None if frame is None else {"frame": frame}
        self._send(asked, protocol.pack({"v": protocol.VERSION, **header}, buffers))

    def forget(self) -> None:
        """Know no connection any more."""
        self._greeted.clear()
        self.name, self.forgot = new_token(), True

    def restart(self) -> None:
        """Be gone for a moment, and come back with the same sessions."""
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

    # What is asked.

    def _take(self, parts: list[bytes]) -> None:
        peer, enveloped = parts[0], len(parts) > 1 and not parts[1]
        parts = parts[2 if enveloped else 1 :]
        try:
            message = protocol.unpack(parts)
            verb = protocol.check_request(message)
        except ProtocolError as error:
            self.faults.append(f"a request that is not in order ({error.code}): {error}")
            header = protocol.error_to(_header(parts), error)
            self._send(Asked(peer, enveloped, Message({}), parts), protocol.pack(header))
            return
        asked = self._note(Asked(peer, enveloped, message, parts))
        error = None
        if verb != "hello" and peer not in self._greeted:
            if not self.forgot:
                self.faults.append(f"{verb} came before hello on a new connection")
            error = {"code": "hello-first", "message": "say hello."}
        error = error or self.trouble.refuse(self, asked)
        if error is None and (asked.reply is None or verb == "hello"):  # hello is of each connection
            error = self._do(asked)
        if error is None:
            self.trouble.answer(self, asked)
            return
        if self._unanswered == message.header["id"]:
            self._unanswered = None
        self._send(asked, protocol.pack(protocol.reply_to(message.header, error=error)))

    def _note(self, asked: Asked) -> Asked:
        """Write a request down; one that came before comes with what it got."""
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
        if asked.verb != "hello":  # which may overtake a request that was lost on its way
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
        """Do what is asked, or say why not; what there is to say is kept with the request."""
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
        """What is wrong with the action of a request, if anything."""
        header, buffer = message.header, message.buffers.get("action")
        given = [value for value in (header.get("action"), header.get("keys"), buffer) if value is not None]
        if len(given) != 1:
            return f"expected one of action, keys, buffer action; came {len(given)}"
        if header.get("keys") is not None:
            unknown = [key for key in header["keys"].split("+") if key and key not in KEYS]
            return f"keys that the world does not know: {unknown}; expected of {', '.join(KEYS)}" if unknown else ""
        value = given[0]
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


class Client:
    """The client under test, while it runs.

    Args:
        run: a command, or a function of the address.
        address: of the host.
        frames: that it is to draw.
    """

    def __init__(self, run: Sequence[str] | Callable[[str], None], address: str, frames: int) -> None:
        """Start it."""
        self.said = tempfile.TemporaryFile()
        self.error = ""
        self.process: subprocess.Popen[bytes] | None = None
        if not callable(run):
            words = [word.replace("{address}", address).replace("{frames}", str(frames)) for word in run]
            told = os.environ | {"WORLDSIM_ADDRESS": address, "WORLDSIM_FRAMES": str(frames)}
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=self.said, stderr=subprocess.STDOUT, env=told
            )
            return
        self.thread = threading.Thread(target=self._call, args=(run, address), daemon=True)
        self.thread.start()

    def ended(self) -> bool:
        """Whether it has come to its end."""
        return not self.thread.is_alive() if self.process is None else self.process.poll() is not None

    def end(self) -> str:
        """End it, if it has not ended by itself; how it ended, if not well."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            if self.process.wait():
                self.said.seek(0)
                lines = [line for line in self.said.read().decode(errors="replace").splitlines() if line.strip()]
                self.error = f"it ended with {self.process.returncode}: {lines[-1] if lines else 'no word'}"
        self.said.close()
        return self.error

    def _call(self, run: Callable[[str], None], address: str) -> None:
        try:
            run(address)
        except Exception as error:
            self.error = f"it raised {type(error).__name__}: {error}"


def made_up(step: int) -> np.ndarray:
    """A frame."""
    height, width = WORLD["frame_size"]
    frame = np.zeros((height, width, 3), np.uint8)
    frame[..., 0], frame[..., 1] = np.arange(width) * 4, 9 * step % 256
    frame[:, step % width] = 255
    return frame


def check_client(
    run: Sequence[str] | Callable[[str], None],
    frames: int = 12,
    world: str = "made-up",
    only: Sequence[str] = (),
    patience: float = 20.0,
    tell: Callable[[str], None] | None = None,
) -> list[Result]:
    """Check a client.

    Args:
        run: a command, in whose words {address} and {frames} are replaced; or a function that takes the address, opens
            a session, steps it `frames` times, and raises what goes wrong.
        frames: to draw, at least 8.
        world: its name.
        only: names of checks; all by default.
        patience: seconds without a request after which the client is given up; more than it waits for a reply.
        tell: takes a line for each check when it is done.

    Raises:
        ValueError: there is no such check, or too few frames.
    """
    if unknown := set(only) - set(TROUBLES):
        raise ValueError(f"there are no checks called {sorted(unknown)}; allowed: {', '.join(TROUBLES)}.")
    if frames < FRAMES:
        raise ValueError(f"frames is {frames}; allowed: at least {FRAMES}, so that all troubles come.")
    tokens: list[str] = []

    def watch(trouble: Trouble) -> str:
        host = ScriptedHost(trouble, WORLD | {"name": world})
        client = Client(run, host.address, frames)
        try:
            host.serve(client.ended, patience)
        except Failed as failure:
            host.faults.append(str(failure))
        finally:
            ending = client.end()
            host.close()
        return _verdict(host, ending, frames, tokens)

    results = []
    for name in only or TROUBLES:
        trouble = TROUBLES[name]()
        about = (type(trouble).__doc__ or "").splitlines()[0].rstrip(".")
        results.append(attempt(name, about, lambda trouble=trouble: watch(trouble), tell))
    return results


def _verdict(host: ScriptedHost, ending: str, frames: int, tokens: list[str]) -> str:
    """What is to be said of a run.

    Raises:
        Failed: something was wrong.
    """
    if not host.client:
        host.faults.append(f"expected a hello; came none. {ending}")
    elif host.client in tokens:
        host.faults.append("the client token is the same as in the run before; expected one made up at random")
    tokens.append(host.client)
    if host.faults:
        raise Failed("none of this", f"{'; '.join(dict.fromkeys(host.faults))}")
    early = host.trouble.may_end and host.done < frames
    if not early and (host.done != frames or ending):
        raise Failed(f"{frames} steps and a good end", f"{host.done} steps. {ending}")
    return f"{host.done} steps" + (f"; {ending or 'it ended'}" if early else "")


def _header(parts: Sequence[bytes]) -> dict[str, Any]:
    try:
        return protocol.read_header(parts)
    except ProtocolError:
        return {}


def main(words: Sequence[str] | None = None) -> int:
    """Check the client that a command starts; 0 if nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m worldsim.bridges.check_client", description=main.__doc__)
    parser.add_argument("command", nargs="+", help="its words, after --; {address} and {frames} are replaced")
    parser.add_argument("--frames", type=int, default=12, help=f"to draw, at least {FRAMES}")
    parser.add_argument("--world", default="made-up", help="name of the made-up world")
    parser.add_argument("--only", action="append", default=[], metavar="CHECK", choices=list(TROUBLES),
                        help=f"may be given again: {', '.join(TROUBLES)}")  # fmt: skip
    parser.add_argument("--patience", type=float, default=20.0, help="seconds of silence after which it is given up")
    given = parser.parse_args(words)
    tell = lambda line: print(line, flush=True)  # noqa: E731
    results = check_client(given.command, given.frames, given.world, given.only, given.patience, tell)
    counts = Counter(result.ok for result in results)
    print(f"{counts[True]} ok, {counts[False]} failed")
    return 1 if counts[False] else 0


if __name__ == "__main__":
    sys.exit(main())
