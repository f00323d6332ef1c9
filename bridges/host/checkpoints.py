"""Live sessions on disk, so that a host that was killed goes on from the frame that its clients know.

TOKEN/
meta.json          what the session is besides its frames, and the number of its newest checkpoint
state-N.session    the session at checkpoint N; none for one that began since (the journal then says how)
journal-N.jsonl    the events since, a line each: written before the engine steps, and so before the client's reply
snapshots/         that the host stores for clients: TOKEN.session, and TOKEN.json with the owner

A frame is never written: the engine draws the same one again. What cannot be written whole is removed again, and has
not happened. Files outlive the process at once; a power cut once they were synced, every `fsync` seconds: until then
the files of the checkpoint before stay too. No file is left open, so that sessions take no file descriptors.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from worldsim.bridges.host.hosted import Hosted
from worldsim.bridges.host.stored import FORMAT_VERSION, Record, SnapshotMeta, generations, is_token, read_record
from worldsim.bridges.host.syncing import Syncer
from worldsim.engine.engine import Engine
from worldsim.engine.session import Snapshot
from worldsim.errors import BridgeError, ConfigError, ProtocolError
from worldsim.untrusted import read_json

log = logging.getLogger("worldsim.host")
SAVED = ("token", "watch", "world", "owner", "counted", "account", "encoding", "quality", "episode", "fps")
APPEND = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW
CREATE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW


@dataclass(frozen=True)
class Prepared:
    """A checkpoint whose files are written, and which is not the newest yet."""

    hosted: Hosted
    number: int
    length: int  # bytes of its journal
    made: bool  # whether its folder was made for it


class Checkpoints:
    """A folder of sessions, their journals and snapshots.

    Args:
        folder: is made.
        every: seconds between two checkpoints of a session; 0 for none.
        fsync: seconds between two rounds that write files through to the disk; 0 for none.

    Raises:
        ConfigError: the folder cannot be used.
    """

    def __init__(self, folder: Path, every: float, fsync: float = 0.0) -> None:
        """Make the folder, readable for this user only: a token in it gives all rights to its session."""
        self.snapshots = folder / "snapshots"
        try:
            self.snapshots.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)
        except OSError as error:
            raise ConfigError(
                f"checkpoints cannot be written to {folder} ({error.strerror}); name another folder with "
                "--checkpoints, or serve without: --no-checkpoint."
            ) from error
        self.folder, self.every = folder, every
        self._syncer = Syncer(fsync) if fsync else None
        self._numbers: dict[str, int] = {}
        self._lengths: dict[str, int] = {}  # bytes of the journals that are whole lines
        self._saved: dict[str, float] = {}  # when
        self._dirty: dict[str, None] = {}  # tokens of sessions with events since their checkpoint

    def begin(self, hosted: Hosted, spec: Mapping[str, Any], now: float) -> None:
        """Write a session that can be begun again from its specification.

        Raises:
            ProtocolError: no-room; nothing has changed.
        """
        self.commit(self.prepare(hosted, spec), now)

    def save(self, hosted: Hosted, engine: Engine, now: float) -> None:
        """Write a session's state.

        Raises:
            ProtocolError: no-room; nothing has changed.
        """
        self.commit(self.prepare(hosted, engine), now)

    def prepare(self, hosted: Hosted, source: Engine | Mapping[str, Any]) -> Prepared:
        """Write the files of a session's next checkpoint, which `commit` makes the newest, or `abandon` removes.

        Args:
            hosted: the session.
            source: the engine that it is in, or the specification that it began from.

        Raises:
            ProtocolError: no-room; nothing has changed.
        """
        place, number = self.folder / hosted.token, self._numbers.get(hosted.token, 0) + 1
        made = not place.exists()
        share = hosted.share and vars(hosted.share)
        about = {name: getattr(hosted, name) for name in SAVED} | {"born": hosted.born, "mark": hosted.last_request}
        meta = {"version": FORMAT_VERSION, "number": number, **about, "share": share}
        first = b"" if isinstance(source, Engine) else _line({"begin": dict(source)})
        prepared = Prepared(hosted, number, len(first), made)
        try:
            with _written():
                place.mkdir(mode=0o700, exist_ok=True)
                if isinstance(source, Engine):
                    with contextlib.closing(source.snapshot(hosted.number, share=False)) as taken:
                        taken.save(place / f"state-{number}.session")
                _write(place / f"journal-{number}.jsonl", first)
                _write(place / "meta.part", json.dumps(meta).encode())
        except BaseException:
            self.abandon(prepared)
            raise
        return prepared

    def commit(self, prepared: Prepared, now: float) -> None:
        """Make a checkpoint the newest, and remove those before, once it is safe.

        Raises:
            ProtocolError: no-room; nothing has changed.
        """
        token, number = prepared.hosted.token, prepared.number
        place = self.folder / token
        try:
            with _written():
                if self._syncer is not None and not prepared.made:
                    with contextlib.suppress(FileNotFoundError, FileExistsError):
                        os.link(place / "meta.json", place / f"meta-{number - 1}.json")
                os.replace(place / "meta.part", place / "meta.json")
        except BaseException:
            self.abandon(prepared)
            raise
        self._numbers[token], self._lengths[token], self._saved[token] = number, prepared.length, now
        self._dirty.pop(token, None)
        if self._syncer is None:
            _purge(place, number)
        else:
            self._syncer.ask(place, lambda: _purge(place, number))

    def abandon(self, prepared: Prepared) -> None:
        """Remove the files of a checkpoint that is not the newest."""
        place = self.folder / prepared.hosted.token
        for name in ("meta.part", f"state-{prepared.number}.session", f"journal-{prepared.number}.jsonl"):
            with contextlib.suppress(OSError):
                (place / name).unlink(missing_ok=True)
        if prepared.made:
            with contextlib.suppress(OSError):
                place.rmdir()  # which needs no file descriptor, as rmtree does

    def note(self, hosted: Hosted, event: Mapping[str, Any]) -> int | None:
        """Write an event to a session's journal, whole or not at all; called before it happens.

        Returns:
            The length of the journal before, for `take_back`.

        Raises:
            ProtocolError: no-room.
        """
        token, line = hosted.token, _line(event)
        before = self._lengths.get(token)
        if before is None:
            return None
        try:
            with _written():
                self._append(self._journal(token), before, line)
        except ProtocolError as error:
            if isinstance(error.__cause__, FileNotFoundError):  # someone removed the folder: it is written anew
                self._dirty[token], self._saved[token] = None, 0.0
            raise
        self._lengths[token] = before + len(line)
        self._dirty[token] = None
        if self._syncer is not None:
            self._syncer.ask(self.folder / token)
        return before

    def take_back(self, hosted: Hosted, before: int | None) -> None:
        """Remove the last event, which did not happen; if the disk refuses even that, the next `note` does it."""
        if before is None or hosted.token not in self._lengths:
            return
        self._lengths[hosted.token] = before
        with contextlib.suppress(OSError):
            os.truncate(self._journal(hosted.token), before)

    def store(self, token: str, snapshot: Snapshot, about: Mapping[str, Any]) -> None:
        """Write a snapshot that the host stores for a client, and its owner.

        Raises:
            ProtocolError: no-room.
        """
        try:
            with _written():
                snapshot.save(self.snapshots / f"{token}.session")
                _write(self.snapshots / f"{token}.json", json.dumps(about).encode())
        except BaseException:
            self.drop(token)
            raise
        if self._syncer is not None:
            self._syncer.ask(self.snapshots)

    def drop(self, token: str) -> None:
        """Remove a snapshot."""
        for name in (f"{token}.json", f"{token}.session"):
            with contextlib.suppress(OSError):
                (self.snapshots / name).unlink(missing_ok=True)

    def load_snapshots(self) -> Iterator[tuple[str, Path, SnapshotMeta | BridgeError]]:
        """List token, file and owner of each snapshot on disk, oldest first; an error stands for a damaged one."""
        found = [path for path in self.snapshots.glob("*.json") if is_token(path.stem) and not path.is_symlink()]
        for path in sorted(found, key=lambda path: path.lstat().st_mtime):
            try:
                yield path.stem, path.with_suffix(".session"), read_json(path, SnapshotMeta)
            except (OSError, ValueError) as error:
                yield path.stem, path, BridgeError(f"the snapshot cannot be read: {error}")

    def due(self, now: float) -> str | None:
        """Find a session whose checkpoint is due; return its token."""
        return next((token for token in self._dirty if self.every and now - self._saved[token] >= self.every), None)

    def postpone(self, token: str, now: float) -> None:
        """Try a checkpoint that failed again after a while; the journal has its events."""
        self._saved[token] = now

    def forget(self, hosted: Hosted) -> None:
        """Remove a session."""
        for known in (self._lengths, self._saved, self._numbers, self._dirty):
            known.pop(hosted.token, None)
        place = self.folder / hosted.token
        if self._syncer is not None:
            self._syncer.forget(place)
        with contextlib.suppress(OSError):
            (place / "meta.json").unlink(missing_ok=True)  # first: a folder without it is ignored
        shutil.rmtree(place, ignore_errors=True)

    def close(self) -> None:
        """Write all through to the disk; files stay."""
        if self._syncer is not None:
            self._syncer.close()

    def load(self) -> Iterator[tuple[Path, Record | BridgeError]]:
        """Read every session on disk; an error stands for one that cannot be read."""
        for place in sorted(self.folder.iterdir()):
            if place.is_symlink() or not place.is_dir() or not any(place.glob("meta*.json")):
                continue
            try:
                yield place, read_record(place)
            except (OSError, ValueError) as error:
                yield place, BridgeError(f"the session cannot be read: {error}")

    def adopt(self, record: Record) -> None:
        """Go on with the files of a session that was read."""
        token = record.meta.token
        self._numbers[token], self._lengths[token] = record.meta.number, record.length
        self._saved[token] = time.monotonic()

    def _journal(self, token: str) -> Path:
        return self.folder / token / f"journal-{self._numbers[token]}.jsonl"

    @staticmethod
    def _append(path: Path, before: int, line: bytes) -> None:
        file = os.open(path, APPEND)
        try:
            if os.fstat(file).st_size != before:  # half a line that could not be removed
                os.ftruncate(file, before)
            try:
                _write_all(file, line)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file, before)
                raise
        finally:
            os.close(file)


@contextlib.contextmanager
def _written() -> Iterator[None]:
    """Turn the trouble of writing into an error that a client can do something about.

    Raises:
        ProtocolError: no-room.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ProtocolError(
            "no-room", f"the host cannot write its checkpoints ({why:.200}); nothing has changed, try again later."
        ) from error


def _purge(place: Path, number: int) -> None:
    """Remove the files of checkpoints before a number."""
    for old, paths in generations(place).items():
        for path in paths if old < number else ():
            path.unlink(missing_ok=True)


def _write(path: Path, data: bytes) -> None:
    file = os.open(path, CREATE, 0o600)
    try:
        _write_all(file, data)
    finally:
        os.close(file)


def _write_all(file: int, data: bytes) -> None:
    while data:
        data = data[os.write(file, data) :]


def _line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"
