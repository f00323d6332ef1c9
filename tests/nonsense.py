"""Malformed and half-true messages from a seed, and what a host makes of them."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator
from typing import Any

import psutil
import zmq
from hosting import digest

from worldsim.bridges import protocol
from worldsim.bridges.client import RemoteEngine
from worldsim.bridges.messages import pack, unpack
from worldsim.engine.records import SessionSpec

BURST = 32  # messages that are sent before replies are read
TOKENS = ["abcdefgh", "0" * 32, "x" * 64]
VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 2, 3, 7, 1.5, -0.0, 1e300, 2**53, 2**63 - 1, 2**63, 2**200, "", "a cart", "left",
    "\ud800", "x" * 2000, "ä" * 64, [], [0], [0, 1], [[0]], {}, {"frames": "a"}, {"frames": "a", "actions": "b"},
    {"seed": 1}, "raw", "jpeg", "shm", "turns", "split", ["left"], [None], [{"seed": 3}], [1e999],
    [{"start": 0}, {"seed": 2**63}],
]  # fmt: skip


def nonsense(rng: random.Random, tokens: list[str], number: int) -> list[bytes]:
    """One message: bytes at random, JSON at random, a request with wrong fields, or a good one with broken buffers."""
    kind = rng.randrange(12)
    if kind == 0:
        return [rng.randbytes(rng.randrange(200)) for _ in range(rng.randrange(1, 5))]
    if kind == 1:
        return [json.dumps(rng.choice(VALUES)).encode()]
    header = request(rng, tokens, number)
    parts = [json.dumps(header).encode()]
    if kind == 2:
        data = bytearray(parts[0])
        for _ in range(rng.randrange(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        parts = [bytes(data)]
    elif kind == 3:
        parts = [parts[0][: rng.randrange(len(parts[0]))]]
    elif kind in (4, 5):
        shape = [rng.randrange(-1, 50) for _ in range(rng.randrange(5))]
        about = {
            "name": rng.choice(["action", "actions", "a", "b", ""]),
            "dtype": rng.choice(["uint8", "int64", "float32", "object"]),
            "shape": shape,
            "encoding": rng.choice(["raw", "raw", "jpeg", "shm", "zip"]),
        }
        header["buffers"] = [about] * rng.randrange(1, 3)
        size = 1 if not shape else abs(shape[0]) * 4
        parts = [json.dumps(header).encode(), *[rng.randbytes(size) for _ in range(rng.randrange(3))]]
    elif kind == 6:
        parts = [b"", *parts]  # as a REQ socket sends it
    return parts


def request(rng: random.Random, tokens: list[str], number: int) -> dict[str, Any]:
    """The header of a request: a verb, most of its fields, values that may be right."""
    name = rng.choice(list(protocol.VERBS)) if rng.random() < 0.97 else rng.choice(["", "Step", "none", None, 3])
    header: dict[str, Any] = {"v": 1, "id": number if rng.random() < 0.9 else rng.choice(VALUES), "verb": name}
    fields = protocol.VERBS[name].request if name in protocol.VERBS else ()
    for field in fields:
        if not field.needed and rng.random() < 0.5:
            continue
        if rng.random() < 0.15:
            header[field.name] = rng.choice(VALUES)
        else:
            header[field.name] = likely(rng, field.kind, tokens)
    if rng.random() < 0.03:
        header[rng.choice(["v", "extra", "buffers", "session"])] = rng.choice(VALUES)
    return header


def likely(rng: random.Random, kind: str, tokens: list[str]) -> Any:
    """A value of a kind that may well be allowed."""
    known = tokens or TOKENS
    some = [rng.choice(known) for _ in range(rng.randrange(1, 4))]
    return {
        "token": rng.choice(known if rng.random() < 0.9 else TOKENS),
        "tokens": list(dict.fromkeys(some)),
        "int": rng.randrange(6),
        "ints": [rng.randrange(6) for _ in some],
        "guidance": rng.random() * 3,
        "text": rng.choice(["a cart", "", "left", "right"]),
        "name": "CartPole-v1",
        "start": rng.choice([0, 1, {"frames": "a", "actions": "b"}]),
        "encoding": rng.choice(["raw", "shm", "jpeg"]),
        "quality": 50,
        "action": rng.choice([0, 1, 2, 1.0, [0]]),
        "list": [rng.choice([0, 1, "left"]) for _ in some],
        "openings": [{"seed": rng.randrange(5)} for _ in some],
        "credits": rng.randrange(4),
        "fps": 100.0,
        "share": rng.choice(["turns", "split"]),
    }[kind]


def fuzz(address: str, process: int, messages: int, seed: int, report_every: float = 0.0) -> dict[str, Any]:
    """Send messages and count what comes back.

    Returns:
        Counts of replies by error code; memory of the host in MB before, after a tenth, and after; whether who plays
        saw the frames of a quiet host; how many sessions are left over once all that were told of are closed; and how
        many messages the fuzzer was too slow to take, among which may be one that told of a session.
    """
    rng, counts = random.Random(seed), {"sent": 0, "replies": 0}
    codes: dict[str, int] = {}
    player = RemoteEngine(address)
    actions = [player.world.action_space.sample() for _ in range(20)]
    numbers = player.open_all([SessionSpec(seed=1), SessionSpec(seed=1)])
    stats = player.connection.call("stats").header["stats"]
    others, before_unsent = stats["sessions"], stats["requests"].get("unsent", 0)
    expected = [digest(player.step({numbers[0]: action})[numbers[0]].frame) for action in actions]
    context, tokens, seen = zmq.Context(), [], []
    opened: set[str] = set()
    socket = context.socket(zmq.DEALER)
    socket.connect(address)
    before, begun, told = memory_mb(process), time.monotonic(), time.monotonic()
    warm = before
    while counts["sent"] < messages:
        if counts["sent"] % (BURST * 40) == 0:
            socket.send_multipart(pack({"v": 1, "id": 1, "verb": "hello", "client": "fuzzer-of-hosts"}))
        for _ in range(BURST):
            socket.send_multipart(nonsense(rng, tokens, counts["sent"]))
            counts["sent"] += 1
        for header in _read(socket, 1):
            counts["replies"] += 1
            code = header.get("error", {}).get("code", "ok")
            codes[code] = codes.get(code, 0) + 1
            told_of = _opened(header)
            opened.update(told_of)
            others_told = [token for token in (header.get("watch"), header.get("snapshot")) if token]
            tokens = [*tokens, *told_of, *others_told][-60:]
        done = len(seen) / len(actions)
        if counts["sent"] / messages > done and len(seen) < len(actions):
            seen.append(digest(player.step({numbers[1]: actions[len(seen)]})[numbers[1]].frame))
        if counts["sent"] >= messages // 10 and warm == before:
            warm = memory_mb(process)
        if report_every and time.monotonic() - told > report_every:
            told = time.monotonic()
            print(f"{counts['sent']} sent, {memory_mb(process):.0f} MB", file=sys.stderr, flush=True)
    while len(seen) < len(actions):
        seen.append(digest(player.step({numbers[1]: actions[len(seen)]})[numbers[1]].frame))
    after = memory_mb(process)
    seconds = time.monotonic() - begun
    for header in _read(socket, 500):
        opened.update(_opened(header))
    for token in opened:
        player.connection.call("close", session=token)
    stats = player.connection.call("stats").header["stats"]
    left, unsent = stats["sessions"] - others, stats["requests"].get("unsent", 0) - before_unsent
    player.close()
    context.destroy(linger=0)
    return {**counts, "seconds": seconds, "codes": codes, "memory_mb": [before, warm, after],
            "equal": seen == expected, "sessions_left": left, "unsent": unsent}  # fmt: skip


def _opened(header: dict[str, Any]) -> list[str]:
    """The tokens of sessions that a reply says were begun."""
    if header.get("verb") not in ("open", "fork", "open_batch"):
        return []
    return [token for token in [header.get("session"), *header.get("sessions", [])] if token]


def _read(socket: zmq.Socket, patience_ms: int) -> Iterator[dict[str, Any]]:
    """Headers of replies, until none comes for a while."""
    while socket.poll(patience_ms):
        parts = socket.recv_multipart()
        yield unpack(parts if parts[0] else parts[1:]).header  # as to a REQ socket, if it was asked as one


def memory_mb(process: int) -> float:
    """Resident memory of the host."""
    return psutil.Process(process).memory_info().rss / 1e6
