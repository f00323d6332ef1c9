"""The scheduler: batches fill, nobody starves, nobody is spoilt by another's mistake."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, wait

import numpy as np
import pytest

from worldsim.engine.engine import Engine
from worldsim.engine.records import SessionSpec
from worldsim.engine.scheduler import Scheduler
from worldsim.errors import ActionError, ConfigError, EngineFull, SessionError
from worldsim.world import World


@pytest.fixture
def engine(world: World) -> Iterator[Engine]:
    found = Engine(world, threads=1, memory_mb=64, max_sessions=20)
    yield found
    found.close()


def test_callers_get_what_they_would_get_alone(world: World, engine: Engine) -> None:
    """Eight threads, each stepping its own session as fast as answers come."""
    numbers = engine.open_all([SessionSpec(seed=i) for i in range(8)])
    frames: dict[int, list[np.ndarray]] = {n: [] for n in numbers}

    def run(number: int) -> None:
        for turn in range(12):
            frames[number].append(scheduler.step(number, turn % 2).result(timeout=60).frame)

    with Scheduler(engine, wait_ms=20) as scheduler:
        callers = [threading.Thread(target=run, args=(n,)) for n in numbers]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    solo = Engine(world, threads=1)
    for seed, number in enumerate(numbers):
        again = solo.open(seed=seed)
        expected = [solo.step({again: turn % 2})[again].frame for turn in range(12)]
        assert all(np.array_equal(a, b) for a, b in zip(expected, frames[number], strict=True))
    assert engine.counts.steps < 8 * 12 / 3  # batches did fill


def test_a_batch_does_not_wait_once_all_have_asked(engine: Engine) -> None:
    numbers = engine.open_all([SessionSpec(seed=i) for i in range(3)])
    with Scheduler(engine, wait_ms=60_000) as scheduler:
        futures = [scheduler.step(n, 0) for n in numbers]
        assert {future.result(timeout=30).step for future in futures}
    assert engine.counts.steps == 1


def test_waiting_is_bounded(engine: Engine) -> None:
    numbers = engine.open_all([SessionSpec(seed=i) for i in range(3)])
    with Scheduler(engine, wait_ms=30) as scheduler:
        scheduler.step(numbers[0], 0).result(timeout=30)  # the others never ask


def test_nobody_starves(engine: Engine) -> None:
    """With room for two in a batch and greedy sessions, each session still gets its turn."""
    numbers = engine.open_all([SessionSpec(seed=i) for i in range(5)])
    order: list[int] = []
    with Scheduler(engine, wait_ms=0, largest=2) as scheduler:
        gate = threading.Event()
        scheduler.call(lambda _: gate.wait(30))
        greedy = [scheduler.step(n, 0) for n in numbers[:4] for _ in range(5)]
        patient = scheduler.step(numbers[4], 0)
        for future, name in [(future, 0) for future in greedy] + [(patient, 1)]:
            future.add_done_callback(lambda _, name=name: order.append(name))
        gate.set()
        wait([*greedy, patient], timeout=60)
    assert order.index(1) < 8  # twenty greedy requests were there before it, of four sessions


def test_steps_of_a_session_keep_their_order(engine: Engine) -> None:
    number = engine.open(seed=1)
    first = engine.sessions[number].step
    with Scheduler(engine, wait_ms=0) as scheduler:
        futures = [scheduler.step(number, turn % 2) for turn in range(6)]
        assert [future.result(timeout=30).step for future in futures] == [first + 1 + i for i in range(6)]


def test_mistakes_are_their_makers_own(engine: Engine) -> None:
    good, bad = engine.open(seed=1), engine.open(seed=2)
    with Scheduler(engine, wait_ms=50) as scheduler:
        futures = [scheduler.step(good, 0), scheduler.step(bad, 9), scheduler.step(777, 0)]
        assert futures[0].result(timeout=30).frame.any()
        with pytest.raises(ActionError):
            futures[1].result(timeout=30)
        with pytest.raises(SessionError):
            futures[2].result(timeout=30)
        assert scheduler.call(lambda e: e.fork(good)).result(timeout=30) in engine.sessions
        with pytest.raises(EngineFull):
            scheduler.call(lambda e: e.open_all([SessionSpec()] * 50)).result(timeout=30)
        scheduler.step(bad, 0).result(timeout=30)


def test_closing_answers_everybody(engine: Engine) -> None:
    number = engine.open(seed=1)
    other = engine.open(seed=2)
    scheduler = Scheduler(engine, wait_ms=60_000)
    gate = threading.Event()
    scheduler.call(lambda _: gate.wait(30))
    time.sleep(0.05)
    waiting, cancelled = scheduler.step(number, 0), scheduler.step(other, 0)
    called: Future[None] = scheduler.call(lambda _: None)
    assert cancelled.cancel()
    closing = threading.Thread(target=scheduler.close)
    closing.start()
    time.sleep(0.05)
    gate.set()
    closing.join()
    for future in (waiting, called):
        try:
            future.result(timeout=5)
        except SessionError:
            continue
    with pytest.raises(CancelledError):
        cancelled.result(timeout=5)
    with pytest.raises(SessionError, match="was closed"):
        scheduler.step(number, 0)
    for bad in ({"wait_ms": -1}, {"largest": 0}):
        with pytest.raises(ConfigError):
            Scheduler(engine, **bad)  # type: ignore[arg-type]
