"""All or nothing: exceptions in the caller's thread at any moment, and memory at the brink, leave sessions whole."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import worldsim.envs  # noqa: F401  -- registers the environments
from worldsim.engine.engine import Engine
from worldsim.engine.records import SessionSpec
from worldsim.engine.session import Snapshot
from worldsim.errors import EngineFull, SessionError
from worldsim.world import World

STEPS, TURNS = 24, 60


class Stopped(Exception):
    """What Ctrl-C, a timeout and a signal have in common."""


@contextmanager
def alarms() -> Iterator[Callable[[float], None]]:
    """Raise `Stopped` in this thread after so many seconds."""

    def stop(*_: Any) -> None:
        raise Stopped

    before = signal.signal(signal.SIGALRM, stop)
    try:
        yield lambda seconds: signal.setitimer(signal.ITIMER_REAL, seconds) and None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def interrupted(step: Callable[[], Any], alarm: Callable[[float], None], seconds: float) -> Any:
    """What a step gives, or None where it was interrupted."""
    try:
        alarm(seconds)
        found = step()
        alarm(0)
        return found
    except Stopped:
        return None
    finally:
        alarm(0)


@pytest.mark.parametrize("kind", ["single", "vector", "engine", "batch"])
def test_an_interrupted_step_happens_or_does_not(world: World, kind: str) -> None:
    """After an interrupt the session is before or after its step, with the frame that it should have there."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    engine = Engine(world, threads=1, memory_mb=8)
    count = 3 if kind in ("vector", "batch") else 1
    numbers: list[int] = []
    if kind == "single":
        env = gym.make("worldsim/World-v0", engine=engine).unwrapped
        env.reset(seed=1)
        step: Callable[[], Any] = lambda: env.step(1)  # noqa: E731
    elif kind == "vector":
        vector = gym.make_vec("worldsim/World-v0", num_envs=3, engine=engine).unwrapped
        vector.reset(seed=1)
        step = lambda: vector.step(np.ones(3, np.int64))  # noqa: E731
    else:
        numbers = [engine.open(seed=i) for i in range(count)]
        step = lambda: engine.step(dict.fromkeys(numbers, 1))  # noqa: E731
    twins = [engine.fork(number) for number in list(engine.sessions)]
    originals = [number for number in engine.sessions if number not in twins]
    truth = {number: [engine.sessions[number].frame] for number in originals}
    for _ in range(STEPS):
        drawn = engine.step(dict.fromkeys(twins, 1))
        for number, twin in zip(originals, twins, strict=True):
            truth[number].append(drawn[twin].frame)
    begun = {number: engine.sessions[number].step for number in originals}
    for twin in twins:
        engine.close(twin)
    used = engine.table.pool.used
    hits = 0
    with alarms() as alarm:
        for _ in range(TURNS):
            hits += interrupted(step, alarm, rng.uniform(1e-4, 8e-3)) is None
            engine.stats()  # waits until the engine is idle
            if max(engine.sessions[number].step - begun[number] for number in originals) >= STEPS:
                break
            for number in originals:
                found = engine.sessions[number]
                assert np.array_equal(found.frame, truth[number][found.step - begun[number]])
            assert len({engine.sessions[number].step - begun[number] for number in originals}) == 1
    assert hits > 3, "the alarms come too late"
    assert engine.table.pool.used <= used + len(originals) * engine.table.need
    for number in list(engine.sessions):
        engine.close(number)
    engine.close()
    assert engine.table.pool.used == 0


def test_an_interrupted_episode_ends_when_it_should(world: World) -> None:
    """The count towards truncation is no count of its own, which an interrupt could leave behind."""
    settings = {"max_episode_steps": 9, "threads": 1, "autoreset_mode": "Disabled"}
    env: Any = gym.make_vec("worldsim/World-v0", num_envs=2, world=world, **settings).unwrapped
    env.end_above = 2.0  # never by itself
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    env.reset(seed=1)
    before = [env.engine.sessions[number].step for number in env._sessions]
    with alarms() as alarm:
        for _ in range(100):
            try:
                done = interrupted(lambda: env.step(np.zeros(2, np.int64)), alarm, rng.uniform(1e-3, 2e-2))
                over = done is not None and done[3].all()
            except SessionError:  # the step that ended them was interrupted
                over = True
            env.engine.stats()
            steps = [env.engine.sessions[number].step - b for number, b in zip(env._sessions, before, strict=True)]
            assert max(steps) <= 9 and not (over and steps != [9, 9])
            if over:
                break
        else:
            pytest.fail("no episode ended")
    env.close()


