"""Messages of the protocol: encode, decode and check them. No sockets, no torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np

from worldsim.bridges.protocol import (
    DTYPES,
    ENCODINGS,
    KINDS,
    MAX_BUFFERS,
    MAX_DIMENSIONS,
    MAX_HEADER,
    MAX_LENGTH,
    MAX_NAME,
    VERBS,
    VERSION,
    Field,
    is_id,
    is_int,
    short,
)
from worldsim.errors import ProtocolError


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_PARSER = json.JSONDecoder(parse_constant=_refuse)


@dataclass(frozen=True)
class Message:
    """A decoded message: the header, and its buffers by name (arrays; bytes for jpeg; a description for shm)."""

    header: dict[str, Any]
    buffers: dict[str, Any] = dataclass_field(default_factory=dict)


_NAMES = {np.dtype(name): name for name in DTYPES}  # `str(dtype)` is slow
_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


Buffers = Mapping[str, "np.ndarray | bytes | Mapping[str, Any]"]


def pack(header: Mapping[str, Any], buffers: Buffers | None = None) -> list[Any]:
    """Encode a message into its parts.

    Args:
        header: its fields, without "buffers".
        buffers: by name; an array is sent raw, bytes are a JPEG, a mapping describes a place in shared memory.
    """
    described, parts = [], []
    for name, buffer in (buffers or {}).items():
        if isinstance(buffer, Mapping):
            described.append({"name": name, "encoding": "shm", **buffer})
        elif isinstance(buffer, bytes):
            described.append({"name": name, "encoding": "jpeg"})
            parts.append(buffer)
        else:
            array = np.asarray(buffer, order="C")
            dtype = _NAMES.get(array.dtype) or str(array.dtype)
            described.append({"name": name, "dtype": dtype, "shape": list(array.shape), "encoding": "raw"})
            parts.append(array.reshape(-1).data.cast("B") if array.size else b"")
    whole = {**header, "buffers": described} if described else header
    return [_JSON.encode(whole).encode(), *parts]


def unpack(parts: Sequence[Any], header: dict[str, Any] | None = None) -> Message:
    """Decode a message.

    Args:
        parts: bytes, or memory that numpy can look into; arrays share it.
        header: if `read_header` has read it already.

    Raises:
        ProtocolError: bad-message, bad-buffer, too-large.
    """
    header = read_header(parts) if header is None else header
    described = header.get("buffers", [])
    if not isinstance(described, list) or len(described) > MAX_BUFFERS:
        raise ProtocolError("bad-buffer", f"'buffers' must be a list of at most {MAX_BUFFERS} objects.")
    buffers: dict[str, Any] = {}
    rest = iter(parts[1:])
    for about in described:
        if not isinstance(about, dict) or not isinstance(about.get("name"), str):
            raise ProtocolError("bad-buffer", "each of 'buffers' must be an object with a 'name'.")
        name, encoding = about["name"], about.get("encoding", "raw")
        if name in buffers:
            raise ProtocolError("bad-buffer", f"two buffers are called {name[:MAX_NAME]!r}.")
        if encoding == "shm":
            buffers[name] = about
            continue
        part = next(rest, None)
        if part is None:
            raise ProtocolError("bad-buffer", f"the part of buffer {name[:MAX_NAME]!r} is missing.")
        if encoding == "jpeg":
            buffers[name] = bytes(part)
        elif encoding == "raw":
            buffers[name] = _array(name[:MAX_NAME], about, part)
        else:
            raise ProtocolError("bad-buffer", f"encoding is {str(encoding)[:80]!r}; allowed: {', '.join(ENCODINGS)}.")
    if next(rest, None) is not None:
        raise ProtocolError("bad-message", "there are more parts than 'buffers' describes.")
    return Message(header, buffers)


def read_header(parts: Sequence[Any]) -> dict[str, Any]:
    """Decode only the header of a message; its other parts may be wrong.

    Raises:
        ProtocolError: bad-message, too-large.
    """
    if not parts or len(parts) > MAX_BUFFERS + 1:
        raise ProtocolError("bad-message", f"the message has {len(parts)} parts; allowed: 1 to {MAX_BUFFERS + 1}.")
    if len(parts[0]) > MAX_HEADER:
        raise ProtocolError("too-large", f"the header has {len(parts[0])} bytes; allowed: {MAX_HEADER}.")
    try:
        header = _PARSER.decode(bytes(parts[0]).decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError("bad-message", f"the first part is not JSON: {str(error)[:200]}.") from None
    if not isinstance(header, dict):
        raise ProtocolError("bad-message", f"the header is a JSON {type(header).__name__}; allowed: an object.")
    return header


def check_request(message: Message) -> str:
    """Check that every field of a request is of its declared kind; return the verb.

    Raises:
        ProtocolError: wrong-version, unknown-verb, bad-field, too-large.
    """
    header = message.header
    if not is_id(header.get("id")):
        raise ProtocolError("bad-field", f"'id' is {short(header.get('id'))}; allowed: an integer from 0.")
    if header.get("v") != VERSION or isinstance(header["v"], bool):
        error = f"'v' is {short(header.get('v'))}; this host speaks {VERSION}."
        raise ProtocolError("wrong-version", error, {"versions": [VERSION]})
    name = header.get("verb")
    if not isinstance(name, str) or name not in VERBS:
        raise ProtocolError("unknown-verb", f"'verb' is {short(name)}; allowed: {', '.join(VERBS)}.")
    fields = {field.name: field for field in VERBS[name].request}
    for key in header:
        if key not in fields and key not in ("v", "id", "verb", "buffers"):
            raise ProtocolError("bad-field", f"{name} takes no field {short(key)}; allowed: {', '.join(fields)}.")
    for field in fields.values():
        if header.get(field.name) is None:
            if field.needed:
                raise ProtocolError("bad-field", f"{name} needs the field '{field.name}': {field.about}.")
            continue
        check_field(field, header[field.name])
    return name


def check_field(field: Field, value: Any) -> None:
    """Check one field's value.

    Raises:
        ProtocolError: bad-field, too-large.
    """
    allowed, check = KINDS[field.kind]
    if not check(value):
        raise ProtocolError("bad-field", f"'{field.name}' is {short(value)}; allowed: {allowed}.")


def reply_to(header: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """Make the header of a reply."""
    return {"v": VERSION, "id": header.get("id"), "verb": header.get("verb"), **fields}


def error_to(header: Mapping[str, Any], error: ProtocolError) -> dict[str, Any]:
    """Make the header of an error reply; it repeats the request's id and verb where these are valid."""
    number, verb = header.get("id"), header.get("verb")
    fields = {"id": number if is_id(number) else None,
              "verb": verb if isinstance(verb, str) and verb in VERBS else None}  # fmt: skip
    return {"v": VERSION, **fields, "error": {"code": error.code, "message": str(error), **error.more}}


def _array(name: str, about: Mapping[str, Any], part: Any) -> np.ndarray:
    dtype, shape = about.get("dtype"), about.get("shape")
    if dtype not in DTYPES:
        raise ProtocolError("bad-buffer", f"dtype of {name!r} is {short(dtype)}; allowed: {', '.join(DTYPES)}.")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(is_int(n) and 0 <= n <= MAX_LENGTH for n in shape)
    ):
        raise ProtocolError(
            "bad-buffer",
            f"shape of {name!r} is {short(shape)}; allowed: up to {MAX_DIMENSIONS} sizes up to {MAX_LENGTH}.",
        )
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if len(part) != expected:
        raise ProtocolError("bad-buffer", f"buffer {name!r} has {len(part)} bytes; {dtype} {shape} has {expected}.")
    return np.frombuffer(part, np.dtype(dtype).newbyteorder("<")).reshape(shape)
