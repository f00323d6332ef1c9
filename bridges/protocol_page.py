"""`docs/protocol.md`, made from `protocol.py`: what a writer of another client or host reads.

Remake it: python -m worldsim.bridges.protocol_page > docs/protocol.md
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from worldsim.bridges import protocol
from worldsim.bridges.messages import pack
from worldsim.bridges.protocol import ERRORS, KINDS, PUSHES, VERBS, Field, Verb

INTRODUCTION = f"""# The bridge's protocol, version {protocol.VERSION}

This page is made from `bridges/protocol.py` (`python -m worldsim.bridges.protocol_page > docs/protocol.md`); a test
keeps the two equal. `worldsim.bridges.conformance` has programs that check a client or a host of your own against it.

## In short

A client sends requests to a host over ZeroMQ and gets one reply each. `hello` comes first, `open` begins a session, each
`step` carries an action and brings a frame, `close` ends it.

```
client                                             host
hello   client=TOKEN                  ->
                                      <-           worlds, limits, lease, encodings
open    world=car-racing seed=7       ->
                                      <-           session=TOKEN step=5 + frame
step    session step=5 action=[0,1,0] ->
                                      <-           step=6 reward terminated truncated + frame
step    session step=6 keys=left+up   ->
                                      <-           step=7 ...
close   session                       ->
                                      <-           (done)
```

Wait for the reply of `close` before you disconnect: a request may be lost with its connection.

## Messages

- ZeroMQ: the host has a ROUTER, the client a DEALER (no empty first part) or a REQ (which puts one there by itself; it
  cannot watch). Default address `tcp://127.0.0.1:{protocol.PORT}`.
- A message is a multipart: a **header**, then **buffers**. The header is one JSON object in UTF-8, without NaN or
  Infinity. Its field `buffers` says what the other parts are, in order: `name`, `encoding`, and for `raw` also `dtype` and
  `shape`. Numbers in raw buffers are little-endian, the last index runs fastest; a frame is uint8 (height, width, 3), RGB.
- Every request has `v` (the version, {protocol.VERSION}), `id` (an integer, higher than that of this client's requests
  before) and `verb`. Unknown fields are refused. A field that is null counts as missing.
- Every reply has `v`, and `id` and `verb` of the request. If it has `error`, nothing was done: `code` is one of those
  below, `message` is for people, and some codes bring more.
- Pushes come unasked, to those who watch; tell them by their `verb`: {", ".join(PUSHES)}.

## Nothing happens twice

A client that gets no reply sends **the same request with the same id** again, over the same or a new connection. The host
does not do it twice: it answers again. `step` names the number of frames the session has, as the client knows it; if the
host knows another number it refuses (`out-of-order`, with its own `step`), and draws nothing. A new connection says
`hello` with the **same** `client` token first; a host that answers `hello-first` was started anew, or has forgotten the
connection: say hello, and send the request again.

Of several requests without a reply the oldest is sent again first. One that changes a session is refused
(`out-of-order`) if the host has had a newer one of this client for that session: it has come twice, the second time late.

A session belongs to its token, not to a connection. It lives until `close`, or until nobody has steered it for `lease`
seconds. Every request of the owner or the player renews that.

A host that was killed and started with `--resume` has every session as its clients last saw it. A host that stops says
`bye`, and answers `stopping` to whoever still asks.

## Lock-step and real time

Lock-step is the way above: a frame for each `step`. For real time, `run` starts a session's clock: the host draws frames
at a pace, under the action that `input` said last, as a game does; `pause` ends that. `watch` has every frame pushed to
the connection that asks, as long as it has credits; each `watch` adds some. Without credits the newest frame waits and
takes the place of the one before; `dropped` says how many were left out. Watching works in lock-step too, for any number of
connections, and after `reset` and `restore`: with the session's own token, with a player's, or with its `watch` token, which permits nothing else.

What is watched belongs to the connection: `watch` again after a new one. What `input` holds belongs to the session, and
stays held through `reset`, `restore` and `pause`.

`share` makes a token for a second player. With `turns` a `step` out of turn is refused; in real time the clock takes the
action of whose turn it is. With `split` the second player's parts of the action come from what it holds (`input`), the
rest from what the first one holds or steps with.

## Frames

- `raw`: the part is the frame. Every host sends it.
- `jpeg`: the part is a JPEG file; its description has only `name` and `encoding`.
- `shm`: there is no part. The description has `dtype`, `shape`, `path` and `offset`: the frame lies there in a file that
  host and client share; it is overwritten some steps later. Ask for it only if the file that `hello` names in `shm` holds
  the nonce that it names.

`frames` of the batch verbs is always raw, (sessions, height, width, 3).

## By hand: ZMTP 3.0

For engines without libzmq. All of it over one TCP connection; NULL mechanism, on a loopback address or behind a tunnel
(a host with keys needs CURVE, and so libzmq).

