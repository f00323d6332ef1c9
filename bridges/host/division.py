"""Divides passes: who asks for many frames at once gets them in parts, so that others' frames do not wait for all.

Those of a client that asks for few are all drawn in the next pass. Of the clients that ask for more than `Served.most`,
one has its turn, with that many. A request of which a part was drawn is undone if another part fails.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from worldsim.bridges.host.records import PendingStep, Served
from worldsim.engine.engine import Engine
from worldsim.errors import EngineFull

Part = tuple[PendingStep, list[int]]
"""A request, and those of its sessions that are drawn now, by the engine's number."""
PLAYING = 10.0  # seconds after its last frame in which a client is likely to ask for another
WORTH = 1.5  # times of a pass of one session that a part may take
FEWEST, MANY = 2, 4  # sessions of a part at least; of a pass from which on the time of each is measured
NEWEST = 0.2  # weight of the newest measurement


def rest(pending: PendingStep) -> list[int]:
    """List the sessions of a request that are still to be drawn."""
    return [number for number in pending.actions if number not in pending.drawn]


def is_divided(part: Part) -> bool:
    """Say whether it is not all of its request."""
    return len(part[1]) < len(part[0].actions)


def sender(pending: PendingStep) -> str:
    """Name the client that asks."""
    return pending.call.client.counted if pending.call is not None else pending.sessions[0].counted


def next_pass(served: Served) -> list[Part]:
    """Choose what is drawn in the next pass."""
    now, groups = time.monotonic(), dict[str, list[PendingStep]]()
    for pending in served.pending:
        groups.setdefault(sender(pending), []).append(pending)
    served.senders = {
        name: when for name, when in served.senders.items() if now - when < PLAYING and name not in groups
    }
    others = bool(served.senders)
    served.senders |= dict.fromkeys(groups, now)
    if len(groups) == 1 and not others:
        return [(pending, rest(pending)) for pending in served.pending]
    most, chosen, large = served.most, list[Part](), list[str]()
    for name, group in groups.items():
        if sum(len(rest(pending)) for pending in group) <= most:
            chosen += [(pending, rest(pending)) for pending in group]
        else:
            large.append(name)
    if large:
        name = min(large, key=lambda name: served.turns.get(name, 0.0))
        served.turns = {other: when for other, when in served.turns.items() if other in large} | {name: now}
        for pending in groups[name]:
            part = rest(pending)[:most]
            chosen.append((pending, part))
            most -= len(part)
            if not most:
                break
    return chosen


def measure(served: Served, count: int, took: float) -> None:
    """Take down how long a pass took, and find how many sessions may be in a part."""
    served.took = took
    if count < MANY:
        served.one += (NEWEST if served.one else 1.0) * (took - served.one)
    else:
        served.each += (NEWEST if served.each else 1.0) * (took / count - served.each)
    if served.one and served.each:
        served.most = max(FEWEST, int(WORTH * served.one / served.each))


@contextlib.contextmanager
def restored(engine: Engine, number: int) -> Iterator[None]:
    """Restore a session to what it is now if the block raises."""
    try:
        before = engine.snapshot(number)
    except EngineFull:
        before = engine.snapshot(number, share=False)
    try:
        yield
    except BaseException:
        engine.restore(before, number)
        raise
    finally:
        before.close()
