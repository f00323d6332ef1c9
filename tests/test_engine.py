"""The engine's contract, looked at from outside: replay, isolation, fork, snapshots, admission, failures.

All equalities are of bits.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import OPENINGS

from worldsim.engine.engine import Engine
from worldsim.engine.records import SessionSpec, StepResult
from worldsim.engine.session import Snapshot
from worldsim.engine.stages import Stages
from worldsim.engine.stats import prometheus
from worldsim.errors import (
    ActionError,
    ConfigError,
    EngineFull,
    InputError,
    PromptError,
    SessionError,
    SnapshotDamaged,
    SnapshotMismatch,
)
from worldsim.models.text import PromptBook
from worldsim.types import Prompt
from worldsim.world import World

ACTIONS = [0, 1, 1, 0, 1, 0, 0, 1, 1, 1]


@pytest.fixture
def engine(world: World) -> Iterator[Engine]:
    found = Engine(world, threads=2, memory_mb=64)
    yield found
    found.close()


def play(engine: Engine, session: int, actions: list[int] = ACTIONS) -> list[StepResult]:
    return [engine.step({session: action})[session] for action in actions]


def same(some: list[StepResult], others: list[StepResult]) -> bool:
    return len(some) == len(others) > 0 and all(
        np.array_equal(a.frame, b.frame) and (a.reward, a.ended, a.step) == (b.reward, b.ended, b.step)
        for a, b in zip(some, others, strict=True)
    )


@pytest.mark.parametrize("opening", OPENINGS)
def test_replay(world: World, opening: Any) -> None:
    """The same in another engine, on other threads, whatever the global generator does."""
    first, second = Engine(world, threads=1), Engine(World.from_pretrained(str(world.path), torch.float32), threads=2)
    one = play(first, first.open(**opening))
    torch.randn(7)
    torch.set_num_threads(2)
    assert same(one, play(second, second.open(**opening)))
    other = play(second, second.open(**(opening | {"seed": 99})))
    assert not all(np.array_equal(a.frame, b.frame) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("others", [1, 31])
def test_isolation(world: World, others: int) -> None:
    """A session alone, and among others that open, step at other rates, speak, fail and leave."""
    alone = []
    for opening in OPENINGS:
        single = Engine(world, threads=1)
        alone.append(play(single, single.open(**opening)))
    engine = Engine(world, threads=2)
    watched = [engine.open(**opening) for opening in OPENINGS]
    crowd = engine.open_all([SessionSpec(seed=100 + i, prompt="a cart" if i % 2 else None) for i in range(others)])
    together: list[list[StepResult]] = [[] for _ in watched]
    for turn, action in enumerate(ACTIONS):
        steps = engine.step(
            {n: action for n in watched} | {n: i % 2 for i, n in enumerate(crowd) if (turn + i) % (1 + i % 3) == 0}
        )
        for frames, number in zip(together, watched, strict=True):
            frames.append(steps[number])
        engine.set_prompt(crowd[turn % others], "")
        with pytest.raises(ActionError):
            engine.step({watched[0]: 0, crowd[0]: 5})
        engine.close(crowd.pop(0))
        crowd.append(engine.open(seed=turn))
    assert all(same(a, b) for a, b in zip(alone, together, strict=True))
    assert max(engine.counts.batches) > 1


def test_chunks_are_steps(engine: Engine) -> None:
    numbers = [engine.open(seed=i) for i in range(3)]
    twins = [engine.fork(n) for n in numbers]
    chunks = {n: ACTIONS[: 3 + i] for i, n in enumerate(numbers)}
    played = engine.play(chunks)
    for i, (number, twin) in enumerate(zip(numbers, twins, strict=True)):
        assert same(played[number], play(engine, twin, ACTIONS[: 3 + i]))
    last = engine.play({n: ACTIONS for n in numbers}, frames="last")
    for number, twin in zip(numbers, twins, strict=True):
        expected = play(engine, twin, ACTIONS)
        assert np.array_equal(last[number][-1].frame, expected[-1].frame)
        assert [step.reward for step in last[number]] == [step.reward for step in expected]


def test_prompts_act_from_the_next_frame_on(engine: Engine) -> None:
    number = engine.open(seed=1, prompt="")
    twin = engine.fork(number)
    engine.set_prompt(twin, "a cart")
    engine.set_prompt(twin, "")
    assert same(play(engine, number, [0, 1]), play(engine, twin, [0, 1]))
    engine.set_prompt(twin, "a cart")
    assert not same(play(engine, number), play(engine, twin))


def test_forks_share_memory_until_they_differ(engine: Engine) -> None:
    number = engine.open(seed=1)
    play(engine, number)
    before = engine.table.pool.used
    twins = [engine.fork(number) for _ in range(5)]
    assert engine.table.pool.used == before
    expected = play(engine, number)
    assert all(same(expected, play(engine, twin)) for twin in twins)
    other = engine.fork(number, seed=77)
    assert not same(play(engine, number), play(engine, other))
    for session in [number, *twins, other]:
        engine.close(session)
    assert engine.table.pool.used == engine.table.pool.reserved  # clips to begin from


def test_no_text_is_looked_up_while_time_passes(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The engine's own calls encode a prompt, once; what they call has it encoded."""
    asked: list[str] = []
    encode = PromptBook.encode

    def noted(book: PromptBook, text: str) -> Prompt:
        asked.append(text)
        return encode(book, text)

    monkeypatch.setattr(PromptBook, "encode", noted)
    numbers = engine.open_all([SessionSpec(prompt="a cart", guidance=2.0), SessionSpec(start=0, prompt="")])
    assert asked == ["a cart", ""]
    engine.set_prompt(numbers[1], "a cart")
    snapshot = engine.snapshot(numbers[1])
    assert engine.restore(snapshot) and asked == ["a cart", "", "a cart"]  # a snapshot in memory has it encoded
    del asked[:]
    engine.fork(numbers[0])
    engine.step({number: 1 for number in engine.sessions})
    engine.play({number: [0, 1] for number in engine.sessions})
    engine.observe(numbers[0], 1, engine.sessions[numbers[1]].frame)
    snapshot.save(tmp_path / "session")
    assert asked == []
    assert engine.restore(Snapshot.load(tmp_path / "session")) and asked == ["a cart"]  # a file has its text
    assert {type(prompt) for prompt in engine.table.gather([*engine.sessions.values()]).prompts} == {Prompt}


