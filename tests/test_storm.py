"""Isolation under a storm of random operations, many of them wrong."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from tiny import OPENINGS

from worldsim.engine.engine import Engine
from worldsim.engine.session import Snapshot
from worldsim.engine.stages import Stages
from worldsim.errors import WorldsimError
from worldsim.world import World


def storm(world: World, operations: int, seed: int, most: int = 64) -> None:
    """Random operations, many of them wrong; then every session that is left is played again by itself."""
    print("seed", seed)
    rng, engine = random.Random(seed), Engine(world, threads=2, max_sessions=most, memory_mb=256)
    pool_at_start = engine.table.pool.used
    told: dict[int, list[Any]] = {}  # what happened to each session since it began
    frames: dict[int, list[np.ndarray]] = {}
    kept: list[tuple[Snapshot, list[Any], list[np.ndarray]]] = []
    stages = engine.simulator.stages

    def flaky(*args: Any) -> Any:
        if rng.random() < 0.5:
            raise RuntimeError("injected")
        return stages.denoise(*args)

    for _ in range(operations):
        choice, known = rng.random(), list(told)
        some = rng.choice(known) if known else 0
        try:
            if choice < 0.12 or not known:
                opening: Any = rng.choice(OPENINGS) | {"seed": rng.randrange(2**63)}
                number = engine.open(**opening)
                told[number], frames[number] = [opening], []
            elif choice < 0.62:
                chosen = rng.sample(known, rng.randint(1, min(12, len(known))))
                actions = {n: rng.choice([0, 1]) for n in chosen}
                if rng.random() < 0.1:
                    actions[rng.choice(chosen)] = 9
                engine.simulator.stages = Stages(
                    **(vars(stages) | {"denoise": flaky if rng.random() < 0.1 else stages.denoise})
                )
                for number, step in engine.step(actions).items():
                    told[number].append(actions[number])
                    frames[number].append(step.frame)
            elif choice < 0.70:
                number = engine.fork(some)
                told[number], frames[number] = list(told[some]), list(frames[some])
            elif choice < 0.78:
                text = rng.choice(["", "a cart"])
                engine.set_prompt(some, text)
                told[some].append(text)
            elif choice < 0.85:
                kept.append((engine.snapshot(some), list(told[some]), list(frames[some])))
                if len(kept) > 20:
                    kept.pop(rng.randrange(len(kept)))[0].close()
            elif choice < 0.92 and kept:
                snapshot, past, seen = rng.choice(kept)
                number = engine.restore(snapshot, some if rng.random() < 0.5 else None)
                told[number], frames[number] = list(past), list(seen)
            elif choice < 0.95:
                engine.close(some)
                del told[some], frames[some]
            else:
                wrong = rng.choice([lambda: engine.step({10**9: 0}), lambda: engine.fork(-1),
                                    lambda: engine.open(start=7**9), lambda: engine.close(0)])  # fmt: skip
                wrong()
        except (WorldsimError, RuntimeError):
            continue
        finally:
            engine.simulator.stages = stages
    assert told.keys() == engine.sessions.keys() and len(told) > 4
    solo = Engine(world, threads=1)
    for number, (opening, *events) in told.items():
        again, seen = solo.open(**opening), []
        for event in events:
            if isinstance(event, str):
                solo.set_prompt(again, event)
            else:
                seen.append(solo.step({again: event})[again].frame)
        assert len(seen) == len(frames[number])
        assert all(np.array_equal(a, b) for a, b in zip(seen, frames[number], strict=True)), number
        solo.close(again)
    for snapshot, _, _ in kept:
        snapshot.close()
    engine.close()
    assert engine.table.pool.used == pool_at_start == 0


def test_isolation_storm(world: World) -> None:
    storm(world, 300, seed=11)


@pytest.mark.slow
def test_isolation_storm_of_10000(world: World) -> None:
    storm(world, 10_000, seed=12)
