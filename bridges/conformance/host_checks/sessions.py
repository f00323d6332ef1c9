"""Checks of sessions: open, step, reset, prompt, snapshot, fork, render, close; singly, in batches, in episodes."""

from __future__ import annotations

import numpy as np
import zmq
from gymnasium import spaces

from worldsim.bridges.conformance.checks import NOBODY, Skipped, expect
from worldsim.bridges.conformance.host_checks.registry import FEW, Checks
from worldsim.bridges.conformance.host_lab import Lab, equal
from worldsim.bridges.frames import SharedReader, from_jpeg
from worldsim.errors import MissingDependency

CHECKS = Checks()


@CHECKS.add("open-step")
def _open_step(lab: Lab) -> str:
    """Open gives a frame, each step the next one with the next number; JSON and buffer mean the same."""
    game = lab.open(seed=1)
    expect(game.token != game.watch, "two tokens", "one")
    actions = lab.actions(6, seed=1)
    frames = game.play(*actions)
    if isinstance(lab.space, spaces.Dict):
        return "no buffers: a Dict space"
    other = lab.open(seed=1)
    for action, frame in zip(actions, frames, strict=True):
        header = other.peer.header("step", session=other.token, step=other.step)
        buffer = np.asarray(action, np.float32 if isinstance(lab.space, spaces.Box) else np.int64)
        equal(other.take(other.peer.must(header, {"action": buffer})), frame, "the same frame for a buffer")
    return f"frames of {lab.world['frame_size']}"


@CHECKS.add("replay")
def _replay(lab: Lab) -> None:
    """The same seed and actions give the same frames, in a pass of their own and in one with other sessions."""
    actions = lab.actions(8, seed=2)
    first = lab.open(seed=11)
    frames = [first.frame, *first.play(*actions)]
    second, other = lab.open(seed=11), lab.open(seed=12)
    again = [second.frame]
    for action in actions:
        mine, theirs = second.request(action), other.request(action)
        second.peer.send(mine)
        other.peer.send(theirs)
        other.take(other.peer.answer(theirs["id"]))
        again.append(second.take(second.peer.answer(mine["id"])))
    equal(again, frames, "the same frames")


@CHECKS.add("reset")
def _reset(lab: Lab) -> None:
    """Reset begins anew, as open does."""
    other, game = lab.open(seed=21), lab.open(seed=22)
    game.play(*lab.actions(3))
    reply = game.peer.ask("reset", session=game.token, seed=21)
    expect(reply.header["step"] == other.step, f"step {other.step}", reply)
    equal(lab.frame(reply), other.frame, "the first frame of a session that was opened with that seed")
    game.step = other.step
    equal(game.play(*lab.actions(3)), other.play(*lab.actions(3)), "the same frames afterwards")


@CHECKS.add("prompt")
def _prompt(lab: Lab) -> None:
    """A prompt is in force from the next frame on, and the number of frames stays."""
    if not lab.world["prompts"]:
        raise Skipped("the world names no prompts")
    words = lab.world["prompts"][-1]
    game = lab.open(prompt="")
    reply = game.peer.ask("prompt", session=game.token, prompt=words)
    expect(reply.header["prompt"] == words and reply.header["step"] == game.step, f"the prompt {words!r}", reply)
    said = game.peer.ask("render", session=game.token).header["prompt"]
    expect(said == words, f"the prompt {words!r} in render", said)
    game.play()


@CHECKS.add("snapshot")
def _snapshot(lab: Lab) -> None:
    """After restore, and in a session opened from the snapshot, the same actions give the same frames; drop ends it."""
    game = lab.open(seed=31)
    peer = game.peer
    game.play(*lab.actions(3))
    reply = peer.ask("snapshot", session=game.token)
    token, step, frame = reply.header["snapshot"], game.step, game.frame
    expect(reply.header["step"] == step, f"step {step}", reply)
    frames = game.play(*lab.actions(4, seed=3))
    for _ in range(2):
        back = peer.ask("restore", session=game.token, snapshot=token)
        expect(back.header["step"] == step, f"step {step}", back)
        equal(lab.frame(back), frame, "the frame of the snapshot")
        game.step = step
        equal(game.play(*lab.actions(4, seed=3)), frames, "the same frames after restore")
    other = lab.game(peer, peer.ask("open", world=lab.world["name"], snapshot=token))
    equal(other.frame, frame, "the frame of the snapshot")
    expect(other.step == step, f"step {step}", other.step)
    equal(other.play(*lab.actions(4, seed=3)), frames, "the same frames in a session opened from it")
    for _ in range(2):
        peer.ask("drop", snapshot=token)
    for verb in ("restore", "open"):
        fields = {"session": game.token} if verb == "restore" else {"world": lab.world["name"]}
        peer.refused("no-snapshot", verb, **fields, snapshot=token)
    game.same()