def test_sessions_that_share_a_clip_have_each_its_own_words(engine: Engine) -> None:
    """Case and spaces make no other prompt, so that the clip is seen once; each session shows what was typed."""
    one, two = (engine.open(seed=1, start=0, prompt=text) for text in ("a cart", "A  Cart"))
    assert engine.sessions[one].blocks == engine.sessions[two].blocks
    assert [engine.sessions[number].prompt for number in (one, two)] == ["a cart", "A  Cart"]
    assert same(play(engine, one), play(engine, two))


def test_snapshots_go_back_and_on(engine: Engine, tmp_path: Path) -> None:
    number = engine.open(seed=1, prompt="a cart", guidance=2.0)
    play(engine, number, ACTIONS[:4])
    snapshot = engine.snapshot(number)
    expected = play(engine, number)
    assert engine.restore(snapshot, number) == number
    assert same(expected, play(engine, number))
    engine.close(number)
    assert same(expected, play(engine, engine.restore(snapshot)))  # also after the session has ended
    snapshot.save(tmp_path / "session")
    loaded = Snapshot.load(tmp_path / "session")
    assert same(expected, play(engine, engine.restore(loaded)))
    restored = engine.sessions[engine.restore(loaded)]
    assert (restored.prompt, restored.guidance, restored.seed, restored.step) == ("a cart", 2.0, 1, 5)
    pinned = engine.table.pool.reserved
    snapshot.close()
    snapshot.close()
    assert engine.table.pool.reserved < pinned
    with pytest.raises(SnapshotMismatch, match="closed"):
        engine.restore(snapshot)
    with pytest.raises(SnapshotMismatch, match="closed"):
        snapshot.save(tmp_path / "again")


