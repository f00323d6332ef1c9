"""A host's service on a real engine, without sockets: requests go in, replies come out, in one process."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosting import digest

from worldsim.bridges.host.checkpoints import Checkpoints
from worldsim.bridges.host.dispatch import receive
from worldsim.bridges.host.records import ServiceConfig
from worldsim.bridges.host.resume import resume
from worldsim.bridges.host.service import Service
from worldsim.bridges.messages import Message, pack, unpack
from worldsim.engine.engine import Engine

WORLD = "CartPole-v1"


class ServiceLab:
    """A service whose messages are collected.

    Args:
        engine: real.
        folder: of checkpoints; None for none.
        resumed: whether the sessions there go on.
        config: limits.
    """

    def __init__(
        self, engine: Engine, folder: Path | None = None, resumed: bool = False, config: ServiceConfig | None = None
    ) -> None:
        self.engine, self.sent = engine, list[tuple[bytes, Message]]()
        self.checkpoints = Checkpoints(folder, every=0) if folder else None
        config = config or ServiceConfig(lease=1e6, rate=1e9, wait_ms=0)
        self.service = Service({WORLD: engine}, self._send, config, self.checkpoints)
        if resumed:
            resume(self.service)
        self._last = 10

    def _send(self, peer: bytes, parts: list[Any]) -> bool:
        self.sent.append((peer, unpack([bytes(part) for part in parts])))
        return True

    def hello(self, peer: bytes, token: str | None = None) -> dict[str, Any]:
        """Introduce a client."""
        return self.ask(peer, "hello", client=token or f"client-{peer.decode()}")

    def send(self, peer: bytes, verb: str, buffers: Mapping[str, Any] | None = None, **fields: Any) -> int:
        """Send a request and return its id."""
        self._last += 1
        receive(self.service, peer, pack({"v": 1, "id": self._last, "verb": verb, **fields}, buffers))
        return self._last

    def answer(self, peer: bytes, number: int) -> Message:
        """Draw until a reply comes."""
        for _ in range(2000):
            found = [message for to, message in self.sent if to == peer and message.header["id"] == number]
            if found:
                return found[-1]
            self.service.draw()
        raise AssertionError(f"no reply to request {number}")

    def ask(self, peer: bytes, verb: str, buffers: Mapping[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        """Send a request, and wait for the header of its reply."""
        self.sent.clear()
        return self.answer(peer, self.send(peer, verb, buffers, **fields)).header

    def code(self, *words: Any, **fields: Any) -> str:
        """The code of a refusal, or "ok"."""
        return self.ask(*words, **fields).get("error", {}).get("code", "ok")

    def close(self) -> None:
        """Close the sessions; what is on disk stays."""
        self.service.stop_jobs()
        for hosted in list(self.service.sessions.values()):
            self.service.remove(hosted, "end", forget=False)
        for stored in self.service.snapshots.values():
            if not isinstance(stored.snapshot, Path):
                stored.snapshot.close()


class Victim:
    """A client that plays by the rules, and knows the frames that it must see.

    Args:
        lab: where it plays.
        steps: that it will play at most.
        name: its connection.
    """

    def __init__(self, lab: ServiceLab, steps: int, name: bytes = b"victim") -> None:
        number = lab.engine.open(seed=5, prompt="a cart")
        self._frames = [digest(lab.engine.step({number: step % 2})[number].frame) for step in range(steps)]
        lab.engine.close(number)
        self.lab, self.name, self.done = lab, name, 0
        lab.hello(name, "the-good-one")
        about = lab.ask(name, "open", seed=5, prompt="a cart")
        self.token, self.step = about["session"], about["step"]

    def play(self) -> None:
        """One step, whose frame must be the right one."""
        self.ask()
        self.see()

    def ask(self) -> None:
        """Ask for a frame."""
        self._asked = self.lab.send(self.name, "step", session=self.token, step=self.step, action=self.done % 2)

    def see(self) -> None:
        """Get the frame."""
        reply = self.lab.answer(self.name, self._asked)
        assert "error" not in reply.header, reply.header
        assert digest(np.asarray(reply.buffers["frame"])) == self._frames[self.done]
        self.step, self.done = reply.header["step"], self.done + 1


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    """No file may grow beyond `room` bytes: the system refuses, and writes what fits, as where a disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def no_files() -> Iterator[None]:
    """Not one more file can be opened."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    probe = os.open("/dev/null", os.O_RDONLY)
    os.close(probe)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe, before[1]))
    try:
        with pytest.raises(OSError) as caught:
            os.open("/dev/null", os.O_RDONLY)
        assert caught.value.errno == errno.EMFILE
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
