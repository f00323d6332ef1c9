"""The protocol: round trips, what is refused, and the page that shows it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worldsim.bridges import messages, protocol
from worldsim.bridges.host.verbs import HANDLERS
from worldsim.bridges.messages import Message, check_request, pack, unpack
from worldsim.bridges.protocol import ERRORS, KINDS, VERBS
from worldsim.bridges.protocol_page import page
from worldsim.errors import ProtocolError

TOP = Path(__file__).resolve().parent.parent
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
ARRAYS = hnp.arrays(
    st.sampled_from(protocol.DTYPES), hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5), elements=None
)


def test_page_is_up_to_date() -> None:
    remake = "python -m worldsim.bridges.protocol_page > docs/protocol.md"
    assert (TOP / "docs" / "protocol.md").read_text() == page(), f"remake it: {remake}"


def test_every_verb_is_handled_and_every_kind_is_known() -> None:
    assert list(HANDLERS) == list(VERBS)
    fields = [field for verb in [*VERBS.values(), *protocol.PUSHES.values()] for field in (*verb.request, *verb.reply)]
    assert {field.kind for field in fields} <= set(KINDS)


def test_needs_no_torch() -> None:
    code = "import sys, worldsim.bridges.protocol; sys.exit(any(m in sys.modules for m in ('torch', 'zmq')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@given(header=st.dictionaries(st.text(max_size=12).filter(lambda k: k != "buffers"), JSON, max_size=6),
       arrays=st.dictionaries(st.text(max_size=8), ARRAYS, max_size=4), jpeg=st.binary(max_size=20))  # fmt: skip
def test_round_trip(header: dict[str, Any], arrays: dict[str, np.ndarray], jpeg: bytes) -> None:
    place = {"dtype": "uint8", "shape": [2, 2, 3], "path": "/x", "offset": 0}
    message = unpack([bytes(part) for part in pack(header, {**arrays, " jpeg": jpeg, " shm": place})])
    assert {k: v for k, v in message.header.items() if k != "buffers"} == header
    assert message.buffers.pop(" jpeg") == jpeg
    assert place.items() <= message.buffers.pop(" shm").items()
    assert message.buffers.keys() == arrays.keys()
    for name, array in arrays.items():
        found = message.buffers[name]
        assert found.dtype == array.dtype and found.shape == array.shape and found.tobytes() == array.tobytes()


@settings(max_examples=300)
@given(parts=st.lists(st.binary(max_size=60) | JSON.map(lambda v: json.dumps(v).encode()), max_size=4))
@example(parts=[b"[" * 100_000])
@example(parts=[b'{"id":1e999}'])
@example(parts=[b'{"buffers":[{"name":"a","dtype":"uint8","shape":[65536,65536,65536,65536,65536]}]}', b""])
def test_anything_is_taken_apart_or_refused(parts: list[bytes]) -> None:
    try:
        check_request(unpack(parts))
    except ProtocolError as error:
        assert error.code in ERRORS
        json.dumps(messages.error_to({}, error))


# One good value of each field, from which one is made wrong at a time.
GOOD: dict[str, Any] = {
    "client": "abcdefgh-123", "name": "test", "world": "w", "seed": 1, "prompt": "a cart", "start": 0, "guidance": 1.5,
    "encoding": "raw", "quality": 90, "session": "0123456789abcdef", "step": 3, "action": [0.5], "keys": "left",
    "snapshot": "0123456789abcdef", "sessions": ["0123456789abcdef"], "openings": [{"seed": 1}], "steps": [3],
    "actions": [0], "credits": 4, "fps": 12.5, "mode": "turns", "every": 2, "parts": [0],
}  # fmt: skip
BAD: dict[str, list[Any]] = {
    "token": ["short", "a" * 65, "no spaces here", 12345678, None, [], "ümlaut-token"],
    "int": [-1, 2**63, 1.0, "1", True, []],
    "guidance": ["1", True, [], -0.1, 20.5, 2**70],
    "text": [1, "x" * (protocol.MAX_TEXT + 1), "\ud800", []],
    "name": [1, "x" * (protocol.MAX_NAME + 1)],
    "start": [-1, 1.5, "0", {}, {"frames": 1}, {"frames": "a", "more": "b"}, True],
    "encoding": ["png", 1, "RAW"],
    "quality": [0, 101, 50.0],
    "action": [],  # the engine's to check
    "tokens": [[], "0123456789abcdef", ["0123456789abcdef"] * 2, ["x"], ["0123456789abcde" + c for c in "abc"] * 100],
    "ints": [[], [-1], [1.5], 3, [True]],
    "list": [[], {}, 0],
    "openings": [[], [1], [{"seed": -1}], [{"unknown": 1}], {}],
    "credits": [-1, protocol.MAX_CREDITS + 1, 1.5],
    "fps": [0, -1, 1001, "12"],
    "share": ["both", 1],
}


@pytest.mark.parametrize("verb", VERBS)
def test_every_field_is_checked(verb: str) -> None:
    fields = {field.name: field for field in VERBS[verb].request}
    header = {"v": 1, "id": 1, "verb": verb} | {name: GOOD[name] for name in fields}
    assert check_request(Message(header)) == verb
    for name, field in fields.items():
        for bad in BAD[field.kind]:
            if bad is None and not field.needed:
                continue
            with pytest.raises(ProtocolError, match=f"'{name}'") as caught:
                check_request(Message(header | {name: bad}))
            assert caught.value.code == "bad-field" and "allowed" in str(caught.value) or bad is None
        without = {k: v for k, v in header.items() if k != name}
        if field.needed:
            with pytest.raises(ProtocolError, match="needs the field"):
                check_request(Message(without))
        else:
            assert check_request(Message(without)) == verb
    with pytest.raises(ProtocolError, match="takes no field"):
        check_request(Message(header | {"sesion": 1}))


def code(header: dict[str, Any]) -> str:
    with pytest.raises(ProtocolError) as caught:
        check_request(Message(header))
    return caught.value.code


def test_version_id_and_verb() -> None:
    good = {"v": 1, "id": 1, "verb": "stats"}
    assert check_request(Message(good)) == "stats"
    assert [code(good | {"v": v}) for v in (0, 2, "1", True, None, 1.5)] == ["wrong-version"] * 6
    assert [code(good | {"id": n}) for n in (-1, 1.5, "1", None, True, 2**63)] == ["bad-field"] * 6
    assert [code(good | {"verb": v}) for v in ("Stats", "", None, 1, [])] == ["unknown-verb"] * 5


def broken(parts: list[bytes]) -> str:
    with pytest.raises(ProtocolError) as caught:
        unpack(parts)
    return caught.value.code


def test_limits() -> None:
    def header(**about: Any) -> bytes:
        return json.dumps({"buffers": [{"name": "a", "dtype": "uint8", "shape": [2], **about}]}).encode()

    assert unpack([header(), b"ab"]).buffers["a"].tolist() == [97, 98]
    wrong = [{"dtype": "object"}, {"dtype": "<u1"}, {"shape": [-1]}, {"shape": [2.0]}, {"shape": [1] * 6}, {"shape": 2},
             {"shape": [70_000]}, {"shape": [3]}, {"encoding": "zip"}, {"encoding": []}, {"name": 1}]  # fmt: skip
    assert [broken([header(**about), b"ab"]) for about in wrong] == ["bad-buffer"] * len(wrong)
    assert broken([header()]) == "bad-buffer"
    assert broken([header(), b"ab", b"more"]) == "bad-message"
    assert broken([b"{}"] + [b""] * (protocol.MAX_BUFFERS + 1)) == "bad-message"
    assert broken([b" " * (protocol.MAX_HEADER + 1)]) == "too-large"
    assert [broken([text]) for text in (b"", b"[]", b"{", b"\xff", b'{"a":NaN}', b"1" * 5000)] == ["bad-message"] * 6
    assert broken([]) == "bad-message"


def test_mutated_requests() -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    good = b"".join(
        pack({"v": 1, "id": 1, "verb": "open", **{k: GOOD[k] for k in ("world", "seed", "prompt", "start")}})
    )
    for _ in range(3000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            check_request(unpack([bytes(data)]))
        except ProtocolError as error:
            assert error.code in ERRORS