def full(world: World) -> tuple[Engine, list[int]]:
    engine = Engine(world, threads=1, memory_mb=1, clips=1)
    numbers = []
    try:
        while True:
            numbers.append(engine.open(seed=len(numbers)))
    except EngineFull:
        pass
    for _ in range(engine.table.need + 2):
        engine.step(dict.fromkeys(numbers, 1))
    return engine, numbers


@pytest.mark.parametrize("kept", [0, 1, 5])
def test_restoring_into_a_full_engine(world: World, tmp_path: Path, kept: int) -> None:
    """From a file into a session whose engine has no room for one more; with snapshots held besides."""
    engine, numbers = full(world)
    for number in numbers[:kept]:
        engine.close(number)
    numbers = numbers[kept:]
    held = [engine.snapshot(number) for number in numbers[:kept]]
    engine.snapshot(numbers[0], share=False).save(tmp_path / "a.session")
    after = engine.step({numbers[0]: 0})[numbers[0]]
    for number in (*numbers[:2], numbers[0]):
        assert engine.restore(Snapshot.load(tmp_path / "a.session"), number) == number
        assert set(engine.step(dict.fromkeys(numbers[2:], 1))) == set(numbers[2:])
    again = engine.step({numbers[0]: 0})[numbers[0]]
    assert np.array_equal(after.frame, again.frame) and after.reward == again.reward
    if not kept:
        used = engine.table.pool.used
        with pytest.raises(EngineFull):
            engine.restore(Snapshot.load(tmp_path / "a.session"))
        assert engine.table.pool.used == used
    for _ in range(3):
        engine.step(dict.fromkeys(numbers, 1))
    for snapshot in held:
        snapshot.close()
    for number in numbers:
        engine.close(number)
    engine.close()
    assert engine.table.pool.used == 0


def test_snapshots_up_to_the_brink(world: World, tmp_path: Path) -> None:
    engine = Engine(world, threads=1, memory_mb=1)
    number = engine.open(seed=1)
    engine.step({number: 1})
    engine.snapshot(number, share=False).save(tmp_path / "a.session")
    kept = []
    with pytest.raises(EngineFull):
        while True:
            engine.step({number: 1})
            kept.append(engine.snapshot(number))
    engine.step({number: 1})
    assert engine.restore(Snapshot.load(tmp_path / "a.session"), number) == number
    engine.step({number: 1})
    kept.clear()
    engine.close(number)
    engine.close()
    assert engine.table.pool.used == engine.table.pool.reserved == 0


@pytest.mark.parametrize("stage", ["encode", "denoise", "frames"])
def test_a_pass_that_fails_changes_nothing(world: World, stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine(world, threads=2, memory_mb=8)
    numbers = [engine.open(seed=i) for i in range(5)]
    for _ in range(3):
        engine.step(dict.fromkeys(numbers, 1))
    used, before = engine.table.pool.used, {number: engine.sessions[number] for number in numbers}
    stages, calls = engine.simulator.stages, []
    whole = getattr(stages, stage)

    def failing(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > 1 or engine.batching.split(5, 2) == [5]:
            raise MemoryError("no more memory")
        return whole(*args)

    with monkeypatch.context() as patch:
        patch.setattr(stages, stage, failing)
        with pytest.raises(MemoryError):
            engine.step(dict.fromkeys(numbers, 1))
        calls += [1, 1]
        with pytest.raises(MemoryError):
            engine.open_all([SessionSpec(seed=9, prompt="a cart"), SessionSpec(seed=8), SessionSpec(seed=7, start=0)])
    assert engine.table.pool.used == used
    assert all(engine.sessions[number] is before[number] for number in numbers)
    assert len(engine.step(dict.fromkeys(numbers, 1))) == 5
    engine.close()