@CHECKS.add("snapshot-owner")
def _snapshot_owner(lab: Lab) -> None:
    """A client may not drop another client's snapshot."""
    game = lab.open()
    token = game.peer.ask("snapshot", session=game.token).header["snapshot"]
    lab.peer().refused("not-allowed", "drop", snapshot=token)
    game.peer.ask("restore", session=game.token, snapshot=token)


@CHECKS.add("fork")
def _fork(lab: Lab) -> None:
    """A fork draws the same frames under the same actions, with tokens of its own."""
    game = lab.open(seed=41)
    game.play(*lab.actions(2))
    fork = game.fork()
    tokens = {game.token, game.watch, fork.token, fork.watch}
    expect(len(tokens) == 4 and fork.step == game.step, "new tokens and the same step", [len(tokens), fork.step])
    equal(fork.frame, game.frame, "the same last frame")
    frames = game.play(*lab.actions(4, seed=4))
    equal(fork.play(*lab.actions(4, seed=4)), frames, "the same frames")


@CHECKS.add("render")
def _render(lab: Lab) -> str:
    """Render gives the last frame in every encoding that hello names, to every role."""
    game = lab.open()
    game.play()
    tried = []
    for encoding in lab.hello["encodings"]:
        if encoding == "shm" and not SharedReader.shares(lab.hello.get("shm")):
            continue
        reply = game.peer.ask("render", session=game.token, encoding=encoding)
        buffer = reply.buffers["frame"]
        if encoding == "jpeg":
            try:
                frame = from_jpeg(buffer)
            except MissingDependency:
                continue
            expect(frame.shape == game.frame.shape, f"a JPEG of {game.frame.shape}", frame.shape)
            far = float(np.mean(np.abs(frame.astype(float) - game.frame)))
            expect(far < 24, "a JPEG that looks like the frame", f"one whose pixels differ by {far:.0f} of 255")
        else:
            equal(
                SharedReader().read(buffer) if encoding == "shm" else buffer,
                game.frame,
                f"the same frame as {encoding}",
            )
        tried.append(encoding)
    for token, role in ((game.token, "owner"), (game.watch, "watcher")):
        reply = game.peer.ask("render", session=token)
        expect(reply.header["role"] == role and reply.header["step"] == game.step, f"role {role}", reply)
    return ", ".join(tried)


@CHECKS.add("close")
def _close(lab: Lab) -> None:
    """Close may be repeated; after it all tokens of the session are unknown."""
    game = lab.open()
    for _ in range(2):
        game.peer.ask("close", session=game.token)
    for verb in ("render", "prompt", "snapshot", "fork", "run", "pause", "unwatch"):
        fields = {"prompt": ""} if verb == "prompt" else {}
        game.peer.refused("no-session", verb, session=game.token, **fields)
    game.peer.refuse("no-session", game.request())
    game.peer.refused("no-session", "render", session=game.watch)
    game.peer.refused("no-session", "keep", sessions=[game.token])


