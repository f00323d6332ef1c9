"""Checks of time: the host's clock, the delay that one client causes others, and leases."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq

from worldsim.bridges.conformance.checks import Skipped, expect
from worldsim.bridges.conformance.host_checks.registry import Checks
from worldsim.bridges.conformance.host_lab import Game, Lab, equal

SHORT_LEASE = 5.0  # seconds that the check of leases waits for at most
MARGIN = 0.02  # seconds by which a slow reader may delay others, besides a frame

CHECKS = Checks()


@CHECKS.add("run")
def _run(lab: Lab) -> str:
    """The clock draws at its pace under the action in force; meanwhile step is refused, after pause it is granted."""
    game = lab.open(seed=61)
    other = lab.open(seed=61)
    action = _effective_action(lab, other)
    fps = round(min(25.0, max(1.0, 0.4 / _median(lab, other.fork(), 8))), 1)
    peer = game.peer
    peer.ask("input", session=game.token, action=action)
    watching = peer.ask("watch", session=game.token, credits=1000).header["fps"]
    expect(watching == 0, "fps 0 while the clock stands", watching)
    said = peer.ask("run", session=game.token, fps=fps).header["fps"]
    expect(abs(said - fps) < 1e-6, f"fps {fps}", said)
    peer.refuse("wrong-mode", game.request(action))
    pushed, begun, came = [], time.monotonic(), []
    while len(pushed) < 14 and time.monotonic() - begun < lab.patience + 28 / fps:
        pushed += peer.pushes(0.05, 1)
        came += [time.monotonic()] * (len(pushed) - len(came))
    expect(len(pushed) == 14, "frames by the clock", f"{len(pushed)} in {time.monotonic() - begun:.1f} s")
    steps = [one.header["step"] for one in pushed]
    expect(steps == list(range(game.step + 1, game.step + 15)), "each frame once, in order", steps)
    pace = 13 / (came[-1] - came[0])
    expect(0.6 * fps < pace < 1.5 * fps, f"about {fps} frames a second", f"{pace:.1f}")
    game.step = peer.ask("pause", session=game.token).header["step"]
    time.sleep(3 / fps)
    reply = peer.ask("render", session=game.token)
    expect(reply.header["step"] == game.step, f"no frame after pause, step {game.step}", reply)
    other.play(*[action] * (game.step - other.step))
    equal(lab.frame(reply), other.frame, f"the frame of {game.step - 1} steps under that action")
    game.play(action)
    default = peer.ask("run", session=game.token).header["fps"]
    expect(default == lab.world["fps"], f"the world's own fps, {lab.world['fps']}", default)
    return f"{pace:.1f} of {fps} frames a second"


def _effective_action(lab: Lab, game: Game) -> Any:
    """Find an action whose frame differs from the frame of no key; if none of a few does, return any."""
    rest = game.fork().play(keys="")[0]
    actions = lab.actions(8, seed=7)
    for action in actions:
        fork = game.fork()
        frame = fork.play(action)[0]
        game.peer.ask("close", session=fork.token)
        if not np.array_equal(frame, rest):
            return action
    return actions[0]


@CHECKS.add("slow-reader")
def _slow_reader(lab: Lab) -> str:
    """A client that asks and asks and never reads delays others by a frame at most."""
    count = 24
    game, flood = lab.open(), lab.open()
    before = _median(lab, game, count)
    flood.peer.socket.sndhwm = 256
    raw = json.dumps(flood.peer.header("render", session=flood.token)).encode()

    def ask_much() -> None:
        for _ in range(24):
            try:
                flood.peer.socket.send(raw, zmq.NOBLOCK)
            except zmq.Again:
                return

    after = _median(lab, game, count, ask_much)
    said = f"p50 {1000 * before:.1f} ms before, {1000 * after:.1f} ms meanwhile"
    expect(after < 2 * before + MARGIN, f"less than a frame and {1000 * MARGIN:g} ms more", said)
    return said


def _median(lab: Lab, game: Game, count: int, between: Callable[[], None] | None = None) -> float:
    """Measure the median seconds of a step."""
    times = []
    for action in lab.actions(count):
        if between is not None:
            between()
        begun = time.perf_counter()
        game.play(action)
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


@CHECKS.add("lease")
def _lease(lab: Lab) -> str:
    """A session ends after a lease without requests of its owner; keep renews the lease, watching does not."""
    lease = lab.hello["lease"]
    if lease > SHORT_LEASE:
        raise Skipped(f"the lease is {lease:g} s; start the host with one of {SHORT_LEASE:g} s at most")
    silent, renewed, watched = lab.open(), lab.open(), lab.open()
    begun = time.monotonic()
    while time.monotonic() - begun < lease + 0.7:
        time.sleep(lease / 5)
        renewed.peer.ask("keep", sessions=[renewed.token])
        if time.monotonic() - begun < lease - 0.3:
            watched.peer.ask("render", session=watched.watch)
    for game in (silent, watched):
        game.peer.refuse("no-session", game.request())
    renewed.play()
    return f"{lease:g} s"
