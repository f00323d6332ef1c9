"""Batches in padded buckets, whatever kernels do with other numbers of rows. All equalities are of bits."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from tiny import OPENINGS

from worldsim.engine import engine as engine_module
from worldsim.engine.batching import Buckets
from worldsim.engine.engine import Engine
from worldsim.engine.make import EngineConfig, make_engine
from worldsim.engine.records import SessionSpec, StepResult
from worldsim.engine.runtimes import Runtime
from worldsim.engine.stages import Stages
from worldsim.engine.tuning import choose
from worldsim.errors import ConfigError, SnapshotMismatch
from worldsim.world import World

ACTIONS = [0, 1, 1, 0, 1, 0]
MakeEngine = Callable[..., Engine]
Seen = tuple[bytes, float, float, tuple[bytes, ...]]


@pytest.fixture
def drifting(monkeypatch: pytest.MonkeyPatch) -> Counter[int]:
    """Runtimes whose kernels give other bits for every number of rows, and whose sizes may not be tried.

    Counts the passes by number of rows.
    """
    passes: Counter[int] = Counter()

    def no_trial(runtime: Runtime) -> Any:
        raise AssertionError("sizes are tried")

    def choose_drifting(world: World, name: str) -> Runtime:
        runtime = choose(world, name)

        def drift(call: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: torch.Tensor) -> Any:
                assert len({len(arg) for arg in args}) == 1 and all(arg.is_contiguous() for arg in args)
                assert all(arg.storage_offset() == 0 for arg in args)  # kernels may depend on the alignment
                assert not any(arg.isnan().any() for arg in args)
                passes[len(args[0])] += 1
                outs, scale = call(*args), 1 + 1e-3 * len(args[0])
                return outs * scale if isinstance(outs, torch.Tensor) else (outs[0] * scale, *outs[1:])

            return run

        stages = Stages(**{stage: drift(call) for stage, call in vars(runtime.stages).items()})
        return dataclasses.replace(runtime, stages=stages, find_sizes=no_trial)

    monkeypatch.setattr(engine_module, "choose", choose_drifting)
    return passes


@pytest.fixture
def make(world: World) -> Iterator[MakeEngine]:
    engines: list[Engine] = []

    def made(**settings: Any) -> Engine:
        defaults: dict[str, Any] = {"threads": 1, "memory_mb": 64}
        engines.append(Engine(world, **(defaults | settings)))
        return engines[-1]

    yield made
    for engine in engines:
        engine.close()


def seen(engine: Engine, number: int, step: StepResult) -> Seen:
    """All that a step gave, with what the session remembers of it."""
    pool, block = engine.table.pool, engine.sessions[number].blocks[-1]
    memory = (part[block].float().numpy().tobytes() for part in (pool.keys, pool.values, pool.latents))
    return step.frame.tobytes(), step.reward, step.ended, tuple(memory)


def alone(engine: Engine, opening: Any) -> list[Seen]:
    """A session by itself."""
    number = engine.open(**opening)
    found = [seen(engine, number, engine.step({number: action})[number]) for action in ACTIONS]
    engine.close(number)
    return found


def frames(engine: Engine, sessions: int = 5) -> np.ndarray:
    """What some sessions show after some steps together."""
    numbers = engine.open_all([SessionSpec(seed=seed, prompt="a cart") for seed in range(sessions)])
    steps = [engine.step(dict.fromkeys(numbers, action)) for action in ACTIONS][-1]
    return np.stack([steps[number].frame for number in numbers]).astype(int)


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("bucket", [1, 4])
def test_one_bucket_keeps_the_bits_in_any_company(
    make: MakeEngine, drifting: Counter[int], bucket: int, threads: int
) -> None:
    """Sessions alone and among up to seven others, which come, go and step at other rates, without any trial."""
    engine, rng = make(buckets=(bucket,), threads=threads), random.Random(11)
    expected = [alone(engine, opening) for opening in OPENINGS]
    watched = engine.open_all([SessionSpec(**opening) for opening in OPENINGS])
    crowd = engine.open_all([SessionSpec(seed=100 + i, guidance=3.0 if i % 2 else None) for i in range(7)])
    found: dict[int, list[Seen]] = {number: [] for number in watched}
    companies = set()
    while any(len(steps) < len(ACTIONS) for steps in found.values()):
        waiting = [number for number in watched if len(found[number]) < len(ACTIONS)]
        now = rng.sample(waiting, rng.randint(1, len(waiting))) + rng.sample(crowd, rng.choice([0, 1, 2, 5, 7]))
        rng.shuffle(now)
        companies.add(len(now))
        steps = engine.step({n: ACTIONS[len(found[n])] if n in found else rng.randint(0, 1) for n in now})
        for number in set(now) & set(watched):
            found[number].append(seen(engine, number, steps[number]))
        engine.close(crowd.pop(0))
        crowd.append(engine.open(seed=rng.randrange(99)))
    assert list(found.values()) == expected
    assert min(companies) < 4 < max(companies), companies
    assert set(drifting) == {bucket}
    other = make(buckets=(bucket,))
    assert [alone(other, opening) for opening in OPENINGS] == expected
    if bucket > 1:
        assert alone(make(buckets=(bucket - 1,)), OPENINGS[0]) != expected[0]  # these kernels do differ


def test_several_buckets_are_close(make: MakeEngine) -> None:
    """To one bucket, and both to batches without padding."""
    one, several, none = make(buckets=(4,)), make(buckets=(4, 1)), make()
    shown = [frames(engine) for engine in (one, several, none)]
    for other in shown[1:]:
        assert np.abs(shown[0] - other).max() <= 2
    assert [engine.exact for engine in (one, several, none)] == [True, False, True]
    assert one.sizes == dict.fromkeys(("encode", "denoise", "decode"), (4,)) and several.sizes["denoise"] == (1, 4)


def test_passes_have_the_sizes_of_buckets(make: MakeEngine, drifting: Counter[int]) -> None:
    engine = make(buckets=(2, 5))
    numbers = engine.open_all([SessionSpec(seed=seed, prompt="a cart") for seed in range(8)])
    for sessions, rows in ((1, {2}), (2, {2}), (3, {5}), (5, {5}), (6, {5, 2}), (8, {5})):
        drifting.clear()
        engine.step(dict.fromkeys(numbers[:sessions], 1))
        assert set(drifting) == rows, sessions
    assert engine.stats()["batches"] == {1: 2, 2: 1, 3: 2, 5: 3}  # sessions that were stepped together, not rows
    assert engine.stats()["frames"] == 25


def test_groups_of_sessions_fill_buckets() -> None:
    """A worker gets as many sessions as fill a bucket, since rows of padding cost as much as others."""
    one, several = (Buckets({"denoise": sizes}) for sizes in ((4,), (1, 2, 8)))
    assert one.split(3, workers=2) == [3] and one.split(10, workers=3) == [4, 4, 2]
    assert several.split(2, workers=2) == [1, 1] and several.split(4, workers=2) == [2, 2]
    assert several.split(9, workers=2) == [8, 1] and several.split(17, workers=2) == [8, 8, 1]
    for sessions in range(1, 40):
        for workers in range(1, 5):
            for batching in (one, several):
                groups = batching.split(sessions, workers)
                assert sum(groups) == sessions and max(groups) <= 8 and min(groups) >= 1


def test_a_bucket_of_one_is_what_single_rows_are() -> None:
    names = ("encode", "denoise", "decode")
    assert [Buckets(dict.fromkeys(names, sizes)).identity for sizes in ((1,), (4,), (1, 4))] == [
        "",
        "buckets-4",
        "buckets-1-4",
    ]


def test_snapshots_are_of_their_buckets(make: MakeEngine) -> None:
    """Frames to come would differ in their last bits, as in another runtime."""
    engine, same, other, none = make(buckets=(4,)), make(buckets=[4]), make(buckets=(4, 2)), make()
    snapshot = engine.snapshot(engine.open(seed=1), share=False)
    assert same.restore(snapshot)
    for wrong in (other, none):
        with pytest.raises(SnapshotMismatch, match="buckets-4.*exact=False"):
            wrong.restore(snapshot)
        assert wrong.restore(snapshot, exact=False)
    assert none.table.belongs["runtime"] == none.runtime.identity  # of snapshots that were there before


@pytest.mark.parametrize("buckets", [(), (0,), (-3, 4), (4, 4), (65,), (2.0,), (True,), ("4",), "4", 4, {4}])
def test_bad_buckets_are_refused_at_the_door(world: World, monkeypatch: pytest.MonkeyPatch, buckets: Any) -> None:
    monkeypatch.setattr(engine_module, "choose", None)  # a runtime can take a minute to build
    with pytest.raises(ConfigError, match=r"buckets is .*; allowed: .* 1 to 64"):
        Engine(world, buckets=buckets)
    with pytest.raises(ConfigError, match="buckets is"):
        make_engine(world, EngineConfig(buckets=buckets))


@pytest.mark.parametrize("setting", [{"isolated": True}, {"exact": False}])
def test_contradictions_are_refused(world: World, setting: Any) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(setting))}=.*leave one of the two out"):
        Engine(world, buckets=(4,), **setting)


def test_engines_are_made_with_buckets(world: World) -> None:
    engine = make_engine(world, EngineConfig(buckets=(8,), threads=1, min_sessions=3))
    assert engine.sizes["decode"] == (8,)