@CHECKS.add("batch")
def _batch(lab: Lab) -> None:
    """Batches draw what single requests draw, and do all or nothing."""
    peer, name, actions = lab.peer(), lab.world["name"], lab.actions(3, seed=5)
    openings = [{"seed": 51}, {"seed": 52}, {"seed": 53}]
    singles = [lab.open(peer, **opening) for opening in openings]
    reply = peer.ask("open_batch", world=name, openings=openings)
    tokens, steps = reply.header["sessions"], reply.header["steps"]
    equal(reply.buffers["frames"], [game.frame for game in singles], "the first frames of open_batch as of open")
    expect(steps == [game.step for game in singles], "the same steps", steps)
    for turn in range(2):
        drawn = peer.ask("step_batch", sessions=tokens, steps=steps, actions=actions)
        frames = [game.play(action)[0] for game, action in zip(singles, actions, strict=True)]
        equal(drawn.buffers["frames"], frames, f"the frames of step_batch as of step (turn {turn})")
        steps = drawn.header["steps"]
        expect(steps == [game.step for game in singles], "the same steps", steps)
    if not isinstance(lab.space, spaces.Dict):
        buffer = np.asarray(actions, np.float32 if isinstance(lab.space, spaces.Box) else np.int64)
        drawn = peer.ask("step_batch", {"actions": buffer}, sessions=tokens, steps=steps)
        frames = [game.play(action)[0] for game, action in zip(singles, actions, strict=True)]
        equal(drawn.buffers["frames"], frames, "the same frames where the actions are a buffer")
        steps = drawn.header["steps"]
    wrong = [steps[0], steps[1] + 1, steps[2]]
    peer.refused("out-of-order", "step_batch", sessions=tokens, steps=wrong, actions=actions)
    peer.refused("bad-field", "step_batch", sessions=tokens, steps=steps[:2], actions=actions)
    peer.refused("bad-field", "step_batch", sessions=tokens, steps=steps, actions=actions[:2])
    peer.refused("no-session", "step_batch", sessions=[*tokens[:2], NOBODY], steps=steps, actions=actions)
    peer.refused("bad-start", "open_batch", world=name, openings=[{}, {"start": lab.world["starts"] + 10**6}])
    for token, step in zip(tokens, steps, strict=True):
        now = peer.ask("render", session=token).header["step"]
        expect(now == step, f"step {step} still, as none of that was in order", now)
    begun = peer.ask("reset_batch", sessions=tokens, openings=openings[::-1])
    other = lab.peer()  # whose share of sessions is its own
    opened = [lab.open(other, **opening) for opening in openings[::-1]]
    equal(begun.buffers["frames"], [game.frame for game in opened], "the frames of reset_batch as of open")
    for _ in range(2):
        peer.ask("close_batch", sessions=tokens)
    peer.refused("no-session", "render", session=tokens[0])


@CHECKS.add("two-worlds")
def _two_worlds(lab: Lab) -> None:
    """A batch is of one world."""
    names = [one["name"] for one in lab.hello["worlds"]]
    if len(names) < 2:
        raise Skipped("the host serves one world")
    peer = lab.peer()
    tokens = [peer.ask("open", world=name).header["session"] for name in names[:2]]
    peer.refused("bad-field", "reset_batch", sessions=tokens, openings=[{}, {}])
    snapshot = peer.ask("snapshot", session=tokens[0]).header["snapshot"]
    peer.refused(("no-snapshot", "bad-snapshot"), "restore", session=tokens[1], snapshot=snapshot)


@CHECKS.add("batch-shared")
def _batch_shared(lab: Lab) -> None:
    """A session of two players is not stepped in a batch; the others of the batch go on."""
    games = [lab.open() for _ in range(2)]
    games[1].peer.ask("share", session=games[1].token, mode="turns")
    fields = {"sessions": [game.token for game in games], "steps": [game.step for game in games]}
    games[0].peer.refused("not-allowed", "step_batch", **fields, actions=lab.actions(2))
    for game in games:
        game.play()


@CHECKS.add("episode")
def _episode(lab: Lab) -> str:
    """`truncated` comes with the last step of an episode; also after a reset, a restore and in a fork."""
    limits = {one["name"]: one["episode_steps"] for one in lab.hello["worlds"]}
    short = {name: count for name, count in limits.items() if count and 1 < count <= FEW}
    if not short:
        raise Skipped(f"no world has episodes of 2 to {FEW} steps")
    name, count = next(iter(short.items()))
    peer = lab.peer()
    game = peer.ask("open", world=name).header

    def last(token: str, step: int, left: int) -> None:
        said = [peer.ask("step", session=token, step=step + i, keys="").header["truncated"] for i in range(left)]
        expect(said == [False] * (left - 1) + [True], f"truncated with the last of {left} steps", said)

    token, step = game["session"], game["step"]
    snapshot = peer.ask("snapshot", session=token).header["snapshot"]
    last(token, step, count)
    last(token, peer.ask("reset", session=token).header["step"], count)
    step = peer.ask("restore", session=token, snapshot=snapshot).header["step"]
    last(token, step, count)
    step = peer.ask("restore", session=token, snapshot=snapshot).header["step"]
    peer.ask("step", session=token, step=step, keys="")
    fork = peer.ask("fork", session=token).header
    last(fork["session"], fork["step"], count - 1)
    return f"{name}, {count} steps"


@CHECKS.add("req-socket")
def _req_socket(lab: Lab) -> None:
    """A REQ socket, which puts an empty part first, is served too."""
    game = lab.open(lab.peer(kind=zmq.REQ))
    game.play(*lab.actions(2))
    game.peer.ask("close", session=game.token)
