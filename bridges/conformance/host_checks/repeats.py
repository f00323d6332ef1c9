"""Checks that nothing happens twice: repeated, late, reordered requests, also over a new connection."""

from __future__ import annotations

import time

from worldsim.bridges import protocol
from worldsim.bridges.conformance.checks import brief_header, expect
from worldsim.bridges.conformance.host_checks.registry import Checks
from worldsim.bridges.conformance.host_lab import Lab, equal
from worldsim.bridges.messages import Message

CHECKS = Checks()


@CHECKS.add("repeat-step")
def _repeat_step(lab: Lab) -> None:
    """A step with the same id again gets an equal reply, and is not done twice."""
    game = lab.open()
    header = game.request()
    first = game.peer.must(header)
    game.take(first)
    for _ in range(2):
        _alike(game.peer.must(header), first)
        game.same()
    game.peer.send(header := game.request())
    game.peer.send(header)  # the second may find the first one waiting: then there is one reply to both
    first = game.peer.answer(header["id"])
    game.take(first)
    game.same()
    _alike(game.peer.must(header), first)
    game.same()


@CHECKS.add("repeat-batch")
def _repeat_batch(lab: Lab) -> None:
    """The same for step_batch."""
    peer = lab.peer()
    begun = peer.ask("open_batch", world=lab.world["name"], openings=[{"seed": 1}, {"seed": 2}]).header
    fields = {"sessions": begun["sessions"], "steps": begun["steps"], "actions": lab.actions(2)}
    header = peer.header("step_batch", **fields)
    first = peer.must(header)
    _alike(peer.must(header), first)
    for token, step in zip(begun["sessions"], begun["steps"], strict=True):
        now = peer.ask("render", session=token).header["step"]
        expect(now == step + 1, f"step {step + 1}", now)


@CHECKS.add("repeat-open")
def _repeat_open(lab: Lab) -> None:
    """Open, fork and open_batch with the same id again open nothing else, over a new connection neither."""
    peer = lab.peer()
    game = lab.open(peer)
    for header in (
        peer.header("open", world=lab.world["name"], seed=1),
        peer.header("fork", session=game.token),
        peer.header("open_batch", world=lab.world["name"], openings=[{"seed": 1}, {"seed": 2}]),
    ):
        first = peer.must(header)
        _alike(peer.must(header), first)
        _alike(lab.peer(peer.token).must(header), first)
    other = lab.peer()
    theirs = other.must(other.header("open", first.header["id"], world=lab.world["name"])).header["session"]
    expect(theirs not in first.header["sessions"], "a session of its own for another client with that id", theirs)


@CHECKS.add("repeat-restore")
def _repeat_restore(lab: Lab) -> None:
    """Reset and restore with the same id again get an equal reply."""
    game = lab.open()
    token = game.peer.ask("snapshot", session=game.token).header["snapshot"]
    game.play(*lab.actions(2))
    for verb, fields in (("reset", {"seed": 5}), ("restore", {"snapshot": token})):
        header = game.peer.header(verb, session=game.token, **fields)
        first = game.peer.must(header)
        _alike(lab.peer(game.peer.token).must(header), first)
        game.step = first.header["step"]
        game.play()


@CHECKS.add("repeat-watch")
def _repeat_watch(lab: Lab) -> None:
    """A watch with the same id again adds no credits."""
    game = lab.open()
    header = game.peer.header("watch", session=game.token, credits=2)
    for _ in range(3):
        game.peer.must(header)
    game.play(*lab.actions(5))
    came = game.peer.pushes(0.3)
    expect(len(came) == 2, "2 frames for 2 credits", f"{len(came)}")


@CHECKS.add("repeat-share")
def _repeat_share(lab: Lab) -> None:
    """A share with the same id again gives the same player's token."""
    game = lab.open()
    header = game.peer.header("share", session=game.token, mode="turns")
    first = game.peer.must(header).header["player"]
    again = game.peer.must(header).header["player"]
    expect(first == again, f"the token {first[:6]}...", f"{again[:6]}..., and the first one permits nothing more")


