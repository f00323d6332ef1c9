"""Malformed and half-true messages for a host, from a seed."""

from __future__ import annotations

import json
import random
from typing import Any

from worldsim.bridges import protocol

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
        if rng.random() < 0.3:
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
        "number": rng.random() * 3,
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
