"""The bridge's protocol: every verb, field, limit and error, and how a message becomes bytes. No sockets, no torch.

A message is a ZeroMQ multipart: [header, buffer, ...]. The header is JSON (UTF-8, one object); its "buffers" say
what the other parts are. Client: a DEALER (or REQ) socket. Host: a ROUTER. Every request gets one reply with its "id";
besides, the host pushes "frame" messages to those who watch and a "bye" when it stops.

`docs/protocol.md` is made from this file: `python -m worldsim.bridges.protocol_page > docs/protocol.md`.
Past 400 lines, because it is that document.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as dataclass_field
from typing import Any

import numpy as np

from worldsim.errors import ProtocolError

VERSION = 1
PORT = 5570

# Limits on everything that has a length. A host may allow less, never more; `hello` says what it allows.
MAX_HEADER = 256 * 1024  # bytes
MAX_BUFFERS = 64  # parts besides the header
MAX_TEXT = 1000  # characters of a prompt
MAX_NAME = 64  # characters of a world's or a program's name
MAX_BATCH = 256  # sessions in one request
MAX_CREDITS = 10_000
MAX_DIMENSIONS = 5
MAX_GUIDANCE = 20
MAX_LENGTH = 65_536  # along one dimension
MAX_INT = 2**63 - 1

DTYPES = ("uint8", "int8", "int32", "int64", "float32", "float64")
"""Of raw buffers, little-endian, rows first."""

ENCODINGS = ("raw", "jpeg", "shm")
"""Of frames. raw: the bytes as they are. jpeg: a JPEG file. shm: no part at all, but a place in a shared file."""

TOKEN = re.compile(r"[A-Za-z0-9_-]{8,64}")

ERRORS: dict[str, str] = {
    "bad-message": "no JSON object where the header must be, or more parts than it describes",
    "wrong-version": "`v` is a version that this host does not speak; the reply's `versions` are those it does",
    "unknown-verb": "no such verb",
    "bad-field": "a field is missing, is unknown to the verb, or has a value that is not allowed",
    "bad-buffer": "a buffer is not what its description says, or a described one is missing",
    "too-large": "the header or the whole message is over its limit",
    "hello-first": "this connection has not said `hello` yet, or the host has started anew since",
    "no-world": "the host does not serve that world",
    "no-session": "no session goes by that token: it never was, was closed, or its lease ended",
    "no-snapshot": "no snapshot goes by that token: it never was, was dropped, or made room for newer ones",
    "not-allowed": "the token, or the key of the connection, does not permit this",
    "not-your-turn": "another player's turn; the reply's `turn` says whose",
    "out-of-order": "`step` is not the number of frames the session has (the reply's is), or the request comes late",
    "wrong-mode": "the session's clock runs and draws the frames: `pause` it to step, or send `input`",
    "bad-action": "the action is outside the world's action space, or the keys mean nothing in this world",
    "bad-prompt": "the world cannot take that prompt",
    "bad-start": "the clip or the settings to begin from do not fit the world",
    "bad-snapshot": "the snapshot cannot be restored into this world",
    "full": "no room: the engine's memory, or this client's share of sessions or snapshots, is used up",
    "too-fast": "over this client's rate of requests; the reply's `wait` says for how many seconds to be quiet",
    "unsupported": "the host cannot do this, for example encode JPEG without the package for it",
    "stopping": "the host is about to stop; it may come back with the same sessions",
    "failed": "something inside the host that should not happen; its log says more",
}


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


_PARSER = json.JSONDecoder(parse_constant=_refuse)


@dataclass(frozen=True)
class Field:
    """One field of a header.

    Attributes:
        name: in the header.
        kind: one of `KINDS`.
        about: what it means.
        needed: whether it must be there.
    """

    name: str
    kind: str
    about: str
    needed: bool = True


@dataclass(frozen=True)
class Verb:
    """One verb: what a request carries and what its reply carries, besides `v`, `id`, `verb` and `buffers`."""

    about: str
    request: tuple[Field, ...] = ()
    reply: tuple[Field, ...] = ()
    buffers: tuple[str, ...] = ()  # that the reply carries


def _maybe(name: str, kind: str, about: str) -> Field:
    return Field(name, kind, about, needed=False)


_SESSION = Field("session", "token", "whose")
_OPENING = (
    _maybe("seed", "int", "of the noise; 0 if not given"),
    _maybe("prompt", "text", "words for the frames from now on; the start's own or the world's first if not given"),
    _maybe(
        "start",
        "start",
        "the number of a clip that the world carries, or a clip in buffers; if not given, a prompt "
        "begins from words alone, and with neither the seed chooses one of the world's clips",
    ),
    _maybe("guidance", "guidance", "on the prompt; the world's own if not given"),
)
_ENCODING = (
    _maybe("encoding", "encoding", "of the frames; raw if not given"),
    _maybe("quality", "quality", "of jpeg, 1 to 100; 90 if not given"),
)
_STEP = Field("step", "int", "how many frames the session has; more than one after a start from a clip")
_STATE = (_STEP, Field("prompt", "text", "in force for the next frame"))
_DRAWN = (
    _STEP,
    Field("reward", "number", "of this frame, learned"),
    Field("ended", "number", "learned probability that the episode ended with it, 0 to 1"),
    Field("terminated", "bool", "whether it did: drawn with that probability, from seed and step"),
    Field("truncated", "bool", "whether the episode has as many steps as the world's card allows"),
)
_WORLD = Field("world", "name", "its name")
_ROLE = Field("role", "text", "of the token: owner, player or watcher")
_SESSIONS = Field("sessions", "tokens", "which, in order")
_ACTION = (
    _maybe("action", "action", "JSON: a number, or nested lists, or an object for a Dict space"),
    _maybe("keys", "text", 'instead of it, the keys held, such as "left+up"; buffer `action` is the third way'),
)

VERBS: dict[str, Verb] = {
    "hello": Verb(
        "Say who you are, and learn what there is. First on every connection.",
        (
            Field("client", "token", "made up by the client at random, and kept: it is how a host knows it again"),
            _maybe("name", "name", "of the program, for the log"),
        ),
        (
            Field("host", "token", "made up by the host when it started"),
            Field("software", "text", "of the host"),
            Field("worlds", "list", "one object each: name, frame_size [height, width], fps, action_space, keys "
                  "(combinations and their actions), prompts, starts (how many), episode_steps, fingerprint"),
            Field("lease", "number", "seconds that a session lives without a request"),
            Field("limits", "object", "sessions, snapshots, rate (requests a second), message_bytes"),
            Field("encodings", "list", "what this host can send"),
            _maybe("shm", "object", "path and nonce of a file: a client that finds that nonce there may ask for shm"),
        ),
    ),
    "open": Verb(
        "Begin a session.",
        (_maybe("world", "name", "may be left out where there is one"), *_OPENING, *_ENCODING,
         _maybe("snapshot", "token", "go on from it; the other settings have no effect then")),
        (Field("session", "token", "who knows it may do everything"), Field("watch", "token", "who knows it may watch"),
         _WORLD, *_STATE),
        ("frame",),
    ),
    "reset": Verb("Begin anew, in the same session.", (_SESSION, *_OPENING), _STATE, ("frame",)),
    "step": Verb(
        "Draw the next frame under an action.",
        (_SESSION, Field("step", "int", "how many frames you know the session to have; another number is refused"),
         *_ACTION),
        _DRAWN,
        ("frame",),
    ),
    "prompt": Verb("Condition the frames from now on.", (_SESSION, Field("prompt", "text", "the words")), _STATE),
    "snapshot": Verb(
        "Keep the session as it is now, with the host.",
        (_SESSION,),
        (Field("snapshot", "token", "to restore; the oldest goes where there are too many"), _STEP),
    ),
    "restore": Verb(
        "Go back to a snapshot, of this session or of another one of the same world.",
        (_SESSION, Field("snapshot", "token", "which")),
        _STATE,
        ("frame",),
    ),
    "drop": Verb("Forget a snapshot.", (Field("snapshot", "token", "which"),)),
    "fork": Verb(
        "Open a twin: under the same actions it draws the same frames.",
        (_SESSION, _maybe("seed", "int", "go on with other noise"), *_ENCODING),
        (Field("session", "token", "the twin's"), Field("watch", "token", "the twin's"), _WORLD, *_STATE),
        ("frame",),
    ),
    "render": Verb(
        "The last frame again.",
        (_SESSION, *_ENCODING),
        (*_STATE, _ROLE, _WORLD, _maybe("watch", "token", "for the owner: who knows it may watch")),
        ("frame",),
    ),
    "close": Verb("End a session.", (_SESSION,)),
    "keep": Verb("Renew leases and do nothing else.", (_SESSIONS,)),
    "stats": Verb("Counts and latencies of the host.", (), (Field("stats", "object", "by name"),)),
    "open_batch": Verb(
        "Begin several sessions, all or none.",
        (_maybe("world", "name", "may be left out where there is one"),
         Field("openings", "openings", "one object each, with the fields seed, prompt, start, guidance")),
        (_SESSIONS, _WORLD, Field("steps", "ints", "how many frames each has"), Field("prompts", "list", "one each")),
        ("frames",),
    ),
    "reset_batch": Verb(
        "Begin several sessions anew, all or none.",
        (_SESSIONS, Field("openings", "openings", "one object each")),
        (Field("steps", "ints", "how many frames each has"), Field("prompts", "list", "one each")),
        ("frames",),
    ),
    "step_batch": Verb(
        "Draw the next frame of several sessions of one world in one pass, all or none.",
        (_SESSIONS, Field("steps", "ints", "how many frames each has"),
         _maybe("actions", "list", "one each, as in `step`; or a buffer `actions`")),
        (Field("steps", "ints", "now"), Field("rewards", "list", "one each"), Field("ended", "list", "one each"),
         Field("terminated", "list", "one each"), Field("truncated", "list", "one each")),
        ("frames",),
    ),
    "close_batch": Verb("End several sessions.", (_SESSIONS,)),
    "watch": Verb(
        "Have every frame of a session pushed to this connection, as many as there are credits. Again: more credits.",
        (Field("session", "token", "of the session, of a player, or to watch"),
         Field("credits", "credits", "frames that may be sent from now on, added to those left"), *_ENCODING),
        (*_STATE, _ROLE, _WORLD, Field("fps", "number", "of the clock, 0 while it stands")),
    ),
    "unwatch": Verb("No more frames.", (_SESSION,)),
    "run": Verb(
        "Start the clock: the host draws frames at a pace, under the actions held.",
        (_SESSION, _maybe("fps", "fps", "the world's own if not given")),
        (*_STATE, Field("fps", "number", "of the clock")),
    ),
    "pause": Verb("Stop the clock.", (_SESSION,), _STATE),
    "input": Verb("Hold an action until the next one.", (_SESSION, *_ACTION), (_STEP,)),
    "share": Verb(
        "Let a second player in. turns: they alternate; split: each has parts of the action.",
        (_SESSION, Field("mode", "share", '"turns" or "split"'),
         _maybe("every", "int", "turns: frames until the other's turn; 1 if not given"),
         _maybe("parts", "list", "split: the second player's part, as indices into the action, or as names of keys")),
        (Field("player", "token", "who knows it is the second player"),),
    ),
}  # fmt: skip

PUSHES: dict[str, Verb] = {
    "frame": Verb(
        "A frame of a watched session; `id` is that of the last `watch`.",
        (),
        (_SESSION, *_DRAWN, Field("prompt", "text", "in force"), Field("credits", "int", "left after this one"),
         Field("dropped", "int", "frames between the last one sent and this one that were not sent, for want of "
               "credits or because the connection was slow")),
        ("frame",),
    ),
    "bye": Verb("The host stops.", (), (Field("resume", "bool", "whether its sessions can be gone on with"),)),
}  # fmt: skip


@dataclass(frozen=True)
class Message:
    """A message that was taken apart: the header, and its buffers by name (arrays; bytes where they are jpeg)."""

    header: dict[str, Any]
    buffers: dict[str, Any] = dataclass_field(default_factory=dict)


_NAMES = {np.dtype(name): name for name in DTYPES}  # numpy takes long to name them
_JSON = json.JSONEncoder(separators=(",", ":"), allow_nan=False)
Buffers = Mapping[str, "np.ndarray | bytes | Mapping[str, Any]"]


def pack(header: Mapping[str, Any], buffers: Buffers | None = None) -> list[Any]:
    """The parts of a message.

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
    """Take a message apart.

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
    """The header alone, of a message whose rest may be wrong.

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
    """The verb of a request whose every field is of the kind that `VERBS` says.

    Raises:
        ProtocolError: wrong-version, unknown-verb, bad-field, too-large.
    """
    header = message.header
    if not _is_id(header.get("id")):
        raise ProtocolError("bad-field", f"'id' is {_short(header.get('id'))}; allowed: an integer from 0.")
    if header.get("v") != VERSION or isinstance(header["v"], bool):
        error = f"'v' is {_short(header.get('v'))}; this host speaks {VERSION}."
        raise ProtocolError("wrong-version", error, {"versions": [VERSION]})
    name = header.get("verb")
    if not isinstance(name, str) or name not in VERBS:
        raise ProtocolError("unknown-verb", f"'verb' is {_short(name)}; allowed: {', '.join(VERBS)}.")
    fields = {field.name: field for field in VERBS[name].request}
    for key in header:
        if key not in fields and key not in ("v", "id", "verb", "buffers"):
            raise ProtocolError("bad-field", f"{name} takes no field {_short(key)}; allowed: {', '.join(fields)}.")
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
        raise ProtocolError("bad-field", f"'{field.name}' is {_short(value)}; allowed: {allowed}.")