def test_a_dropped_snapshot_gives_its_memory_back(engine: Engine) -> None:
    number = engine.open(seed=1)
    pinned, kept = engine.table.pool.reserved, engine.snapshot(number)
    play(engine, number)
    del kept
    assert engine.table.pool.reserved == pinned


OTHER_PROCESS = """
import sys, hashlib, torch
from worldsim.engine.engine import Engine
from worldsim.engine.session import Snapshot
from worldsim.models.text import PromptBook
from worldsim.types import Prompt
from worldsim.world import World
engine = Engine(World.from_pretrained(sys.argv[1], torch.float32), threads=1)
number = engine.restore(Snapshot.load(sys.argv[2]))
digest = hashlib.sha256()
for turn in range(20):
    digest.update(engine.step({number: turn % 2})[number].frame.tobytes())
print(digest.hexdigest())
"""


def test_a_snapshot_goes_on_in_another_process(world: World, engine: Engine, tmp_path: Path) -> None:
    import hashlib

    number = engine.open(seed=3)
    play(engine, number)
    engine.snapshot(number).save(tmp_path / "moved")
    digest = hashlib.sha256()
    for turn in range(20):
        digest.update(engine.step({number: turn % 2})[number].frame.tobytes())
    command = [sys.executable, "-c", OTHER_PROCESS, str(world.path), str(tmp_path / "moved")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == digest.hexdigest()


def test_bad_snapshots_are_refused_and_change_nothing(engine: Engine, world: World, tmp_path: Path) -> None:
    number, path = engine.open(seed=1), tmp_path / "snapshot"
    engine.snapshot(number).save(path)
    whole, before = path.read_bytes(), engine.sessions[number]
    rng = random.Random(5)
    for length in [0, 7, 100, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(SnapshotDamaged):
            Snapshot.load(path)
    for _ in range(60):
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :])
        with pytest.raises((SnapshotDamaged, SnapshotMismatch)):
            Snapshot.load(path)
    with pytest.raises(SnapshotDamaged):
        Snapshot.load(tmp_path / "nothing")
    path.write_bytes(whole)
    save_file(load_file(path), tmp_path / "foreign")
    with pytest.raises(SnapshotMismatch, match="not a snapshot"):
        Snapshot.load(tmp_path / "foreign")
    other = World.from_pretrained(str(world.path), torch.float32)
    torch.nn.init.normal_(other.dynamics.final.weight)
    shuffled = Engine(other, threads=1)
    with pytest.raises(SnapshotMismatch, match="of the world"):
        engine.restore(shuffled.snapshot(shuffled.open(seed=1)), number)
    half = Engine(World.from_pretrained(str(world.path), torch.bfloat16), threads=1)
    taken = half.snapshot(half.open(seed=1))
    with pytest.raises(SnapshotMismatch, match="runtime.*exact=False"):
        engine.restore(taken, number)
    assert engine.sessions[number] is before and list(engine.sessions) == [number]
    assert len(play(engine, engine.restore(taken, exact=False))) == len(ACTIONS)


def test_admission(world: World) -> None:
    engine = Engine(world, threads=1, memory_mb=1)
    room = engine.table.capacity
    numbers = [engine.open(seed=i, start=0) for i in range(room)]
    with pytest.raises(EngineFull, match=f"{room} are open and the engine holds {room} "):
        engine.open(seed=0)
    with pytest.raises(EngineFull):
        engine.fork(numbers[0])
    assert len(engine.sessions) == room
    for _ in range(12):  # all of them get all the memory that was promised
        engine.step({n: 0 for n in numbers})
    with pytest.raises(EngineFull, match="no room for one more snapshot"):
        engine.snapshot(numbers[0])
    engine.close(numbers.pop())
    kept = engine.snapshot(numbers[0])
    with pytest.raises(EngineFull, match="held by snapshots"):
        engine.open(seed=0)
    kept.close()
    numbers.append(engine.open(seed=5))
    engine.step({n: 1 for n in numbers})
    few = Engine(world, threads=1, max_sessions=2)
    few.open_all([SessionSpec(seed=1), SessionSpec(seed=2)])
    with pytest.raises(EngineFull, match="max_sessions 2"):
        few.open(seed=3)


