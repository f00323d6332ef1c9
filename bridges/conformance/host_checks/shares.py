"""Checks of limits: how many sessions, snapshots and requests a client may have."""

from __future__ import annotations

import time
from typing import Any

from worldsim.bridges.conformance.checks import NOBODY, Skipped, expect
from worldsim.bridges.conformance.host_checks.registry import FEW, Checks
from worldsim.bridges.conformance.host_lab import Lab

SLOW_RATE = 2000  # requests a second up to which a limit is tried out

CHECKS = Checks()


@CHECKS.add("full")
def _full(lab: Lab) -> str:
    """Sessions over a client's limit are refused; another client's are not, and closing one makes room."""
    most = lab.hello["limits"]["sessions"]
    if most > FEW:
        raise Skipped(f"a client may have {most} sessions; start the host with {FEW} at most")
    peer, world = lab.peer(), lab.world["name"]
    games = [lab.open(peer) for _ in range(most)]
    for verb, fields in (("open", {"world": world}), ("fork", {"session": games[0].token}),
                         ("open_batch", {"world": world, "openings": [{}]})):  # fmt: skip
        peer.refused("full", verb, **fields)
    lab.open()
    peer.ask("close", session=games.pop().token)
    peer.refused("full", "open_batch", world=world, openings=[{}, {}])
    lab.open(peer)
    games[0].play()
    return f"{most} sessions"


@CHECKS.add("snapshots-full")
def _snapshots_full(lab: Lab) -> str:
    """The oldest of too many snapshots is dropped."""
    most = lab.hello["limits"]["snapshots"]
    if most > FEW:
        raise Skipped(f"a client may have {most} snapshots; start the host with {FEW} at most")
    game = lab.open()
    tokens = [game.peer.ask("snapshot", session=game.token).header["snapshot"] for _ in range(most + 1)]
    game.peer.refused("no-snapshot", "restore", session=game.token, snapshot=tokens[0])
    for token in tokens[1:]:
        game.peer.ask("restore", session=game.token, snapshot=token)
    return f"{most} snapshots"


@CHECKS.add("too-fast")
def _too_fast(lab: Lab) -> str:
    """Requests over a client's rate are refused with the time to wait; other clients are not affected."""
    rate = lab.hello["limits"]["rate"]
    if rate > SLOW_RATE:
        raise Skipped(f"a client may ask {rate:g} times a second; start the host with {SLOW_RATE} at most")
    peer, other = lab.peer(), lab.open()
    errors: list[Any] = []
    for _ in range(int(rate / 8) + 50):  # in bursts, so that no queue is full
        headers = [peer.header("drop", snapshot=NOBODY) for _ in range(16)]
        for header in headers:
            peer.send(header)
        errors = [error for header in headers if (error := peer.answer(header["id"]).header.get("error"))]
        if errors:
            break
    expect(bool(errors), f"too-fast after more than {rate:g} requests", "none")
    expect(errors[-1]["code"] == "too-fast" and errors[-1]["wait"] > 0, "too-fast with wait", errors[-1])
    other.play()
    time.sleep(errors[-1]["wait"] * 1.2 + 0.01)
    peer.send(header := peer.header("drop", snapshot=NOBODY))
    reply = peer.answer(header["id"])
    expect("error" not in reply.header, "the request to be granted after the wait", reply)
    return f"{rate:g} a second"