def reply_to(header: Mapping[str, Any], **fields: Any) -> dict[str, Any]:
    """The header of a reply."""
    return {"v": VERSION, "id": header.get("id"), "verb": header.get("verb"), **fields}


def error_to(header: Mapping[str, Any], error: ProtocolError) -> dict[str, Any]:
    """The header of a reply that says what was wrong; only an id and a verb that make sense are given back."""
    number, verb = header.get("id"), header.get("verb")
    fields = {"id": number if _is_id(number) else None,
              "verb": verb if isinstance(verb, str) and verb in VERBS else None}  # fmt: skip
    return {"v": VERSION, **fields, "error": {"code": error.code, "message": str(error), **error.more}}


def _array(name: str, about: Mapping[str, Any], part: Any) -> np.ndarray:
    dtype, shape = about.get("dtype"), about.get("shape")
    if dtype not in DTYPES:
        raise ProtocolError("bad-buffer", f"dtype of {name!r} is {_short(dtype)}; allowed: {', '.join(DTYPES)}.")
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(_is_int(n) and 0 <= n <= MAX_LENGTH for n in shape)
    ):
        raise ProtocolError(
            "bad-buffer",
            f"shape of {name!r} is {_short(shape)}; allowed: up to {MAX_DIMENSIONS} sizes up to {MAX_LENGTH}.",
        )
    expected = math.prod(shape) * np.dtype(dtype).itemsize
    if len(part) != expected:
        raise ProtocolError("bad-buffer", f"buffer {name!r} has {len(part)} bytes; {dtype} {shape} has {expected}.")
    return np.frombuffer(part, np.dtype(dtype).newbyteorder("<")).reshape(shape)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_id(value: Any) -> bool:
    return _is_int(value) and 0 <= value <= MAX_INT


