"""Checks of wrong messages: each is refused with its code, and changes nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.bridges import messages, protocol
from worldsim.bridges.conformance.checks import NOBODY, Skipped, expect
from worldsim.bridges.conformance.host_checks.registry import Checks
from worldsim.bridges.conformance.host_lab import Lab, Peer, equal

LARGEST = 2**26  # bytes of a message that is sent to be refused

BAD: dict[str, list[Any]] = {
    "int": [-1, 2**63, 1.5, "1", True, [1]],
    "number": ["1", True, [1], 2**64],
    "guidance": [-1, protocol.MAX_GUIDANCE + 1, "1", True, [1], 2**64],
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
"""Values that a host must refuse, by kind."""

CHECKS = Checks()


@CHECKS.add("hello-first")
def _hello_first(lab: Lab) -> None:
    """A connection without a hello is refused with hello-first; after it the same request is granted."""
    peer = lab.peer(greet=False)
    for verb, fields in (("open", {}), ("step", {"session": NOBODY, "step": 1}), ("close", {"session": NOBODY})):
        peer.refused("hello-first", verb, **fields)
    request = peer.header("open", world=lab.world["name"])
    peer.refuse("hello-first", request)
    peer.greet()
    peer.must(request)


@CHECKS.add("greeting-again")
def _greeting_again(lab: Lab) -> None:
    """Hello may be said again, and the host says the same."""
    peer = lab.peer()
    expect(peer.greet().header["host"] == lab.hello["host"], f"host {lab.hello['host']}", "another")


@CHECKS.add("wrong-version")
def _wrong_version(lab: Lab) -> None:
    """Another version is refused with the list of supported ones, in hello too."""
    for version in (0, 2, "1", True, None):
        peer = lab.peer(greet=False)
        for header in ({"v": version, "client": peer.token, "verb": "hello"}, {"v": version, "verb": "stats"}):
            error = peer.refuse("wrong-version", peer.header(**header))
            expect(protocol.VERSION in error["versions"], f"versions with {protocol.VERSION}", error)
            peer.greet()


@CHECKS.add("unknown-verb")
def _unknown_verb(lab: Lab) -> None:
    """An unknown verb is refused."""
    peer = lab.peer()
    for verb in ("jump", "frame", "Step", "", 5, None, ["step"]):
        peer.refused("unknown-verb", verb)


@CHECKS.add("bad-id")
def _bad_id(lab: Lab) -> None:
    """An id that is no integer from 0 is refused, in a reply whose id is null."""
    peer = lab.peer()
    for number in (-1, 2**63, 1.5, "1", True, [1]):
        peer.refuse("bad-field", {"v": protocol.VERSION, "id": number, "verb": "stats"})
    peer.refuse("bad-field", {"v": protocol.VERSION, "verb": "stats"})


@CHECKS.add("unknown-field")
def _unknown_field(lab: Lab) -> None:
    """A field that a verb does not declare is refused."""
    for peer, verb, fields in _requests(lab):
        peer.refused("bad-field", verb, **fields, colour=1)


@CHECKS.add("missing-field")
def _missing_field(lab: Lab) -> None:
    """A field that a verb needs must be there, and not be null."""
    for peer, verb, fields in _requests(lab):
        for one in protocol.VERBS[verb].request:
            if one.needed:
                peer.refused("bad-field", verb, **{k: v for k, v in fields.items() if k != one.name})
                peer.refused("bad-field", verb, **{**fields, one.name: None})


@CHECKS.add("null-field")
def _null_field(lab: Lab) -> None:
    """A field that may be left out may be null."""
    peer = lab.peer()
    names = [one.name for one in protocol.VERBS["open"].request if one.name != "world"]
    game = lab.open(peer, **dict.fromkeys(names))
    peer.ask("step", session=game.token, step=game.step, action=lab.actions(1)[0], keys=None)


@CHECKS.add("bad-values")
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


@CHECKS.add("bad-message")
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


@CHECKS.add("large-header")
def _large_header(lab: Lab) -> None:
    """A header over its limit is refused."""
    peer = lab.peer()
    peer.refuse_parts("too-large", [b" " * (protocol.MAX_HEADER + 1 - 2) + b"{}"])
    peer.greet()


@CHECKS.add("large-message")
def _large_message(lab: Lab) -> str | None:
    """A message over the limit is refused; one of more than twice the limit may end its own connection only."""
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


@CHECKS.add("bad-buffer")
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


@CHECKS.add("no-world")
def _no_world(lab: Lab) -> None:
    """A world that the host does not serve is refused, and none at all where it serves several."""
    peer = lab.peer()
    peer.refused("no-world", "open", world="no such world")
    peer.refused("no-world", "open_batch", world="no such world", openings=[{}])
    if len(lab.hello["worlds"]) > 1:
        peer.refused("no-world", "open")
    else:
        peer.ask("open")


@CHECKS.add("bad-action")
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


@CHECKS.add("bad-start")
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


@CHECKS.add("odd-clips")
def _odd_clips(lab: Lab) -> None:
    """Actions of a clip that are no list of actions are refused."""
    game = lab.open()
    clip = np.stack([game.frame, game.frame, game.frame])
    described = messages.pack({}, {"clip": clip})
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


@CHECKS.add("odd-guidance")
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


@CHECKS.add("bad-prompt")
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


@CHECKS.add("unsupported")
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
