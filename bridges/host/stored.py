"""What lies on disk of sessions and snapshots, as it must be before anything of it is used: it may be a stranger's.

Each file is checked against a dataclass with bounds; the name of a folder or file is its token and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from worldsim.bridges import protocol
from worldsim.bridges.host.hosted import Share
from worldsim.engine.session import Snapshot
from worldsim.untrusted import Untrusted, bounded, convert, inside, parse_json, read_json, short

FORMAT_VERSION = 1
MOST_META = 64 * 1024  # bytes of meta.json
MOST_JOURNAL = 256 * 2**20  # bytes of a journal
MOST_LINE = 2 * protocol.MAX_HEADER  # bytes of a line of it: an action came in a header
MOST_OWNER = 256  # characters of a client's name

Token = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{8,64}\Z")]
Count = Annotated[int, bounded(0, 2**53)]
Owner = Annotated[str, short(MOST_OWNER)]
Key = tuple[Owner, Annotated[int, bounded(0, protocol.MAX_INT)] | Annotated[str, short(32)]]


@dataclass(frozen=True)
class StoredShare:
    """How two players share a session; see `Share`."""

    mode: Literal["turns", "split"]
    token: Token
    every: Annotated[int, bounded(1, protocol.MAX_INT)] = 1
    since: Count = 0
    parts: Annotated[list[Count | Annotated[str, short(protocol.MAX_NAME)]], short(4096)] = field(default_factory=list)

    def share(self) -> Share:
        """Make the share of a session."""
        return Share(self.mode, self.token, self.every, self.since, list(self.parts))


@dataclass(frozen=True, kw_only=True)
class Meta:
    """A session besides its frames: `meta.json`."""

    version: Literal[1]
    number: Annotated[int, bounded(1, 2**53)]
    token: Token
    watch: Token
    world: Annotated[str, short(256)]
    owner: Owner
    born: Key
    last_request: Key | None
    share: StoredShare | None
    encoding: Literal["raw", "jpeg", "shm"]
    quality: Annotated[int, bounded(1, 100)]
    episode: Count
    fps: Annotated[float, bounded(0, 1000)]
    counted: Owner = ""
    account: Owner = ""

    def __post_init__(self) -> None:
        """Check that the tokens differ."""
        tokens = [self.token, self.watch, *([self.share.token] if self.share else [])]
        if len(set(tokens)) < len(tokens):
            raise ValueError("two of its tokens are the same")


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """How a session begins that can be begun again: of `SessionSpec` what is no clip of a client's."""

    seed: Annotated[int, bounded(0, protocol.MAX_INT)] = 0
    prompt: Annotated[str, short(protocol.MAX_TEXT)] | None = None
    start: Count | None = None
    guidance: Annotated[float, bounded(0, protocol.MAX_GUIDANCE)] | None = None


@dataclass(frozen=True, kw_only=True)
class Event:
    """A line of a journal: one of begin, prompt, fps, step; a step says by which request."""

    begin: Beginning | None = None
    prompt: Annotated[str, short(protocol.MAX_TEXT)] | None = None
    fps: Annotated[float, bounded(0, 1000)] | None = None
    step: Any = None
    by: Key | None = None

    def __post_init__(self) -> None:
        """Check that it is one event."""
        if sum(value is not None for value in (self.begin, self.prompt, self.fps, self.step)) != 1:
            raise ValueError("a line has none or several of begin, prompt, fps, step")


@dataclass(frozen=True, kw_only=True)
class SnapshotMeta:
    """A snapshot that a host stores for a client: `snapshots/TOKEN.json`."""

    owner: Owner
    world: Annotated[str, short(256)]
    episode: Count
    counted: Owner = ""
    account: Owner = ""


@dataclass(frozen=True)
class Record:
    """One session as it was read from disk.

    Attributes:
        meta: of the session.
        state: at its newest whole checkpoint; None for one that is begun anew.
        events: since.
        length: bytes of the newest journal that are whole lines.
    """

    meta: Meta
    state: Snapshot | None
    events: list[Event]
    length: int

    @property
    def begins(self) -> bool:
        """Whether it is begun anew from its first event."""
        return self.state is None and bool(self.events) and self.events[0].begin is not None


def is_token(name: str) -> bool:
    """Say whether the name of a file can be a token."""
    return protocol.TOKEN.fullmatch(name) is not None


def read_record(place: Path) -> Record:
    """Read a session from its folder: from the newest generation of its files, or the one before where that is damaged.

    A power cut may leave files of the newest generation without their content; those of the one before are removed
    only when the newest are safe.

    Raises:
        OSError, ValueError: it cannot be read.
    """
    failure: Exception | None = None
    older = sorted(generations(place, "meta"), reverse=True)
    for path in (place / "meta.json", *(place / f"meta-{number}.json" for number in older)):
        if not path.is_file():
            continue
        try:
            about = read_json(path, most=MOST_META)
            about["last_request"] = about.pop("mark", None)  # as it was called when the format was made
            meta = convert(about, Meta)
            if meta.token != place.name:
                raise Untrusted("its token is not the name of its folder")
            return _read_generations(place, meta)
        except (OSError, ValueError) as error:
            failure = failure or error
    raise failure or FileNotFoundError(f"there is no meta.json in {place}")


def generations(place: Path, *kinds: str) -> dict[int, list[Path]]:
    """List the files of each generation: meta of those before the newest, state, journal."""
    found: dict[int, list[Path]] = {}
    for path in place.iterdir():
        kind, _, number = path.stem.partition("-")
        if kind in (kinds or ("meta", "state", "journal")) and number.isdecimal():
            found.setdefault(int(number), []).append(path)
    return found


def _read_generations(place: Path, meta: Meta) -> Record:
    """Read the state and the journal that a meta names, or those of the generation before and both journals."""
    newest, length = _read_journal(place, meta.number)
    try:
        return Record(meta, _read_state(place, meta.number, newest), newest, length)
    except (OSError, ValueError):
        before = meta.number - 1
        if not (place / f"journal-{before}.jsonl").is_file():
            raise
        older, _ = _read_journal(place, before)
        return Record(meta, _read_state(place, before, older), [*older, *newest], length)


def _read_state(place: Path, number: int, events: list[Event]) -> Snapshot | None:
    state = place / f"state-{number}.session"
    if state.exists():
        return Snapshot.load(state)
    if not events or events[0].begin is None:
        raise Untrusted("it has neither a state nor a beginning")
    return None


def _read_journal(place: Path, number: int) -> tuple[list[Event], int]:
    """Read a journal up to its last whole line; return the events, and the bytes that they take.

    What follows a zero byte was never written before a power cut.
    """
    path = inside(place, f"journal-{number}.jsonl")
    size = path.stat().st_size
    if size > MOST_JOURNAL:
        raise Untrusted(f"its journal has {size} bytes; allowed: {MOST_JOURNAL}")
    whole = path.read_bytes().partition(b"\0")[0]
    whole = whole[: whole.rfind(b"\n") + 1]
    lines = whole.split(b"\n")[:-1]
    if any(len(line) > MOST_LINE for line in lines):
        raise Untrusted(f"its journal has a line of more than {MOST_LINE} bytes")
    return [parse_json(line, Event) for line in lines], len(whole)
