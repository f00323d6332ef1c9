"""A service under fire, without sockets and with them: it answers all, leaks nothing, and steps no world wrongly."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosting import HostProcess, drive
from nonsense import fuzz, nonsense

from worldsim.bridges.frames import SharedFolder
from worldsim.bridges.host.checkpoints import Checkpoints
from worldsim.bridges.host.dispatch import receive
from worldsim.bridges.host.records import ServiceConfig
from worldsim.bridges.host.service import Service
from worldsim.bridges.messages import Message, pack, unpack
from worldsim.bridges.protocol import ERRORS
from worldsim.engine.engine import Engine
from worldsim.world import World

CODES = 12  # of the protocol's errors that a storm must have met: it goes on until it has
LEAST, MOST = 3000, 12_000  # messages of a storm


@pytest.fixture
def engine(world_path: Path) -> Iterator[Engine]:
    engine = Engine(World.from_pretrained(world_path), runtime="eager", threads=1, max_sessions=24)
    yield engine
    engine.close()


def consistent(service: Service) -> None:
    """What must hold between any two messages."""
    served = service.worlds["CartPole-v1"]
    assert {hosted.number for hosted in service.sessions.values()} == set(served.engine.sessions)
    tokens = {token for hosted in service.sessions.values() for token in hosted.tokens()}
    assert set(service.tokens) == tokens
    assert set(map(id, service.born.values())) == set(map(id, service.sessions.values()))
    waiting = {id(hosted) for pending in served.pending for hosted in pending.sessions}
    assert waiting == {id(hosted) for hosted in service.sessions.values() if hosted.pending}
    assert len(service.snapshots) <= len(service.clients) * service.config.snapshots


def test_storm(engine: Engine, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    sent: list[tuple[bytes, Message]] = []

    def send(peer: bytes, parts: list[Any]) -> bool:
        if peer != b"good" and rng.random() < 0.01:
            raise LookupError(peer)  # gone
        sent.append((peer, unpack([bytes(part) for part in parts])))
        return rng.random() < 0.95  # sometimes too slow to take it

    shared, checkpoints = SharedFolder(), Checkpoints(tmp_path, every=0.05)
    config = ServiceConfig(sessions=10, snapshots=3, lease=1e6, rate=1e9, wait_ms=0)
    service = Service({"CartPole-v1": engine}, send, config, checkpoints, shared)

    # One session is played by the rules all the while; nobody else knows its token.
    receive(service, b"good", pack({"v": 1, "id": 1, "verb": "hello", "client": "the-good-one"}))
    receive(service, b"good", pack({"v": 1, "id": 2, "verb": "open", "seed": 5, "prompt": "a cart"}))
    (good,) = service.sessions.values()
    actions, frames = drive(MOST // 50), []
    secret = set(good.tokens())
    answered, codes, count, heard = 0, set[str](), 0, 0
    for count in range(MOST):
        codes |= {message.header["error"]["code"] for _, message in sent[heard:] if "error" in message.header}
        heard = len(sent)
        if count >= LEAST and len(codes) >= CODES:
            break
        peer = rng.choice([b"a", b"b", b"c"])
        if count % 400 == 0:
            for name in (b"a", b"b", b"c"):
                receive(service, name, pack({"v": 1, "id": 1, "verb": "hello", "client": f"client-{name.decode()}"}))
        tokens = [token for token in [*service.tokens, *service.snapshots] if token not in secret]
        before = len(sent)
        receive(service, peer, nonsense(rng, tokens, 10 + count))
        answered += len(sent) - before
        if rng.random() < 0.3:
            service.draw()
        if rng.random() < 0.1:
            service.tidy()
        consistent(service)
        if count % 50 == 0:
            if b"good" not in service.peers:
                receive(service, b"good", pack({"v": 1, "id": 1, "verb": "hello", "client": "the-good-one"}))
            now = engine.sessions[good.number].step
            step = {"v": 1, "id": 10**6 + count, "verb": "step", "session": good.token, "step": now}
            for _ in range(3):  # sent again and again, drawn once
                receive(service, b"good", pack(step | {"action": actions[count // 50]}))
                service.draw()
            assert engine.sessions[good.number].step == now + 1
            frames.append(engine.sessions[good.number].frame)
    assert codes <= set(ERRORS) and "failed" not in codes
    assert answered > count * 2 // 3 and len(codes) >= CODES
    assert sum("error" not in message.header for _, message in sent) > 200  # much of it was right
    for hosted in list(service.sessions.values()):
        service.remove(hosted, "end")
    for token in list(service.snapshots):
        service.drop(token)
    assert engine.sessions == {} and [p for p in tmp_path.iterdir() if p.name != "snapshots"] == []
    assert list((tmp_path / "snapshots").iterdir()) == []
    shared.close()
    checkpoints.close()
    number = engine.open(seed=5, prompt="a cart")
    for action, frame in zip(actions[: len(frames)], frames, strict=True):
        assert np.array_equal(engine.step({number: action})[number].frame, frame)


def test_storm_over_sockets(host: HostProcess) -> None:
    report = fuzz(host.address, host.process.pid, messages=4000, seed=random.SystemRandom().randrange(10**6))
    print(report)
    assert host.process.poll() is None
    assert report["equal"] and report["sessions_left"] <= report["unsent"]
