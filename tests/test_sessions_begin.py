"""Sessions begin in pieces, between which others play: nobody's bits depend on it, and no memory is lost.

All equalities are of bits.
"""

from __future__ import annotations

from typing import Any

import pytest
from test_engine import ACTIONS, play, same
from tiny import OPENINGS

from worldsim.engine.engine import Engine
from worldsim.engine.records import SessionSpec
from worldsim.errors import EngineFull
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
