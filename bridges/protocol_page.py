"""Make `docs/protocol.md` from `protocol.py`, for authors of clients and hosts.

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
- The host pushes messages without a request; they differ from replies by their `verb`: {", ".join(PUSHES)}.

## Nothing happens twice

Without a reply, a client sends **the same request with the same id** again, over the same or a new connection. The host
does not do it twice: it replies again. `step` names the number of frames that the session has, as the client knows it; if
the host knows another number it refuses (`out-of-order`, with its own `step`), and draws nothing. A new connection says
`hello` with the **same** `client` token first. `hello-first` means that the host was restarted or has forgotten the
connection: say hello, and send the request again.

Of several requests without a reply, send the oldest again first. A request that changes a session is refused
(`out-of-order`) after a newer one of the same client for the same session: it is a late copy.

A session belongs to its token, not to a connection. It lives until `close`, or until its owner and its player have sent no
request for `lease` seconds.

After a kill, a host that is started with `--resume` has every session as its clients last saw it. A stopping host says
`bye`, and refuses further requests with `stopping`.

## Lock-step and real time

Lock-step is the mode above: a frame for each `step`. For real time, `run` starts a session's clock: the host draws frames
at a pace, under the action of the last `input`, as a game does; `pause` stops it. `watch` pushes every frame to its
connection, as long as the connection has credits; each `watch` adds some. Without credits the newest frame waits, in place of
any that waited before; `dropped` counts the frames that were not sent. Watching works in lock-step too, for any number of
connections, and after `reset` and `restore`. It takes the session's own token, a player's, or the `watch` token, which gives
no other right.

A watch belongs to its connection: after a new connection, `watch` again. The action of the last `input` belongs to the
session, and stays in force through `reset`, `restore` and `pause`.

`share` makes a token for a second player. With `turns`, a `step` out of turn is refused; in real time the clock takes the
action of the player whose turn it is. With `split`, the second player's parts of the action come from its last `input`, the
rest from the first player's `input` or `step`.

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
    """Make the page."""
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
    """Format a part as lines of sixteen bytes, in hexadecimal and as characters."""
    data = bytes(part)
    lines = [f"part {number}: {len(data)} bytes\n"]
    for begin in range(0, len(data), 16):
        row = data[begin : begin + 16]
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"  {begin:04x}  {row.hex(' '):47}  {text}\n")
    return "".join(lines)


if __name__ == "__main__":
    print(page(), end="")
