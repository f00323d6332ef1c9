"""Troubles of the runs of a client under test: what networks and hosts do on bad days."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from worldsim.bridges.conformance.scripted_host import (
    Asked,
    ScriptedHost,
    Trouble,
    made_up,
)
from worldsim.bridges.protocol import new_token


class Plain(Trouble):
    """A session is opened and stepped, and every request is in order."""


class UnknownField(Trouble):
    """Unknown fields in replies are ignored."""

    def answer(self, host: ScriptedHost, asked: Asked) -> None:
        """Add unknown fields to every reply."""
        host.reply(asked, colour="blue", more={"depth": [1, 2, None]})


class Lost(Trouble):
    """A request whose reply is lost is sent again: the same id, the same body."""

    def __init__(self, verb: str, *turns: int, times: int = 1) -> None:
        """Lose the replies to a verb `times` times, of some steps only."""
        self.verb, self.turns, self.times = verb, turns or (0,), times

    def answer(self, host: ScriptedHost, asked: Asked) -> None:
        """Lose the reply."""
        if asked.verb != self.verb or asked.turn not in self.turns or asked.times > self.times:
            host.reply(asked)


class Late(Trouble):
    """A late, repeated reply is not taken for the reply to the next request."""

    def __init__(self) -> None:
        """Begin with no delayed reply."""
        self.first: Asked | None = None

    def answer(self, host: ScriptedHost, asked: Asked) -> None:
        """Delay the reply until the request comes again, then send it for both, and once more."""
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
    """On hello-first the client says hello with the same token, and goes on."""

    def refuse(self, host: ScriptedHost, asked: Asked) -> dict[str, Any] | None:
        """Forget all connections once, as a restarted host has."""
        if asked.turn == 3 and asked.times == 1 and not host.forgot:
            host.forget()
            return {"code": "hello-first", "message": "say hello."}
        return None


class TooFast(Trouble):
    """On too-fast the client waits as long as the error says, and asks again."""

    wait = 0.5

    def refuse(self, host: ScriptedHost, asked: Asked) -> dict[str, Any] | None:
        """Refuse one step, and any request before the wait is over."""
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
        """Refuse requests for a while."""
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
        """Fail one step."""
        if asked.turn != 3 or host.tries["error"]:
            return None
        host.tries["error"] += 1
        return {"code": "failed", "message": "made up."}


class Push(Trouble):
    """An unexpected push is not taken for the reply, even with the id of the request."""

    def __init__(self, verb: str) -> None:
        """Push messages of one verb."""
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
    """Frames of another size than hello said are shown or end the client; they do not make it hang."""

    may_end = True

    def answer(self, host: ScriptedHost, asked: Asked) -> None:
        """Send frames of twice the size."""
        if asked.frame is not None and asked.turn >= 3:
            asked.frame = asked.frame.repeat(2, 0).repeat(2, 1)
        host.reply(asked)


class Restart(Trouble):
    """The client finds a restarted host again at the same address, and goes on with the session."""

    def answer(self, host: ScriptedHost, asked: Asked) -> None:
        """Restart once after a reply, and once before one."""
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