def _is_number(value: Any) -> bool:
    return (_is_int(value) and abs(value) <= MAX_INT) or (isinstance(value, float) and math.isfinite(value))


def _is_text(value: Any, most: int) -> bool:
    if not isinstance(value, str) or len(value) > most:
        return False
    try:
        value.encode()  # half of a surrogate pair is JSON, but no text
    except UnicodeEncodeError:
        return False
    return True


def _is_token(value: Any) -> bool:
    return isinstance(value, str) and TOKEN.fullmatch(value) is not None


def _is_start(value: Any) -> bool:
    if isinstance(value, dict):  # names of buffers; actions may be JSON
        return set(value) in ({"frames"}, {"frames", "actions"}) and isinstance(value["frames"], str)
    return _is_int(value) and 0 <= value <= MAX_INT


def _is_openings(value: Any) -> bool:
    fields = {field.name: field for field in _OPENING}
    return _is_list(value) and all(
        isinstance(one, dict)
        and all(key in fields and (v is None or KINDS[fields[key].kind][1](v)) for key, v in one.items())
        for one in value
    )


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and 1 <= len(value) <= MAX_BATCH


KINDS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("an integer from 0 to 2^63 - 1", lambda v: _is_int(v) and 0 <= v <= MAX_INT),
    "number": ("a finite number", _is_number),
    "guidance": (f"a number from 0 to {MAX_GUIDANCE}", lambda v: _is_number(v) and 0 <= v <= MAX_GUIDANCE),
    "bool": ("true or false", lambda v: isinstance(v, bool)),
    "text": (f"a string of at most {MAX_TEXT} characters", lambda v: _is_text(v, MAX_TEXT)),
    "name": (f"a string of at most {MAX_NAME} characters", lambda v: _is_text(v, MAX_NAME)),
    "token": ("8 to 64 of A-Z a-z 0-9 _ -", _is_token),
    "tokens": (
        f"a list of 1 to {MAX_BATCH} different tokens",
        lambda v: _is_list(v) and all(map(_is_token, v)) and len(set(v)) == len(v),
    ),
    "ints": (
        f"a list of 1 to {MAX_BATCH} integers from 0",
        lambda v: _is_list(v) and all(_is_int(n) and 0 <= n <= MAX_INT for n in v),
    ),
    "list": (f"a list of 1 to {MAX_BATCH} entries", _is_list),
    "object": ("an object", lambda v: isinstance(v, dict)),
    "action": ("any JSON; the world's action space says which", lambda v: True),
    "start": (
        'the number of a clip from 0, or {"frames": NAME, "actions": NAME or list} with names of buffers',
        _is_start,
    ),
    "openings": (f"a list of 1 to {MAX_BATCH} objects with the fields seed, prompt, start, guidance", _is_openings),
    "encoding": (", ".join(ENCODINGS), lambda v: isinstance(v, str) and v in ENCODINGS),
    "quality": ("an integer from 1 to 100", lambda v: _is_int(v) and 1 <= v <= 100),
    "credits": (f"an integer from 0 to {MAX_CREDITS}", lambda v: _is_int(v) and 0 <= v <= MAX_CREDITS),
    "fps": ("a number over 0, at most 1000", lambda v: _is_number(v) and 0 < v <= 1000),
    "share": ("turns, split", lambda v: isinstance(v, str) and v in ("turns", "split")),
}
"""By name: what is allowed, in words, and the check of it."""
