"""Live sessions on disk, so that a host that was killed goes on from the frame that its clients know.

TOKEN/
meta.json          what the session is besides its frames, and the number of its newest checkpoint
state-N.session    the session at checkpoint N; none for one that began since (the journal then says how)
journal-N.jsonl    the events since, a line each: written before the client gets its reply
snapshots/         that the host stores for clients: TOKEN.session, and TOKEN.json with the owner

A frame is never written: the engine draws the same one again. Files are written without fsync: they outlive the
process, not a power cut.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldsim.bridges.host.hosted import Hosted
from worldsim.engine.engine import Engine
from worldsim.engine.session import Snapshot
from worldsim.errors import BridgeError

FORMAT_VERSION = 1
SAVED = ("token", "watch", "world", "owner", "encoding", "quality", "episode", "fps")


@dataclass(frozen=True)
class Record:
    """One session as it was read from disk."""

    meta: dict[str, Any]
    state: Snapshot | None
    events: list[dict[str, Any]]


class Checkpoints:
    """A folder of sessions, their journals and snapshots.

    Args:
        folder: is made.
        every: seconds between two checkpoints of a session; 0 for none.
    """

    def __init__(self, folder: Path, every: float) -> None:
        """Make the folder, readable for this user only: a token in it gives all rights to its session."""
        self.snapshots = folder / "snapshots"
        self.snapshots.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        self.folder, self.every = folder, every
        self._numbers: dict[str, int] = {}
        self._journals: dict[str, int] = {}  # open files
        self._saved: dict[str, float] = {}  # when
        self._dirty: dict[str, None] = {}  # tokens of sessions with events since their checkpoint

    def begin(self, hosted: Hosted, spec: dict[str, Any], now: float) -> None:
        """Write a session that can be begun again from its specification."""
        self._begin_checkpoint(hosted, now, {"begin": spec})

    def save(self, hosted: Hosted, engine: Engine, now: float) -> None:
        """Write a session's state."""
        number = self._numbers.get(hosted.token, 0) + 1
        self._place(hosted).mkdir(mode=0o700, exist_ok=True)
        engine.snapshot(hosted.number, share=False).save(self._place(hosted) / f"state-{number}.session")
        self._begin_checkpoint(hosted, now)

    def note(self, hosted: Hosted, event: dict[str, Any]) -> None:
        """Write an event to a session's journal; called before the client gets its reply."""
        journal = self._journals.get(hosted.token)
        if journal is not None:
            os.write(journal, _line(event))
            self._dirty[hosted.token] = None

    def store(self, token: str, snapshot: Snapshot, about: dict[str, Any]) -> None:
        """Write a snapshot that the host stores for a client, and its owner."""
        snapshot.save(self.snapshots / f"{token}.session")
        (self.snapshots / f"{token}.json").write_text(json.dumps(about))

    def drop(self, token: str) -> None:
        """Remove a snapshot."""
        for name in (f"{token}.json", f"{token}.session"):
            (self.snapshots / name).unlink(missing_ok=True)

    def load_snapshots(self) -> Iterator[tuple[str, Path, dict[str, Any]]]:
        """List token, file and owner of each snapshot on disk, oldest first."""
        for path in sorted(self.snapshots.glob("*.json"), key=lambda path: path.stat().st_mtime):
            try:
                yield path.stem, path.with_suffix(".session"), json.loads(path.read_text())
            except (OSError, ValueError):
                continue  # it was being written

    def due(self, now: float) -> str | None:
        """Find a session whose checkpoint is due; return its token."""
        return next((token for token in self._dirty if self.every and now - self._saved[token] >= self.every), None)

    def forget(self, hosted: Hosted) -> None:
        """Remove a session."""
        self._close(hosted.token)
        self._saved.pop(hosted.token, None)
        self._numbers.pop(hosted.token, None)
        (self._place(hosted) / "meta.json").unlink(missing_ok=True)  # first: a folder without it is ignored
        shutil.rmtree(self._place(hosted), ignore_errors=True)

    def close(self) -> None:
        """Close the journals; they stay on disk."""
        for token in list(self._journals):
            self._close(token)

    def load(self) -> Iterator[tuple[Path, Record | BridgeError]]:
        """Read every session on disk; an error stands for one that cannot be read."""
        for place in sorted(path for path in self.folder.iterdir() if (path / "meta.json").exists()):
            try:
                yield place, self._load(place)
            except (OSError, ValueError, KeyError, TypeError) as error:
                yield place, BridgeError(f"the session in {place} cannot be read: {error}")

    def _load(self, place: Path) -> Record:
        meta = json.loads((place / "meta.json").read_text())
        if meta["version"] != FORMAT_VERSION:
            raise ValueError(f"format version {meta['version']}; this worldsim reads {FORMAT_VERSION}")
        number = meta["number"]
        state = place / f"state-{number}.session"
        lines = (place / f"journal-{number}.jsonl").read_bytes().split(b"\n")
        events = [json.loads(line) for line in lines[:-1]]  # the last line may be incomplete
        self._numbers[meta["token"]] = number
        return Record(meta, Snapshot.load(state) if state.exists() else None, events)

    def _begin_checkpoint(self, hosted: Hosted, now: float, first: dict[str, Any] | None = None) -> None:
        """Begin the next checkpoint, with a journal of its own, and make it the newest in `meta.json`."""
        place, token = self._place(hosted), hosted.token
        place.mkdir(mode=0o700, exist_ok=True)
        number = self._numbers[token] = self._numbers.get(token, 0) + 1
        self._close(token)
        flags = os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_APPEND
        self._journals[token] = os.open(place / f"journal-{number}.jsonl", flags, 0o600)
        if first is not None:
            os.write(self._journals[token], _line(first))
        share = hosted.share and vars(hosted.share)
        about = {name: getattr(hosted, name) for name in SAVED}
        requests = {"born": hosted.born, "mark": hosted.last_request}
        meta = {"version": FORMAT_VERSION, "number": number, **about, **requests, "share": share}
        part = place / "meta.part"
        part.write_text(json.dumps(meta))
        os.replace(part, place / "meta.json")
        for name in (f"journal-{number - 1}.jsonl", f"state-{number - 1}.session"):
            (place / name).unlink(missing_ok=True)
        self._saved[token] = now
        self._dirty.pop(token, None)

    def _close(self, token: str) -> None:
        journal = self._journals.pop(token, None)
        if journal is not None:
            os.close(journal)
        self._dirty.pop(token, None)

    def _place(self, hosted: Hosted) -> Path:
        return self.folder / hosted.token


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"
