"""A host that is killed at random moments, and clients that do not notice."""

from __future__ import annotations

import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hosting import HostProcess, digest, drive

from worldsim.bridges.client import RemoteEngine
from worldsim.bridges.client.connection import ConnectionConfig
from worldsim.engine.engine import Engine
from worldsim.engine.records import EngineLike, SessionSpec
from worldsim.world import World

PATIENT = ConnectionConfig(timeout=1.0, patience=180.0)


def play(
    engine: EngineLike, seed: int, steps: int, stop: threading.Event | None = None, counts: list[int] | None = None
) -> tuple[list[str], int]:
    """A life with everything in it: steps, batches, words, a snapshot that is gone back to, a fork, resets.

    Returns:
        What was seen, in order: hashes of frames, rewards, prompts; and the number of steps until `stop` was set. Each
        is noted in `counts` as it is made.
    """
    rng = random.Random(seed)
    openings = [SessionSpec(seed=seed), SessionSpec(seed=seed + 1, prompt="a cart"), SessionSpec(seed=seed, start=0)]
    sessions = engine.open_all(openings)
    seen = [digest(engine.sessions[number].frame) for number in sessions]
    kept: Any = None
    count = 0
    for action in drive(steps, seed):
        if stop is not None and stop.is_set():
            break
        count += 1
        if counts is not None:
            counts.append(count)
        chosen = sessions if rng.random() < 0.5 else sessions[:1]
        for number, step in engine.step({number: action for number in chosen}).items():
            seen += [digest(step.frame), repr(step.reward), str(engine.sessions[number].step)]
        event = rng.randrange(30)
        if event == 0:
            engine.set_prompt(sessions[0], rng.choice(["a cart", ""]))
            seen.append(engine.sessions[sessions[0]].prompt)
        elif event == 1:
            kept = engine.snapshot(sessions[0])
        elif event == 2 and kept is not None:
            engine.restore(kept, sessions[0])
            seen.append(digest(engine.sessions[sessions[0]].frame))
        elif event == 3:
            twin = engine.fork(sessions[0])
            seen.append(digest(engine.step({twin: action})[twin].frame))
            engine.close(twin)
        elif event == 4:
            engine.close(sessions[-1])
            sessions[-1] = engine.open_all([SessionSpec(seed=count)])[0]
            seen.append(digest(engine.sessions[sessions[-1]].frame))
    for number in sessions:
        engine.close(number)
    return seen, count


def killed(world_path: Path, folder: Path, kills: int, clients: int, every: str, low: float, seed: int) -> None:
    """Kill a host again and again while clients play, then hold what they saw against an unbroken run."""
    print(f"seed {seed}")
    rng = random.Random(seed)
    words = ("--every", every, "--isolated")  # see docs/engine.md
    host = HostProcess([world_path], folder, 0, *words)
    seen: dict[int, tuple[list[str], int]] = {}
    counts: list[list[int]] = [[] for _ in range(clients)]
    failures: list[BaseException] = []
    stop = threading.Event()

    def client(i: int) -> None:
        try:
            engine = RemoteEngine(host.address, config=PATIENT)
            seen[i] = play(engine, seed + 10 * i, 100_000, stop, counts[i])
            engine.close()
        except BaseException as error:
            failures.append(error)

    def wait_for_steps() -> None:
        """Until every client has made another two."""
        before, until = [len(one) for one in counts], time.monotonic() + PATIENT.patience
        while any(len(one) < was + 2 for one, was in zip(counts, before, strict=True)) and not failures:
            assert time.monotonic() < until, f"clients made no steps: {before}, {[len(one) for one in counts]}"
            time.sleep(0.02)

    threads = [threading.Thread(target=client, args=(i,), daemon=True) for i in range(clients)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(kills):
            wait_for_steps()
            time.sleep(low + rng.random() * 0.5)
            host.kill(signal.SIGKILL)
            host = HostProcess([world_path], folder, host.port, "--resume", *words)
            if failures:
                raise failures[0]
        wait_for_steps()
        stop.set()
        for thread in threads:
            thread.join()
        left = [path for path in (folder / "sessions").iterdir() if (path / "meta.json").exists()]
    finally:
        stop.set()
        host.kill()
    if failures:
        raise failures[0]
    local = Engine(World.from_pretrained(world_path), runtime="eager", threads=1, isolated=True)
    for i in range(clients):
        print(f"{seen[i][1]} steps")
        assert seen[i][1] > 2 * kills
        assert seen[i] == play(local, seed + 10 * i, seen[i][1])
    local.close()
    assert left == []  # every session was closed, none was lost or left over


def test_killed_twice(world_path: Path, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(1000)
    killed(world_path, tmp_path, kills=2, clients=2, every="0.3", low=0.2, seed=seed)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # each of the fifty hosts takes some seconds to start
def test_killed_fifty_times(world_path: Path, tmp_path: Path) -> None:
    killed(world_path, tmp_path, kills=50, clients=3, every="0.5", low=0.1, seed=50)


def test_graceful_stop_and_resume(world_path: Path, tmp_path: Path) -> None:
    host = HostProcess([world_path], tmp_path)
    engine = RemoteEngine(host.address, config=PATIENT)
    number = engine.open_all([SessionSpec(seed=5)])[0]
    first = [engine.step({number: action})[number].frame for action in drive(10)]
    host.kill(signal.SIGTERM)
    assert host.process.returncode == 0
    host = HostProcess([world_path], tmp_path, host.port, "--resume")
    rest = [engine.step({number: action})[number].frame for action in drive(20)[10:]]
    host.kill()
    engine.connection.close()
    local = Engine(World.from_pretrained(world_path), runtime="eager", threads=1)
    number = local.open(seed=5)
    for action, frame in zip(drive(20), [*first, *rest], strict=True):
        assert np.array_equal(local.step({number: action})[number].frame, frame)