1. Both send 64 bytes: `ff 00 00 00 00 00 00 00 01 7f 03 00`, `4e 55 4c 4c` ("NULL"), 16 zeros, `00`, 31 zeros. Read the
   host's 64.
2. Both send a READY command. A client's: `04 1c 05 52 45 41 44 59` (flags 4, length 28, 5, "READY"), then
   `0b` "Socket-Type" `00 00 00 06` "DEALER". Read the host's: one flags byte, a length of one byte (or of 8 where bit 1 of
   the flags is set), and that many bytes.
3. A part of a message is: flags (bit 0: more parts follow; bit 1: the length has 8 bytes; bit 2: a command), the length (1
   byte, or 8, most significant first), the bytes. Commands that come later (PING) are answered: `PING` + 2 bytes time to
   live + context -> `PONG` + context; this host sends none.
"""  # noqa: E501  -- the lines of the page

LIMITS = (
    ("header", protocol.MAX_HEADER, "bytes"),
    ("buffers", protocol.MAX_BUFFERS, "parts besides the header"),
    ("prompt", protocol.MAX_TEXT, "characters"),
    ("names", protocol.MAX_NAME, "characters"),
    ("batch", protocol.MAX_BATCH, "sessions in one request"),
    ("credits", protocol.MAX_CREDITS, "of one watcher"),
    ("dimensions", protocol.MAX_DIMENSIONS, "of a raw buffer"),
    ("length", protocol.MAX_LENGTH, "along one dimension"),
    ("integers", protocol.MAX_INT, "2^63 - 1; a client whose numbers are doubles stays below 2^53"),
    ("whole message", "see `hello`", "`limits.message_bytes`; twice that ends the connection"),
)


def page() -> str:
    """The page."""
    parts = [INTRODUCTION, "## Verbs\n", *_verbs(VERBS), "## Pushes\n", *_verbs(PUSHES)]
    parts += ["## Kinds of fields\n", _table(("kind", "allowed"), ((k, allowed) for k, (allowed, _) in KINDS.items()))]
    parts += ["## Errors\n", _table(("code", "meaning"), ERRORS.items())]
    parts += ["## Limits\n", _table(("what", "at most", ""), LIMITS), "## Byte for byte\n", *_examples()]
    return "\n".join(parts)


def _verbs(verbs: dict[str, Verb]) -> Iterable[str]:
    for name, verb in verbs.items():
        yield f"### {name}\n\n{verb.about}\n"
        if verb.request:
            yield _fields("request", verb.request)
        what = "push" if verbs is PUSHES else "reply"
        yield _fields(what, verb.reply) if verb.reply or verb.buffers else "The reply has no fields of its own.\n"
        if verb.buffers:
            yield f"Buffer of the {what}: `{'`, `'.join(verb.buffers)}`.\n"


def _fields(title: str, fields: Sequence[Field]) -> str:
    rows = ((f"`{field.name}`" + ("" if field.needed else " (optional)"), field.kind, field.about) for field in fields)
    return _table((title, "kind", ""), rows)


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


def _examples() -> Iterable[str]:
    token, session = "a-client-made-this-up", "0123456789abcdef0123456789abcdef"
    frame = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    drawn = {"step": 2, "reward": 0.5, "ended": 0.25, "terminated": False, "truncated": False}
    examples = {
        "A hello.": pack({"v": 1, "id": 1, "verb": "hello", "client": token, "name": "my engine"}),
        "A step, the action as JSON.": pack(
            {"v": 1, "id": 3, "verb": "step", "session": session, "step": 1, "action": [-0.5, 0.25, 0]}
        ),
        "The same, the action as a buffer of float32.": pack(
            {"v": 1, "id": 3, "verb": "step", "session": session, "step": 1},
            {"action": np.array([-0.5, 0.25, 0], np.float32)},
        ),
        "Its reply, with a frame of 2 x 2 pixels.": pack({"v": 1, "id": 3, "verb": "step", **drawn}, {"frame": frame}),
        "An error.": pack(
            {
                "v": 1,
                "id": 4,
                "verb": "step",
                "error": {"code": "out-of-order", "message": "step is 1, but it has 2.", "step": 2},
            }
        ),
    }
    for title, parts in examples.items():
        yield f"{title}\n\n```\n{''.join(_dump(i, part) for i, part in enumerate(parts))}```\n"


def _dump(number: int, part: bytes) -> str:
    """A part as people read it: sixteen bytes a line, hexadecimal, and the characters that they are."""
    data = bytes(part)
    lines = [f"part {number}: {len(data)} bytes\n"]
    for begin in range(0, len(data), 16):
        row = data[begin : begin + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"  {begin:04x}  {row.hex(' '):47}  {text}\n")
    return "".join(lines)


if __name__ == "__main__":
    print(page(), end="")
