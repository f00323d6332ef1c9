"""Whether a host keeps to the protocol: `python -m worldsim.bridges.check_host tcp://127.0.0.1:5570`.

For authors of hosts. It speaks through plain sockets, so that it can say wrong things too, and prints a line for each
check: ok, FAILED or skipped. It opens sessions of its own, closes them, and leaves those of others alone. A host that
does nothing else at the time is fairer: two checks measure how long things take.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import zmq
from gymnasium import spaces

from worldsim.bridges import protocol
from worldsim.bridges.checks import (
    NOBODY,
    Failed,
    Game,
    Lab,
    Peer,
    Result,
    Skipped,
    attempt,
    brief_header,
    equal,
    expect,
)
from worldsim.bridges.frames import SharedReader, from_jpeg
from worldsim.bridges.protocol import Message
from worldsim.errors import MissingDependency, WorldsimError
from worldsim.models.action import space_from_json

SHORT_LEASE = 5.0  # seconds that the check of leases waits for at most
FEW = 16  # a limit up to which it is tried out
SLOW_RATE = 2000  # requests a second up to which a limit is tried out
LARGEST = 2**26  # bytes of a message that is sent to be refused
MARGIN = 0.02  # seconds by which a slow reader may delay others, besides a frame

BAD: dict[str, list[Any]] = {
    "int": [-1, 2**63, 1.5, "1", True, [1]],
    "number": ["1", True, [1], 2**64],
    "text": [5, ["words"], "x" * (protocol.MAX_TEXT + 1), "\ud800"],
    "name": [5, "x" * (protocol.MAX_NAME + 1)],
    "token": ["short", "x" * 65, "with some spaces", 12345678, ["01234567"]],
    "tokens": [[], ["short"], [NOBODY, NOBODY], NOBODY, [f"{i:08}" for i in range(protocol.MAX_BATCH + 1)]],
    "ints": [[], [-1], [True], 1, [0] * (protocol.MAX_BATCH + 1)],
    "list": [[], {}, 5, [0] * (protocol.MAX_BATCH + 1)],
    "start": [-1, "0", True, {}, {"frames": 1}, {"frames": "clip", "colour": "clip"}],
    "openings": [[], {}, [5], [{"colour": 1}], [{"seed": -1}], [{}] * (protocol.MAX_BATCH + 1)],
    "encoding": ["png", 1],
    "quality": [0, 101, "90"],
    "credits": [-1, protocol.MAX_CREDITS + 1, 1.5],
    "fps": [0, -1, 1001, "30"],
    "share": ["both", 1],
}
"""By kind: what a host must refuse."""


Check = Callable[[Lab], "str | None"]
CHECKS: dict[str, Check] = {}


def check(name: str) -> Callable[[Check], Check]:
    """Add a check; the first line of its docstring is what is expected."""
    return lambda function: CHECKS.setdefault(name, function)


def check_host(
    address: str,
    world: str | None = None,
    only: Sequence[str] = (),
    patience: float = 10.0,
    tell: Callable[[str], None] | None = None,
) -> list[Result]:
    """Check a host that runs.

    Args:
        address: of the host, which must not ask for keys.
        world: that is played; the first one by default.
        only: names of checks; all by default.
        patience: seconds to wait for a reply.
        tell: takes a line for each check when it is done.

    Raises:
        ValueError: there is no such check.
    """
    if unknown := set(only) - set(CHECKS):
        raise ValueError(f"there are no checks called {sorted(unknown)}; allowed: {', '.join(CHECKS)}.")
    lab = Lab(address, patience)
    results = []

    def add(name: str, about: str, one: Check) -> bool:
        results.append(attempt(name, about, lambda: one(lab), tell))
        try:
            lab.tidy()
        except (Failed, WorldsimError):
            pass  # the host does not answer any more; the next check says so
        return results[-1].ok is not False

    try:
        there = add(
            "hello", "a reply to hello that tells of worlds, limits and encodings", lambda lab: _hello(lab, world)
        )
        for name in only or CHECKS if there else ():
            add(name, (CHECKS[name].__doc__ or "").splitlines()[0].rstrip("."), CHECKS[name])
        if there:
            add("declared", "every reply has the fields, kinds and buffers that are declared, no others", _declared)
    finally:
        for peer in lab.peers:
            peer.close()
        lab.context.destroy(linger=0)
    return results


def _hello(lab: Lab, world: str | None) -> str:
    lab.hello = lab.peer(greet=False).greet().header
    about = {"name", "frame_size", "fps", "action_space", "keys", "prompts", "starts", "episode_steps", "fingerprint"}
    for one in lab.hello["worlds"]:
        expect(set(one) >= about, f"worlds with {sorted(about)}", one)
    limits = {"sessions", "snapshots", "rate", "message_bytes"}
    expect(set(lab.hello["limits"]) >= limits, f"limits of {sorted(limits)}", lab.hello["limits"])
    offered = set(lab.hello["encodings"])
    expect("raw" in offered and offered <= set(protocol.ENCODINGS), "encodings, raw among them", lab.hello["encodings"])
    expect("shm" not in offered or "shm" in lab.hello, "'shm' with a path and a nonce", "none")
    worlds = {one["name"]: one for one in lab.hello["worlds"]}
    expect(world is None or world in worlds, f"the world {world}", list(worlds))
    lab.world = worlds[world or next(iter(worlds))]
    lab.space = space_from_json(lab.world["action_space"])
    return f"{lab.hello['software']}; {lab.world['name']}"


def _declared(lab: Lab) -> str:
    found = [f"{fault} ({count} times)" for fault, count in lab.faults.most_common(5)]
    expect(not found, "nothing else", "; ".join(found))
    return f"{lab.replies} replies and pushes; errors seen: {', '.join(sorted(lab.codes))}"


# Messages that are wrong.


@check("hello-first")
def _hello_first(lab: Lab) -> None:
    """Who has not said hello hears hello-first; after it the same request is granted."""
    peer = lab.peer(greet=False)
    for verb, fields in (("open", {}), ("step", {"session": NOBODY, "step": 1}), ("close", {"session": NOBODY})):
        peer.refused("hello-first", verb, **fields)
    request = peer.header("open", world=lab.world["name"])
    peer.refuse("hello-first", request)
    peer.greet()
    peer.must(request)


@check("greeting-again")
def _greeting_again(lab: Lab) -> None:
    """Hello may be said again, and the host says the same."""
    peer = lab.peer()
    expect(peer.greet().header["host"] == lab.hello["host"], f"host {lab.hello['host']}", "another")


@check("wrong-version")
def _wrong_version(lab: Lab) -> None:
    """Another version is refused with those that are spoken, in hello too."""
    for version in (0, 2, "1", True, None):
        peer = lab.peer(greet=False)
        for header in ({"v": version, "client": peer.token, "verb": "hello"}, {"v": version, "verb": "stats"}):
            error = peer.refuse("wrong-version", peer.header(**header))
            expect(protocol.VERSION in error["versions"], f"versions with {protocol.VERSION}", error)
            peer.greet()


@check("unknown-verb")
def _unknown_verb(lab: Lab) -> None:
    """A verb that there is not is refused."""
    peer = lab.peer()
    for verb in ("jump", "frame", "Step", "", 5, None, ["step"]):
        peer.refused("unknown-verb", verb)


@check("bad-id")
def _bad_id(lab: Lab) -> None:
    """An id that is no integer from 0 is refused, in a reply whose id is null."""
    peer = lab.peer()
    for number in (-1, 2**63, 1.5, "1", True, [1]):
        peer.refuse("bad-field", {"v": protocol.VERSION, "id": number, "verb": "stats"})
    peer.refuse("bad-field", {"v": protocol.VERSION, "verb": "stats"})


@check("unknown-field")
def _unknown_field(lab: Lab) -> None:
    """A field that a verb does not declare is refused."""
    for peer, verb, fields in _requests(lab):
        peer.refused("bad-field", verb, **fields, colour=1)


@check("missing-field")
def _missing_field(lab: Lab) -> None:
    """A field that a verb needs must be there, and not be null."""
    for peer, verb, fields in _requests(lab):
        for one in protocol.VERBS[verb].request:
            if one.needed:
                peer.refused("bad-field", verb, **{k: v for k, v in fields.items() if k != one.name})
                peer.refused("bad-field", verb, **{**fields, one.name: None})


@check("null-field")
def _null_field(lab: Lab) -> None:
    """A field that may be left out may be null."""
    peer = lab.peer()
    names = [one.name for one in protocol.VERBS["open"].request if one.name != "world"]
    game = lab.open(peer, **dict.fromkeys(names))
    peer.ask("step", session=game.token, step=game.step, action=lab.actions(1)[0], keys=None)


@check("bad-values")
def _bad_values(lab: Lab) -> str:
    """A value of another kind than declared is refused, in every field of every verb."""
    count = 0
    for peer, verb, fields in _requests(lab):
        for one in protocol.VERBS[verb].request:
            for value in BAD.get(one.kind, ()):
                peer.refused(("bad-field", "too-large"), verb, **{**fields, one.name: value})
                count += 1
    return f"{count} of them"


def _requests(lab: Lab) -> list[tuple[Peer, str, dict[str, Any]]]:
    """A request of each verb with what it needs, in order but for what is to be made wrong."""
    game = lab.open()
    values = {"session": game.token, "step": game.step, "sessions": [game.token], "steps": [game.step]}
    values |= {"prompt": "", "snapshot": NOBODY, "openings": [{"seed": 1}], "credits": 1, "mode": "turns"}
    values["client"] = game.peer.token
    made = []
    for verb, declared in protocol.VERBS.items():
        fields = {one.name: values[one.name] for one in declared.request if one.needed}
        names = {one.name for one in declared.request}
        fields |= {"action": lab.actions(1)[0]} if "action" in names else {}
        fields |= {"actions": lab.actions(1)} if "actions" in names else {}
        fields |= {"world": lab.world["name"]} if "world" in names else {}
        made.append((game.peer, verb, fields))
    return made


@check("bad-message")
def _bad_message(lab: Lab) -> None:
    """A first part that is no JSON object, or more parts than described, are refused."""
    peer = lab.peer()
    number = next(lab.ids)
    head = json.dumps({"v": protocol.VERSION, "id": number, "verb": "stats"}).encode()
    for part in (b"{", b"hello", b"\xff\xfe", b"[1]", b"5", b'"stats"', b"null", b"[" * 50_000, head[:-1],
                 head.replace(b"stats", b"\xe9tats"), b'{"v":1,"id":NaN,"verb":"stats"}',
                 b'{"v":1,"id":1,"verb":"stats","x":Infinity}', b'{"v":1,"id":' + b"9" * 5000 + b"}"):  # fmt: skip
        peer.refuse_parts("bad-message", [part])
    peer.refuse_parts("bad-message", [head, b"more"], number)
    peer.refuse_parts("bad-message", [head] + [b"x"] * (protocol.MAX_BUFFERS + 1))
    peer.greet()


@check("large-header")
def _large_header(lab: Lab) -> None:
    """A header over its limit is refused."""
    peer = lab.peer()
    peer.refuse_parts("too-large", [b" " * (protocol.MAX_HEADER + 1 - 2) + b"{}"])
    peer.greet()


@check("large-message")
def _large_message(lab: Lab) -> str | None:
    """A message over its limit is refused; one of more than twice that may end the connection, and nobody else's."""
    most = lab.hello["limits"]["message_bytes"]
    if 2 * most > LARGEST:
        raise Skipped(f"the host takes messages of {most} bytes, too many to try")
    peer, other = lab.peer(), lab.open()
    header = peer.header("stats")
    peer.refuse("too-large", header, {"much": np.zeros((most // 1000 + 1, 1000), np.uint8)})
    peer.socket.send_multipart([json.dumps(peer.header("stats")).encode(), bytes(2 * most + 1024)])
    other.play()
    peer.receive(0.3)
    lab.peer(peer.token).ask("stats")
    return f"{most} bytes"


@check("bad-buffer")
def _bad_buffer(lab: Lab) -> None:
    """Buffers that do not fit their description are refused, and nothing is stepped."""
    game = lab.open()
    peer, about = game.peer, {"name": "action", "dtype": "float32", "shape": [2], "encoding": "raw"}
    wrong: list[tuple[Any, list[bytes]]] = [
        ([about], []),
        ([about], [bytes(7)]),
        ([about], [bytes(12)]),
        ([about | {"dtype": "float16"}], [bytes(4)]),
        ([about | {"dtype": None}], [bytes(8)]),
        ([about | {"shape": [-1, -2]}], [bytes(8)]),
        ([about | {"shape": [2.0]}], [bytes(8)]),
        ([about | {"shape": 2}], [bytes(8)]),
        ([about | {"shape": [1, 1, 1, 1, 1, 2]}], [bytes(8)]),
        ([about | {"shape": [protocol.MAX_LENGTH + 1, 0]}], [b""]),
        ([about | {"encoding": "png"}], [bytes(8)]),
        ([about | {"name": 5}], [bytes(8)]),
        ([about, about], [bytes(8), bytes(8)]),
        (["action"], [bytes(8)]),
        (about, [bytes(8)]),
        ([about | {"name": f"b{i}"} for i in range(protocol.MAX_BUFFERS + 1)], [bytes(8)]),
    ]
    for described, parts in wrong:
        header = peer.header("step", session=game.token, step=game.step, buffers=described)
        peer.refuse_parts("bad-buffer", [json.dumps(header).encode(), *parts], header["id"])
    game.same()


@check("no-world")
def _no_world(lab: Lab) -> None:
    """A world that the host does not serve is refused, and none at all where it serves several."""
    peer = lab.peer()
    peer.refused("no-world", "open", world="no such world")
    peer.refused("no-world", "open_batch", world="no such world", openings=[{}])
    if len(lab.hello["worlds"]) > 1:
        peer.refused("no-world", "open")
    else:
        peer.ask("open")


@check("bad-action")
def _bad_action(lab: Lab) -> None:
    """Actions outside the space, unknown keys, none or two of them are refused, and nothing is stepped."""
    game = lab.open()
    peer, good = game.peer, lab.actions(1)[0]
    wrong: list[Any] = [5] if isinstance(lab.space, spaces.Dict) else [{"no such": 1}, ["x"], [[[[good]]]], []]
    if isinstance(lab.space, spaces.Discrete):
        wrong += [int(lab.space.start + lab.space.n), int(lab.space.start) - 1, 0.5]
    if isinstance(lab.space, spaces.Box) and np.all(np.isfinite(lab.space.high)):
        wrong.append((lab.space.high.astype(float) + 1).tolist())
    for verb in ("step", "input"):
        fields: dict[str, Any] = {"session": game.token} | ({"step": game.step} if verb == "step" else {})
        for action in wrong:
            peer.refused("bad-action", verb, **fields, action=action)
        for action in ("left", True):
            peer.refused(("bad-action", "bad-field"), verb, **fields, action=action)
        peer.refused("bad-action", verb, **fields, keys="left+no-such-key")
        peer.refused("bad-action", verb, {"action": np.zeros((2, 3, 5), np.float32)}, **fields)
        peer.refused("bad-field", verb, **fields)
        peer.refused("bad-field", verb, **fields, action=good, keys="")
    game.same()
    game.play()


@check("bad-start")
def _bad_start(lab: Lab) -> None:
    """Clips that there are not or that do not fit are refused; the last frame of one that fits is where one begins."""
    game = lab.open()
    peer, actions = game.peer, lab.actions(2)
    peer.refused("bad-start", "open", world=lab.world["name"], start=lab.world["starts"] + 10**6)
    clip = np.stack([game.frame, *game.play(*actions)])
    start = {"frames": "clip", "actions": actions}

    def refused(code: str | Sequence[str], clip: Any, start: Mapping[str, Any] = start) -> None:
        peer.refused(code, "open", {"clip": clip}, world=lab.world["name"], start=start)

    refused("bad-start", clip[:, :-1])
    refused("bad-start", clip.astype(np.float32))
    refused("bad-start", clip[0])
    refused(("bad-start", "bad-action"), clip, {"frames": "clip", "actions": actions[:1]})
    refused(("bad-start", "bad-action"), clip, {"frames": "clip"})
    refused("bad-buffer", clip, {"frames": "no such buffer"})
    refused("bad-buffer", clip, {"frames": "clip", "actions": "no such buffer"})
    reply = peer.ask("open", {"clip": clip}, world=lab.world["name"], start=start)
    equal(lab.frame(reply), clip[-1], "the last frame of the clip")


@check("odd-clips")
def _odd_clips(lab: Lab) -> None:
    """Actions of a clip that are no list of actions are refused, whatever they are."""
    game = lab.open()
    clip = np.stack([game.frame, game.frame, game.frame])
    described = protocol.pack({}, {"clip": clip})
    frames, start = json.loads(described[0])["buffers"][0], {"frames": "clip", "actions": "odd"}
    cases: tuple[tuple[dict[str, Any], list[bytes]], ...] = (
        ({"dtype": "int64", "shape": []}, [bytes(8)]),
        ({"dtype": "int64", "shape": [2, 1, 3]}, [bytes(48)]),
        ({"dtype": "float64", "shape": [2]}, [np.full(2, np.nan).tobytes()]),
        ({"encoding": "jpeg"}, [b"no"]),
        ({"encoding": "shm", "offset": 2}, []),
        ({"encoding": "shm", "offset": 2, "path": "/dev/null"}, []),
    )
    for about, parts in cases:
        for odd in ({"name": "odd", **about}, {**about, "name": "odd"}):
            header = game.peer.header("open", world=lab.world["name"], start=start, buffers=[frames, odd])
            game.peer.socket.send_multipart([json.dumps(header).encode(), bytes(described[1]), *parts])
            reply = game.peer.answer(header["id"])
            code = reply.header.get("error", {}).get("code")
            expect(code in ("bad-start", "bad-action", "bad-buffer"), f"bad-start for actions {odd}", reply)


@check("odd-guidance")
def _odd_guidance(lab: Lab) -> None:
    """A guidance beyond reason is refused, or played with; it does not break the session."""
    peer = lab.peer()
    for guidance in (1e30, -1e30, 1e300, protocol.MAX_INT):
        reply = peer.exchange(header := peer.header("open", world=lab.world["name"], guidance=guidance))
        if "error" in reply.header:
            peer.refuse(("bad-field", "bad-start"), header)
        else:
            lab.game(peer, reply).play()
            peer.ask("close", session=reply.header["session"])


@check("bad-prompt")
def _bad_prompt(lab: Lab) -> str | None:
    """A world that takes no prompts refuses one, and changes nothing."""
    for one in lab.hello["worlds"]:
        if not one["prompts"]:
            peer = lab.peer()
            game = peer.ask("open", world=one["name"]).header
            error = peer.exchange(peer.header("prompt", session=game["session"], prompt="fog over a pink sea"))
            if "error" in error.header:
                expect(error.header["error"]["code"] == "bad-prompt", "bad-prompt", error)
                expect(peer.ask("render", session=game["session"]).header["prompt"] == game["prompt"],
                       f"the prompt {game['prompt']!r} still", "another")  # fmt: skip
                return one["name"]
    raise Skipped("every world here takes prompts")


@check("unsupported")
def _unsupported(lab: Lab) -> str | None:
    """An encoding that hello does not name is refused."""
    missing = [encoding for encoding in protocol.ENCODINGS if encoding not in lab.hello["encodings"]]
    if not missing:
        raise Skipped("the host can send all encodings")
    game = lab.open()
    for encoding in missing:
        game.peer.refused("unsupported", "render", session=game.token, encoding=encoding)
        game.peer.refused("unsupported", "open", world=lab.world["name"], encoding=encoding)
    return ", ".join(missing)


# A session's life.


@check("open-step")
def _open_step(lab: Lab) -> str:
    """Open gives a frame, each step the next one with the next number; JSON and buffer mean the same."""
    game = lab.open(seed=1)
    expect(game.token != game.watch, "two tokens", "one")
    actions = lab.actions(6, seed=1)
    frames = game.play(*actions)
    if isinstance(lab.space, spaces.Dict):
        return "no buffers: a Dict space"
    twin = lab.open(seed=1)
    for action, frame in zip(actions, frames, strict=True):
        header = twin.peer.header("step", session=twin.token, step=twin.step)
        buffer = np.asarray(action, np.float32 if isinstance(lab.space, spaces.Box) else np.int64)
        equal(twin.take(twin.peer.must(header, {"action": buffer})), frame, "the same frame for an action in a buffer")
    return f"frames of {lab.world['frame_size']}"


@check("replay")
def _replay(lab: Lab) -> None:
    """The same seed and actions give the same frames, alone and among others."""
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


@check("reset")
def _reset(lab: Lab) -> None:
    """Reset begins anew, as open does."""
    fresh, game = lab.open(seed=21), lab.open(seed=22)
    game.play(*lab.actions(3))
    reply = game.peer.ask("reset", session=game.token, seed=21)
    expect(reply.header["step"] == fresh.step, f"step {fresh.step}", reply)
    equal(lab.frame(reply), fresh.frame, "the first frame of a session that was opened with that seed")
    game.step = fresh.step
    equal(game.play(*lab.actions(3)), fresh.play(*lab.actions(3)), "the same frames afterwards")


@check("prompt")
def _prompt(lab: Lab) -> None:
    """A prompt is in force from the next frame on, and the number of frames stays."""
    if not lab.world["prompts"]:
        raise Skipped("the world tells of no prompts")
    words = lab.world["prompts"][-1]
    game = lab.open(prompt="")
    reply = game.peer.ask("prompt", session=game.token, prompt=words)
    expect(reply.header["prompt"] == words and reply.header["step"] == game.step, f"the prompt {words!r}", reply)
    said = game.peer.ask("render", session=game.token).header["prompt"]
    expect(said == words, f"the prompt {words!r} in render", said)
    game.play()


@check("snapshot")
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


@check("snapshot-owner")
def _snapshot_owner(lab: Lab) -> None:
    """Another client may not drop one's snapshot."""
    game = lab.open()
    token = game.peer.ask("snapshot", session=game.token).header["snapshot"]
    lab.peer().refused("not-allowed", "drop", snapshot=token)
    game.peer.ask("restore", session=game.token, snapshot=token)


@check("fork")
def _fork(lab: Lab) -> None:
    """A fork draws the same frames under the same actions, with tokens of its own."""
    game = lab.open(seed=41)
    game.play(*lab.actions(2))
    twin = game.fork()
    tokens = {game.token, game.watch, twin.token, twin.watch}
    expect(len(tokens) == 4 and twin.step == game.step, "new tokens and the same step", [len(tokens), twin.step])
    equal(twin.frame, game.frame, "the same last frame")
    frames = game.play(*lab.actions(4, seed=4))
    equal(twin.play(*lab.actions(4, seed=4)), frames, "the same frames")


@check("render")
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


@check("close")
def _close(lab: Lab) -> None:
    """Close may be said twice; then there is no session by any of its tokens."""
    game = lab.open()
    for _ in range(2):
        game.peer.ask("close", session=game.token)
    for verb in ("render", "prompt", "snapshot", "fork", "run", "pause", "unwatch"):
        fields = {"prompt": ""} if verb == "prompt" else {}
        game.peer.refused("no-session", verb, session=game.token, **fields)
    game.peer.refuse("no-session", game.request())
    game.peer.refused("no-session", "render", session=game.watch)
    game.peer.refused("no-session", "keep", sessions=[game.token])


@check("batch")
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
    fresh = [lab.open(other, **opening) for opening in openings[::-1]]
    equal(begun.buffers["frames"], [game.frame for game in fresh], "the frames of reset_batch as of open")
    for _ in range(2):
        peer.ask("close_batch", sessions=tokens)
    peer.refused("no-session", "render", session=tokens[0])


@check("two-worlds")
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


@check("batch-shared")
def _batch_shared(lab: Lab) -> None:
    """A session of two players is not stepped in a batch; the others of the batch go on."""
    games = [lab.open() for _ in range(2)]
    games[1].peer.ask("share", session=games[1].token, mode="turns")
    fields = {"sessions": [game.token for game in games], "steps": [game.step for game in games]}
    games[0].peer.refused("not-allowed", "step_batch", **fields, actions=lab.actions(2))
    for game in games:
        game.play()


@check("episode")
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
    twin = peer.ask("fork", session=token).header
    last(twin["session"], twin["step"], count - 1)
    return f"{name}, {count} steps"


@check("req-socket")
def _req_socket(lab: Lab) -> None:
    """A REQ socket, which puts an empty part first, is served too."""
    game = lab.open(lab.peer(kind=zmq.REQ))
    game.play(*lab.actions(2))
    game.peer.ask("close", session=game.token)


# Nothing happens twice.


@check("repeat-step")
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


@check("repeat-batch")
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


@check("repeat-open")
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


@check("repeat-restore")
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


@check("repeat-watch")
def _repeat_watch(lab: Lab) -> None:
    """A watch with the same id again adds no credits."""
    game = lab.open()
    header = game.peer.header("watch", session=game.token, credits=2)
    for _ in range(3):
        game.peer.must(header)
    game.play(*lab.actions(5))
    came = game.peer.pushes(0.3)
    expect(len(came) == 2, "2 frames for 2 credits", f"{len(came)}")


@check("repeat-share")
def _repeat_share(lab: Lab) -> None:
    """A share with the same id again gives the same player's token."""
    game = lab.open()
    header = game.peer.header("share", session=game.token, mode="turns")
    first = game.peer.must(header).header["player"]
    again = game.peer.must(header).header["player"]
    expect(first == again, f"the token {first[:6]}...", f"{again[:6]}..., and the first one permits nothing more")


@check("repeat-snapshot")
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


@check("out-of-order")
def _out_of_order(lab: Lab) -> None:
    """A step with an old or a future number is refused with the host's number, and nothing is drawn."""
    game = lab.open()
    game.play(*lab.actions(3))
    for step in (0, game.step - 1, game.step + 1, game.step + 1000, protocol.MAX_INT):
        header = game.request() | {"step": step}
        error = game.peer.refuse("out-of-order", header)
        expect(error["step"] == game.step, f"the host's step, {game.step}", error)
    game.same()


@check("reordering")
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


@check("late")
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


@check("reconnect")
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


# Who may do what.


@check("no-session")
def _no_session(lab: Lab) -> None:
    """A token that nobody has is refused."""
    peer = lab.peer()
    for verb, declared in protocol.VERBS.items():
        if any(one.name == "session" for one in declared.request) and verb != "close":
            fields = {"prompt": "", "credits": 1, "step": 1, "snapshot": NOBODY, "mode": "turns"}
            needed = {one.name for one in declared.request if one.needed}
            given = {name: value for name, value in fields.items() if name in needed}
            given |= {"action": lab.actions(1)[0]} if verb in ("step", "input") else {}
            peer.refused("no-session", verb, session=NOBODY, **given)
    peer.refused("no-snapshot", "open", world=lab.world["name"], snapshot=NOBODY)


@check("watch-token")
def _watch_token(lab: Lab) -> None:
    """A watch token permits nothing but to watch."""
    game = lab.open()
    token = game.peer.ask("snapshot", session=game.token).header["snapshot"]
    _forbidden(game, game.watch, token, ("step", "input", "prompt", "keep"))
    watcher = lab.peer()
    watcher.ask("watch", session=game.watch, credits=1)
    game.play()
    frames = watcher.pushes(2.0, 1)
    expect(len(frames) == 1, "a frame for the watcher", "none")
    equal(lab.frame(frames[0]), game.frame, "the frame that was stepped")
    expect(frames[0].header["session"] == game.watch, "the watcher's own token in 'session'", frames[0])


def _forbidden(game: Game, token: str, snapshot: str, more: Sequence[str]) -> None:
    """Check that a token permits nothing that is the owner's, nor the verbs named."""
    fields = {"restore": {"snapshot": snapshot}, "share": {"mode": "turns"}, "prompt": {"prompt": ""}}
    action = game.lab.actions(1)[0]
    fields |= {"step": {"step": game.step, "action": action}, "input": {"action": action}}
    for verb in ("reset", "snapshot", "restore", "fork", "run", "pause", "share", "close", *more):
        if verb == "keep":
            game.peer.refused("not-allowed", verb, sessions=[token])
        else:
            game.peer.refused("not-allowed", verb, session=token, **fields.get(verb, {}))
    game.peer.refused("not-allowed", "step_batch", sessions=[token], steps=[game.step], actions=[action])
    game.peer.refused("not-allowed", "reset_batch", sessions=[token], openings=[{}])
    game.peer.refused("not-allowed", "close_batch", sessions=[token])
    game.same()


@check("watch")
def _watch(lab: Lab) -> None:
    """A watcher gets no more frames than it has credits; what it misses is counted, and the newest comes first."""
    game, watcher = lab.open(), lab.peer()
    actions = lab.actions(7)
    watcher.ask("watch", session=game.watch, credits=3)
    drawn: dict[int, np.ndarray] = {}

    def play(count: int) -> None:
        for action in actions[:count]:
            game.play(action)
            drawn[game.step] = game.frame

    play(7)
    pushed = watcher.pushes(0.3)
    expect(len(pushed) == 3, "3 frames for 3 credits", len(pushed))
    expect([one.header["credits"] for one in pushed] == [2, 1, 0], "credits 2, 1, 0", pushed[-1])
    number = watcher.header("watch", session=game.watch, credits=2)
    watcher.must(number)
    play(3)
    more = watcher.pushes(0.3)
    expect(len(more) == 2, "2 frames for 2 more credits", len(more))
    expect(all(one.header["id"] == number["id"] for one in more), "the id of the last watch", more[-1])
    expect(more[0].header["step"] == min(drawn) + 6, f"the newest frame first, {min(drawn) + 6}", more[0])
    step = min(drawn) - 1
    for one in [*pushed, *more]:
        now = one.header["step"]
        expect(now > step and one.header["dropped"] == now - step - 1, f"{now - step - 1} dropped after {step}", one)
        equal(lab.frame(one), drawn[now], f"frame {now} as its step had it")
        step = now
    watcher.ask("watch", session=game.watch, credits=5)
    watcher.ask("unwatch", session=game.watch)
    watcher.pushes(0.1)
    game.play(*actions[:2])
    expect(not watcher.pushes(0.2), "no frames after unwatch", "some")


@check("share-turns")
def _share_turns(lab: Lab) -> None:
    """With turns a step out of turn is refused, and nothing is drawn; a player owns nothing."""
    game, second = lab.open(), lab.peer()
    snapshot = game.peer.ask("snapshot", session=game.token).header["snapshot"]
    player = ""
    for every in (1, 2):
        player = game.peer.ask("share", session=game.token, mode="turns", every=every).header["player"]
        _forbidden(game, player, snapshot, ())
        for turn in range(2 * every + 1):
            mine = turn // every % 2 == 0
            tokens = [(game.peer, game.token), (second, player)][:: 1 if mine else -1]
            whose, other = ("owner", "player") if mine else ("player", "owner")
            error = tokens[1][0].refuse("not-your-turn", game.request() | {"session": tokens[1][1]})
            expect(error["turn"] == whose, f"turn {whose}, not {other}", error)
            game.take(tokens[0][0].must(game.request() | {"session": tokens[0][1]}))
        role = second.ask("render", session=player).header["role"]
        expect(role == "player", "role player", role)
    fresh = game.peer.ask("share", session=game.token, mode="turns").header["player"]
    second.refused("no-session", "render", session=player)
    second.ask("render", session=fresh)
    game.peer.refused("bad-field", "share", session=game.token, mode="turns", every=0)


@check("share-split")
def _share_split(lab: Lab) -> str:
    """With split the second player has its parts of the action, the first one the rest."""
    game, second = lab.open(), lab.peer()
    game.peer.refused("bad-field", "share", session=game.token, mode="split")
    game.peer.refused("bad-field", "share", session=game.token, mode="split", parts=["no-such-key"])
    game.peer.refused("bad-field", "share", session=game.token, mode="split", parts=[10**6])
    twin = game.fork()
    if isinstance(lab.space, spaces.Dict) or int(np.prod(lab.space.shape or ())) < 2:
        key = lab.keys(twin)[-1]
        player = game.peer.ask("share", session=game.token, mode="split", parts=[key]).header["player"]
        for held in (key, "", key):
            second.ask("input", session=player, keys=held)
            equal(game.play(keys=""), twin.play(keys=held), f"the frame of the keys {held!r}")
        return f"by the key {key}"
    parts = [int(np.prod(lab.space.shape or ())) - 1]
    player = game.peer.ask("share", session=game.token, mode="split", parts=parts).header["player"]
    for first, theirs in itertools.pairwise(lab.actions(4, seed=6)):
        both = np.array(first)
        both.reshape(-1)[parts] = np.ravel(theirs)[parts]
        second.ask("input", session=player, action=theirs)
        equal(game.play(first), twin.play(both.tolist()), "the frame of both actions together")
    return f"by the index {parts[0]}"


# Time.


@check("run")
def _run(lab: Lab) -> str:
    """The clock draws at its pace under the action held; meanwhile step is refused, and after pause it is granted."""
    game = lab.open(seed=61)
    twin = lab.open(seed=61)
    action = _telling(lab, twin)
    fps = round(min(25.0, max(1.0, 0.4 / _median(lab, twin.fork(), 8))), 1)
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
    twin.play(*[action] * (game.step - twin.step))
    equal(lab.frame(reply), twin.frame, f"the frame of {game.step - 1} steps with the action held")
    game.play(action)
    default = peer.ask("run", session=game.token).header["fps"]
    expect(default == lab.world["fps"], f"the world's own fps, {lab.world['fps']}", default)
    return f"{pace:.1f} of {fps} frames a second"


def _telling(lab: Lab, game: Game) -> Any:
    """An action that draws another frame than no key does, if one of a few does so."""
    rest = game.fork().play(keys="")[0]
    actions = lab.actions(8, seed=7)
    for action in actions:
        twin = game.fork()
        frame = twin.play(action)[0]
        game.peer.ask("close", session=twin.token)
        if not np.array_equal(frame, rest):
            return action
    return actions[0]


@check("slow-reader")
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
    """Seconds that a step takes."""
    times = []
    for action in lab.actions(count):
        if between is not None:
            between()
        begun = time.perf_counter()
        game.play(action)
        times.append(time.perf_counter() - begun)
    return float(np.median(times))


@check("lease")
def _lease(lab: Lab) -> str:
    """A session ends when nobody has steered it for a lease; keep renews it, watching does not."""
    lease = lab.hello["lease"]
    if lease > SHORT_LEASE:
        raise Skipped(f"the lease is {lease:g} s; start the host with one of {SHORT_LEASE:g} s at most")
    left, kept, watched = lab.open(), lab.open(), lab.open()
    begun = time.monotonic()
    while time.monotonic() - begun < lease + 0.7:
        time.sleep(lease / 5)
        kept.peer.ask("keep", sessions=[kept.token])
        if time.monotonic() - begun < lease - 0.3:
            watched.peer.ask("render", session=watched.watch)
    for game in (left, watched):
        game.peer.refuse("no-session", game.request())
    kept.play()
    return f"{lease:g} s"


# Shares of the host.


@check("full")
def _full(lab: Lab) -> str:
    """Sessions over a client's limit are refused; another client's are not, and one that is closed makes room."""
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


@check("snapshots-full")
def _snapshots_full(lab: Lab) -> str:
    """Of too many snapshots the oldest goes."""
    most = lab.hello["limits"]["snapshots"]
    if most > FEW:
        raise Skipped(f"a client may have {most} snapshots; start the host with {FEW} at most")
    game = lab.open()
    tokens = [game.peer.ask("snapshot", session=game.token).header["snapshot"] for _ in range(most + 1)]
    game.peer.refused("no-snapshot", "restore", session=game.token, snapshot=tokens[0])
    for token in tokens[1:]:
        game.peer.ask("restore", session=game.token, snapshot=token)
    return f"{most} snapshots"


@check("too-fast")
def _too_fast(lab: Lab) -> str:
    """Requests over a client's rate are refused with how long to wait; then it goes on, and others never notice."""
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


def main(words: Sequence[str] | None = None) -> int:
    """Check the host at an address; 0 if nothing failed."""
    parser = argparse.ArgumentParser(prog="python -m worldsim.bridges.check_host", description=main.__doc__)
    parser.add_argument("address", help=f"such as tcp://127.0.0.1:{protocol.PORT}; the host must not ask for keys")
    parser.add_argument("--world", help="that is played; the host's first one by default")
    parser.add_argument("--only", nargs="+", default=(), metavar="CHECK", choices=list(CHECKS), help=", ".join(CHECKS))
    parser.add_argument("--patience", type=float, default=10.0, help="seconds to wait for a reply")
    given = parser.parse_args(words)
    results = check_host(given.address, given.world, given.only, given.patience, lambda line: print(line, flush=True))
    counts = Counter(result.ok for result in results)
    print(f"{counts[True]} ok, {counts[False]} failed, {counts[None]} skipped")
    return 1 if counts[False] else 0


if __name__ == "__main__":
    sys.exit(main())