def test_bad_calls(engine: Engine, world: World) -> None:
    number = engine.open(seed=1)
    before = dict(engine.sessions)
    for call, error in (
        (lambda: engine.step({number: 0, 99: 0}), SessionError),
        (lambda: engine.step({number: 2}), ActionError),
        (lambda: engine.play({number: [0, 1, "up"]}), ActionError),
        (lambda: engine.set_prompt(number, 3), PromptError),  # type: ignore[arg-type]
        (lambda: engine.set_prompt(98, "a cart"), SessionError),
        (lambda: engine.open(start=99), InputError),
        (lambda: engine.open(start="road"), InputError),  # type: ignore[arg-type]
        (lambda: engine.fork(0), SessionError),
        (lambda: engine.close(12), SessionError),
        (lambda: engine.snapshot(-1), SessionError),
        (lambda: engine.open_all([SessionSpec(seed=1), SessionSpec(prompt=5)]), PromptError),  # type: ignore[arg-type]
    ):
        with pytest.raises(error):
            call()
        assert engine.sessions == before
    engine.close(number)
    with pytest.raises(SessionError, match="was closed"):
        engine.step({number: 0})
    assert engine.step({}) == {} and engine.play({}) == {}
    for settings in ({"threads": 0}, {"max_sessions": 0}, {"memory_mb": 0}, {"runtime": "warp"}):
        with pytest.raises(ConfigError):
            Engine(world, **settings)  # type: ignore[arg-type]


def test_a_failure_inside_a_step_changes_nothing(engine: Engine) -> None:
    numbers = [engine.open(seed=i) for i in range(4)]
    twins = [engine.fork(n) for n in numbers]
    stages, used = engine.simulator.stages, engine.table.pool.used

    def broken(*args: Any) -> Any:
        raise RuntimeError("out of luck")

    for name in ("encode", "denoise", "decode"):
        engine.simulator.stages = Stages(**(vars(stages) | {name: broken}))
        with pytest.raises(RuntimeError, match="out of luck"):
            engine.step({n: 0 for n in numbers})
        with pytest.raises(RuntimeError, match="out of luck"):
            engine.open(seed=8, prompt="a cart")
    engine.simulator.stages = stages
    assert engine.table.pool.used == used
    for number, twin in zip(numbers, twins, strict=True):
        assert same(play(engine, number), play(engine, twin))


def test_stats_and_prometheus(engine: Engine) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    numbers = [engine.open(seed=i) for i in range(3)]
    for _ in range(5):
        engine.step({n: 0 for n in numbers})
    stats = engine.stats()
    assert stats["sessions"] == 3 and stats["frames"] == 15 and stats["steps"] == 5
    assert 0 < stats["step_ms"]["p50"] <= stats["step_ms"]["p95"] <= stats["step_ms"]["p99"]
    assert sum(size * count for size, count in stats["batches"].items()) == 15
    page = list(text_string_to_metric_families(prometheus(stats, "cart pole")))
    values = {sample.name: sample for family in page for sample in family.samples}
    assert values["worldsim_sessions"].value == 3 and values["worldsim_sessions"].labels["world"] == "cart pole"
    assert values["worldsim_frames_total"].value == 15


def test_frames_are_the_callers_own(engine: Engine) -> None:
    number = engine.open(seed=1)
    twin = engine.fork(number)
    for action in ACTIONS:
        engine.step({number: action})[number].frame[:] = 0
    play(engine, twin)
    assert same(play(engine, number), play(engine, twin))
