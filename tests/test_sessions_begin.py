"""Sessions begin in pieces, between which others play: nobody's bits depend on it, and no memory is lost.

All equalities are of bits.
"""

from __future__ import annotations

import gc
from typing import Any

import pytest
from test_engine import ACTIONS, play, same
from tiny import OPENINGS

from worldsim.engine.engine import Engine
from worldsim.engine.records import SessionSpec
from worldsim.errors import EngineFull
from worldsim.models import text
from worldsim.threads import at_once
from worldsim.world import World


@pytest.mark.parametrize("opening", OPENINGS)
def test_sessions_that_begin_in_pieces(world: World, opening: Any) -> None:
    """They are what they would be at once, and those that play meanwhile too; whoever stops halfway leaves nothing."""
    engine, at_once = (Engine(world, threads=1, memory_mb=64, clips=1) for _ in range(2))
    right, specs = play(at_once, at_once.open(**opening)), [SessionSpec(**opening), SessionSpec(**opening)]
    alone, neighbour = play(at_once, at_once.open(seed=5), ACTIONS * 2), engine.open(seed=5)
    played, held, pauses, ended = [], engine.table.pool.used, 0, False
    while not ended:
        pauses += 1
        work = engine.open_in_pieces(specs)
        ended = any(next(work, "ended") for _ in range(pauses))
        work.close()
        played += play(engine, neighbour, ACTIONS[len(played) % 10 :][:1])
        if not ended:
            engine.stepper.drop_clips()
            assert len(engine.sessions) == 1 and engine.table.pool.used == min(held + len(played), engine.table.need)
    assert pauses > 3 and same(played, alone[: len(played)])
    work, numbers = engine.open_in_pieces(specs), list[int]()
    while not numbers:
        try:
            next(work)
        except StopIteration as done:
            numbers = done.value
        engine.close(engine.open(**opening))  # from the same clip, too
    assert all(same(play(engine, number), right) for number in numbers)


def test_sessions_that_begin_have_their_places(world: World) -> None:
    engine = Engine(world, threads=1, max_sessions=2)
    work = engine.open_in_pieces([SessionSpec(seed=1, start=0), SessionSpec(seed=2)])
    for pause in range(5):
        next(work)
        if pause >= 2:  # their words are looked up
            with pytest.raises(EngineFull, match="2 about to be"):
                engine.open(seed=3)
    work.close()
    engine.open_all([SessionSpec(seed=1), SessionSpec(seed=2)])
    with pytest.raises(EngineFull, match="2 are open and the engine"):
        list(engine.open_in_pieces([SessionSpec(seed=1)] * 2))


def of_two(world: World) -> Engine:
    """An engine with memory for two sessions and not one block more."""
    table = Engine(world, threads=1, memory_mb=8).table
    megabytes: Any = (2 * (table.need + 1) + 0.5) * table.block_bytes / 1e6
    return Engine(world, threads=1, memory_mb=megabytes)


def test_snapshots_leave_room_for_sessions_that_begin(world: World) -> None:
    """Else those that are open could not be stepped."""
    engine = of_two(world)
    assert engine.table.capacity == 2
    first = engine.open(seed=1)
    play(engine, first)
    work = engine.open_in_pieces([SessionSpec(seed=2)])
    next(work)
    next(work)
    with pytest.raises(EngineFull, match="2 sessions may need"):
        engine.snapshot(first)
    (second,) = at_once(work)
    for action in ACTIONS:
        engine.step({first: action, second: action})


def test_stored_clips_give_way_to_steps(world: World) -> None:
    """Sessions that fill the memory, and begin from clips, whose memory is stored beside."""
    engine = of_two(world)
    numbers = [engine.open(seed=i, start=0, prompt=prompt) for i, prompt in enumerate(("", "a cart"))]
    for action in ACTIONS:
        engine.step(dict.fromkeys(numbers, action))
    with pytest.raises(EngineFull):
        engine.open(seed=3)


@pytest.mark.parametrize("where", ["caller", "worker", "words", "own thread"])
def test_sessions_that_begin_and_are_forgotten(world: World, where: str) -> None:
    """The collector may find them on any thread, which must not wait for another."""
    engine = Engine(world, threads=2)
    before = engine.table.pool.used
    work: Any = engine.open_in_pieces([SessionSpec(seed=1), SessionSpec(seed=2, start=0)])
    for _ in range(4):
        next(work)
    cycle = [work]
    cycle.append(cycle)
    del work, cycle
    collect = {
        "caller": gc.collect,
        "worker": lambda: engine.own.call(lambda: engine.own.map(lambda _: gc.collect(), [1, 2])),
        "words": lambda: engine.own.call(lambda: text._OWN.call(gc.collect)),
        "own thread": lambda: engine.own.call(gc.collect),
    }
    collect[where]()
    engine.open_all([SessionSpec(seed=1), SessionSpec(seed=2)])
    engine.close(1)
    engine.close(2)
    engine.stepper.drop_clips()
    engine.snapshot(engine.open(seed=1, prompt="a cart"), share=False)
    engine.close(3)
    assert engine.table.pool.used == before and engine.table.capacity == engine.table.blocks // (engine.table.need + 1)
