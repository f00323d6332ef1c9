"""The bridge's protocol: every verb, field, limit and error. `messages` encodes and decodes messages.

A message is a ZeroMQ multipart: [header, buffer, ...]. The header is JSON (UTF-8, one object); its "buffers" say
what the other parts are. Client: a DEALER (or REQ) socket. Host: a ROUTER. Every request gets one reply with its "id";
besides, the host pushes "frame" messages to watchers and a "bye" when it stops.

`docs/protocol.md` is made from this file: `python -m worldsim.bridges.protocol_page > docs/protocol.md`.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
    "full": "no room: the engine's memory, or the share of sessions or snapshots that this client, its key or its "
    "address has, is used up",
    "no-room": "the host cannot write to its disk (it is full, or too many files are open); nothing has changed, try "
    "again later",
    "too-fast": "over this client's rate of requests; the reply's `wait` says for how many seconds to be quiet",
    "unsupported": "the host cannot do this, for example encode JPEG without the package for it",
    "stopping": "the host is about to stop; it may come back with the same sessions",
    "failed": "something inside the host that should not happen; its log says more",
}


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
_LAST = (
    _maybe("reward", "number", "of that frame"),
    _maybe("ended", "number", "probability that the episode ended with it"),
    _maybe("terminated", "bool", "whether it did"),
)
_STATES = (
    Field("steps", "ints", "how many frames each has"),
    Field("prompts", "list", "one each"),
    *(_maybe(name, "list", "one each, of that frame") for name in ("rewards", "ended", "terminated")),
)
_WORLD = Field("world", "name", "its name")
_ROLE = Field("role", "text", "of the token: owner, player or watcher")
_SESSIONS = Field("sessions", "tokens", "which, in order")
_ACTION = (
    _maybe("action", "action", "JSON: a number, or nested lists, or an object for a Dict space"),
    _maybe(
        "keys", "text", 'instead of it, the keys that are down, such as "left+up"; buffer `action` is the third way'
    ),
)

VERBS: dict[str, Verb] = {
    "hello": Verb(
        "Introduce the client, and get a description of the host. First on every connection.",
        (
            Field("client", "token", "random, the same for all connections of a client; it identifies the client"),
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
        (Field("session", "token", "gives all rights"), Field("watch", "token", "gives the right to watch"),
         _WORLD, *_STATE, *_LAST),
        ("frame",),
    ),
    "reset": Verb("Begin anew, in the same session.", (_SESSION, *_OPENING), (*_STATE, *_LAST), ("frame",)),
    "step": Verb(
        "Draw the next frame under an action.",
        (_SESSION, Field("step", "int", "the number of frames that the session has; another number is refused"),
         *_ACTION),
        _DRAWN,
        ("frame",),
    ),
    "prompt": Verb("Condition the frames from now on.", (_SESSION, Field("prompt", "text", "the words")), _STATE),
    "snapshot": Verb(
        "Store a snapshot of the session with the host.",
        (_SESSION,),
        (Field("snapshot", "token", "to restore; the oldest is dropped where there are too many"), _STEP),
    ),
    "restore": Verb(
        "Go back to a snapshot, of this session or of another one of the same world.",
        (_SESSION, Field("snapshot", "token", "which")),
        (*_STATE, *_LAST),
        ("frame",),
    ),
    "drop": Verb("Forget a snapshot.", (Field("snapshot", "token", "which"),)),
    "fork": Verb(
        "Fork a session: under the same actions the fork draws the same frames.",
        (_SESSION, _maybe("seed", "int", "go on with other noise"), *_ENCODING),
        (Field("session", "token", "the fork's"), Field("watch", "token", "the fork's"), _WORLD, *_STATE,
         *_LAST),
        ("frame",),
    ),
    "render": Verb(
        "The last frame again.",
        (_SESSION, *_ENCODING),
        (*_STATE, _ROLE, _WORLD, _maybe("watch", "token", "for the owner: gives the right to watch")),
        ("frame",),
    ),
    "close": Verb("End a session.", (_SESSION,)),
    "keep": Verb("Renew leases and do nothing else.", (_SESSIONS,)),
    "stats": Verb("Counts and latencies of the host.", (), (Field("stats", "object", "by name"),)),
    "open_batch": Verb(
        "Begin several sessions, all or none.",
        (_maybe("world", "name", "may be left out where there is one"),
         Field("openings", "openings", "one object each, with the fields seed, prompt, start, guidance")),
        (_SESSIONS, _WORLD, *_STATES),
        ("frames",),
    ),
    "reset_batch": Verb(
        "Begin several sessions anew, all or none.",
        (_SESSIONS, Field("openings", "openings", "one object each")),
        _STATES,
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
        "Start the clock: the host draws frames at a pace, under the actions in force.",
        (_SESSION, _maybe("fps", "fps", "the world's own if not given")),
        (*_STATE, Field("fps", "number", "of the clock")),
    ),
    "pause": Verb("Stop the clock.", (_SESSION,), _STATE),
    "input": Verb("Put an action in force until the next one.", (_SESSION, *_ACTION), (_STEP,)),
    "share": Verb(
        "Let a second player in. turns: they alternate; split: each has parts of the action.",
        (_SESSION, Field("mode", "share", '"turns" or "split"'),
         _maybe("every", "int", "turns: frames until the other's turn; 1 if not given"),
         _maybe("parts", "list", "split: the second player's part, as indices into the action, or as names of keys")),
        (Field("player", "token", "gives the rights of the second player"),),
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
    "bye": Verb("The host stops.", (), (Field("resume", "bool", "whether its sessions can be resumed"),)),
}  # fmt: skip


def new_token() -> str:
    """Make a token that nobody can guess."""
    return secrets.token_hex(16)


def short(value: Any) -> str:
    """Shorten a value to 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def is_int(value: Any) -> bool:
    """Say whether a value is an integer; a bool is none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_id(value: Any) -> bool:
    """Say whether a value can be a request's id."""
    return is_int(value) and 0 <= value <= MAX_INT


def _is_number(value: Any) -> bool:
    return (is_int(value) and abs(value) <= MAX_INT) or (isinstance(value, float) and math.isfinite(value))


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
    return is_int(value) and 0 <= value <= MAX_INT


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
    "int": ("an integer from 0 to 2^63 - 1", lambda v: is_int(v) and 0 <= v <= MAX_INT),
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
        lambda v: _is_list(v) and all(is_int(n) and 0 <= n <= MAX_INT for n in v),
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
    "quality": ("an integer from 1 to 100", lambda v: is_int(v) and 1 <= v <= 100),
    "credits": (f"an integer from 0 to {MAX_CREDITS}", lambda v: is_int(v) and 0 <= v <= MAX_CREDITS),
    "fps": ("a number over 0, at most 1000", lambda v: _is_number(v) and 0 < v <= 1000),
    "share": ("turns, split", lambda v: isinstance(v, str) and v in ("turns", "split")),
}
"""By name: what is allowed, in words, and the check of it."""
