"""Clocks of a host go for those who look or steer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from service_lab import ServiceLab

from worldsim.engine.engine import Engine
from worldsim.world import World


@pytest.fixture
def engine(world_path: Path) -> Iterator[Engine]:
    engine = Engine(World.from_pretrained(world_path), runtime="eager", threads=1, max_sessions=64)
    yield engine
    engine.close()


@pytest.mark.parametrize("page", ["closed", "hidden", "open", "steered"])
def test_a_clock_goes_on_for_those_who_look(engine: Engine, page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames of a closed tab, or of one that takes none, are drawn for no one; who comes back goes on from there."""
    lab = ServiceLab(engine)
    lab.hello(b"page")
    opened = lab.ask(b"page", "open", seed=1)
    token, now = opened["session"], time.monotonic()
    lab.ask(b"page", "watch", session=token, credits=1000 if page == "open" else 1)
    lab.ask(b"page", "run", session=token, fps=1000)
    if page == "closed":
        lab.service.leave(b"page")

    def frames(later: float, count: int = 30) -> int:
        """How many frames are drawn some seconds later."""
        monkeypatch.setattr(time, "monotonic", lambda: now + later)
        before = lab.service.record(lab.service.sessions[token]).step
        for i in range(count):
            monkeypatch.setattr(time, "monotonic", lambda i=i: now + later + i / 1000)
            lab.service.draw()
        return lab.service.record(lab.service.sessions[token]).step - before

    assert frames(1) > 10, "for a while the clock goes on, as a connection may be on its way"
    if page == "steered":
        monkeypatch.setattr(time, "monotonic", lambda: now + 50)
        lab.ask(b"page", "input", session=token, action=1)
    assert (frames(55) > 10) == (page in ("open", "steered"))
    if page in ("closed", "hidden"):
        assert lab.service.patience(now + 55) > 0.5, "a host with nothing to do does nothing"
        lab.hello(b"again", token="client-page")
        lab.ask(b"again", "watch", session=token, credits=3)
        assert frames(56) > 10
    lab.ask(b"page" if page in ("open", "steered") else b"again", "close", session=token)