@CHECKS.add("repeat-snapshot")
def _repeat_snapshot(lab: Lab) -> None:
    """A snapshot with the same id again is the same snapshot."""
    game = lab.open()
    header = game.peer.header("snapshot", session=game.token)
    first = game.peer.must(header)
    _alike(game.peer.must(header), first)
    game.peer.ask("restore", session=game.token, snapshot=first.header["snapshot"])


def _alike(came: Message, first: Message) -> None:
    expect(came.header == first.header, f"the first reply again ({brief_header(first)})", brief_header(came))
    for name, buffer in first.buffers.items():
        equal(came.buffers[name], buffer, f"the same {name}")


@CHECKS.add("out-of-order")
def _out_of_order(lab: Lab) -> None:
    """A step with an old or a future number is refused with the host's number, and nothing is drawn."""
    game = lab.open()
    game.play(*lab.actions(3))
    for step in (0, game.step - 1, game.step + 1, game.step + 1000, protocol.MAX_INT):
        header = game.request() | {"step": step}
        error = game.peer.refuse("out-of-order", header)
        expect(error["step"] == game.step, f"the host's step, {game.step}", error)
    game.same()


@CHECKS.add("reordering")
def _reordering(lab: Lab) -> None:
    """Of two steps that come in the wrong order the first is refused, when it comes again too; a new one is granted."""
    game = lab.open()
    early = game.request() | {"step": game.step + 1}
    game.peer.send(early)
    game.peer.send(header := game.request())
    refused = game.peer.answer(early["id"])
    expect(refused.header.get("error", {}).get("code") == "out-of-order", "out-of-order", refused)
    game.take(game.peer.answer(header["id"]))
    game.peer.refuse("out-of-order", early)
    game.same()
    game.play()
    game.peer.send(header := game.request())
    game.peer.send(reset := game.peer.header("reset", session=game.token))  # may find the step waiting
    game.take(game.peer.answer(header["id"]))
    reply = game.peer.answer(reset["id"])
    code = reply.header.get("error", {}).get("code")
    expect(code in (None, "out-of-order"), "the reset to be granted, or out-of-order", reply)


@CHECKS.add("late")
def _late(lab: Lab) -> None:
    """A request that comes once more after newer ones of its client changes nothing, and is refused."""
    game = lab.open()
    peer, words = game.peer, (lab.world["prompts"] or [""])[-1]
    headers = [
        peer.header("reset", session=game.token, seed=5),
        peer.header("prompt", session=game.token, prompt=words),
    ]
    game.step = peer.must(headers[0]).header["step"]
    peer.must(headers[1])
    game.play(*lab.actions(2))
    for header in headers:
        peer.refuse("out-of-order", header)
        game.same()
    opened = peer.header("open", world=lab.world["name"])
    peer.ask("close", session=peer.must(opened).header["session"])
    peer.refuse("no-session", opened)


@CHECKS.add("reconnect")
def _reconnect(lab: Lab) -> None:
    """A session outlives its connection: a step is answered over a new one, and not done twice."""
    game = lab.open()
    token = game.peer.token
    first = game.peer.must(header := game.request())
    game.peer.close()
    game.peer = lab.peer(token)
    _alike(game.peer.must(header), first)
    game.take(first)
    game.same()
    for wait in (0.0, 0.05):  # the old connection may or may not have been served already
        old, game.peer = game.peer, lab.peer(token)
        old.send(header := game.request())
        time.sleep(wait)
        game.take(game.peer.insist(header))
        game.same()
    game.play()
    other = lab.peer()
    error = other.refuse("out-of-order", game.request() | {"step": game.step - 1, "id": header["id"]})
    expect(error["step"] == game.step, f"step {game.step}: another client's request is not this one's again", error)
