"""What a host keeps: its worlds, the sessions and snapshots of clients, and the tokens that they are found by."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.bridges.frames import Ring, SharedFolder, to_jpeg
from worldsim.bridges.host.checkpoints import Checkpoints, Prepared
from worldsim.bridges.host.clients import MOST_PEERS
from worldsim.bridges.host.hosted import Hosted, RequestKey, Role
from worldsim.bridges.host.records import Answer, Call, Client, Served, ServiceConfig, StoredSnapshot, serve_world
from worldsim.bridges.protocol import new_token
from worldsim.engine.engine import Engine
from worldsim.engine.records import SessionSpec
from worldsim.engine.session import Snapshot
from worldsim.errors import ProtocolError

log = logging.getLogger("worldsim.host")
Change = tuple[Hosted, dict[str, Any], SessionSpec | None]
"""A session, the attributes that change, and the specification that it begins anew from if that is enough to do so."""


class Registry:
    """The sessions of several worlds, by token; it sends no messages.

    Args:
        engines: by the name of their world.
        config: limits.
        checkpoints: where live sessions are written to disk.
        shared: where frames in shared memory lie.

    Attributes:
        worlds: by name.
        sessions: by the owner's token.
        beginning: how many a client has that are about to be, by the request.
        tokens: of owners, players and watchers, with the session and the role that each gives.
        born: sessions by the request that began them.
        over: requests that began sessions which have ended since, oldest first.
        snapshots: by token, oldest first.
        keepers: their owners, and when each was heard of.

    Raises:
        ConfigError: a world whose keys do not fit its actions.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        config: ServiceConfig | None = None,
        checkpoints: Checkpoints | None = None,
        shared: SharedFolder | None = None,
    ) -> None:
        """Begin without sessions."""
        self.config, self.checkpoints, self.shared = config or ServiceConfig(), checkpoints, shared
        self.worlds = {name: serve_world(name, engine) for name, engine in engines.items()}
        self.sessions: dict[str, Hosted] = {}
        self.beginning: dict[RequestKey, tuple[Client, int]] = {}
        self.tokens: dict[str, tuple[Hosted, Role]] = {}
        self.born: dict[RequestKey, Hosted] = {}
        self.over: OrderedDict[RequestKey, None] = OrderedDict()
        self.snapshots: OrderedDict[str, StoredSnapshot] = OrderedDict()
        self.keepers: dict[str, float] = {}

    def served(self, name: str | None) -> Served:
        """Get the world of that name, or the only one.

        Raises:
            ProtocolError: no-world.
        """
        if name is None and len(self.worlds) == 1:
            return next(iter(self.worlds.values()))
        if name not in self.worlds:
            raise ProtocolError("no-world", f"world is {name!r}; this host serves: {', '.join(self.worlds)}.")
        return self.worlds[name]

    def found(self, token: str, *roles: Role) -> tuple[Hosted, Role]:
        """Find a session by a token that gives one of the roles, and renew its lease.

        Raises:
            ProtocolError: no-session, not-allowed.
        """
        if token not in self.tokens:
            raise ProtocolError("no-session", "no session goes by that token: closed, its lease ended, or never was.")
        hosted, role = self.tokens[token]
        if role not in roles:
            raise ProtocolError("not-allowed", f"a {role}'s token does not permit this; needed: {' or '.join(roles)}.")
        if role != "watcher":
            hosted.lease_end = time.monotonic() + self.config.lease
        return hosted, role

    def heard(self, hosted: Hosted) -> float:
        """Say when a session was last steered, or its lease renewed."""
        return hosted.lease_end - self.config.lease

    def record(self, hosted: Hosted) -> Any:
        """Get the engine's record of a session."""
        return self.worlds[hosted.world].engine.sessions[hosted.number]

    def admit(self, client: Client, count: int) -> None:
        """Check a client's and its account's share of sessions; the engine checks its memory by itself.

        Raises:
            ProtocolError: full.
        """
        most, begins = self.config.sessions, list(self.beginning.values())
        mine = sum(hosted.counted == client.counted for hosted in self.sessions.values())
        mine += sum(number for other, number in begins if other.counted == client.counted)
        if mine + count > most:
            raise ProtocolError("full", f"you have {mine} sessions open and ask for {count} more; allowed: {most}.")
        most *= 1 if client.key else self.config.per_address
        theirs = sum(hosted.account == client.account for hosted in self.sessions.values())
        theirs += sum(number for other, number in begins if other.account == client.account)
        if theirs + count > most:
            what = "key" if client.key else "address"
            raise ProtocolError(
                "full", f"all clients of your {what} have {theirs} sessions open; with {count} more: over {most}."
            )

    @contextlib.contextmanager
    def coming(self, call: Call, count: int) -> Iterator[None]:
        """Count admitted sessions among a client's while they begin."""
        self.beginning[call.request_key] = call.client, count
        try:
            yield
        finally:
            self.beginning.pop(call.request_key, None)

    def add(self, hosted: Hosted) -> None:
        """Add a session."""
        self.sessions[hosted.token] = hosted
        self.born[hosted.born] = hosted
        self.list_tokens(hosted)
        log.info("open", extra={"fields": {"session": hosted.token[:8], "world": hosted.world}})

    def write(self, hosted: Hosted, spec: SessionSpec | None) -> None:
        """Write a session that is not listed yet.

        Args:
            hosted: the session.
            spec: how it began, if that is enough to begin it again.

        Raises:
            ProtocolError: no-room; nothing of it is on the disk.
        """
        if self.checkpoints is not None:
            self.checkpoints.commit(self._prepare(hosted, spec), time.monotonic())

    def change(self, changes: Sequence[Change]) -> None:
        """Change sessions and write them, all or none.

        Raises:
            ProtocolError: no-room; nothing has changed.
        """
        if self.checkpoints is not None:
            self._write_all(self.checkpoints, changes)
        for hosted, values, _ in changes:
            vars(hosted).update(values)

    def _write_all(self, checkpoints: Checkpoints, changes: Sequence[Change]) -> None:
        prepared, written = list[Prepared](), 0
        try:
            for hosted, values, spec in changes:
                prepared.append(self._prepare(replace(hosted, **values), spec))
            for one in prepared:
                checkpoints.commit(one, time.monotonic())
                written += 1
        except BaseException:
            for one in prepared[written:]:
                checkpoints.abandon(one)
            for hosted, _, _ in changes[:written]:
                with contextlib.suppress(ProtocolError):
                    self.save(hosted)
            raise

    def _prepare(self, hosted: Hosted, spec: SessionSpec | None) -> Prepared:
        assert self.checkpoints is not None
        again = spec is not None and not isinstance(spec.start, dict)  # a clip of a client's is written as a state
        return self.checkpoints.prepare(hosted, vars(spec) if again else self.worlds[hosted.world].engine)

    def list_tokens(self, hosted: Hosted) -> None:
        """Find a session by its tokens from now on, and by no older ones."""
        for token in hosted.listed:
            self.tokens.pop(token, None)
        for token, role in hosted.tokens().items():
            self.tokens[token] = hosted, role
        hosted.listed = tuple(hosted.tokens())

    def delete(self, hosted: Hosted, forget: bool = True) -> None:
        """Close a session, and delete all that belongs to it, on disk too if it is to be forgotten."""
        self.worlds[hosted.world].engine.close(hosted.number)
        if hosted.ring is not None:
            hosted.ring.close()
        self.sessions.pop(hosted.token, None)
        self.born.pop(hosted.born, None)
        self.over[hosted.born] = None
        if len(self.over) > MOST_PEERS:
            self.over.popitem(last=False)
        for token in hosted.listed:
            self.tokens.pop(token, None)
        if self.checkpoints is not None and forget:
            self.checkpoints.forget(hosted)

    def store(self, client: Client, hosted: Hosted) -> str:
        """Take a snapshot, and return its token; the client's oldest snapshot is dropped where it has too many.

        Raises:
            ProtocolError: full, where other clients of its account have them all; no-room.
        """
        mine = [token for token, stored in self.snapshots.items() if stored.counted == client.counted]
        theirs = sum(stored.account == client.account for stored in self.snapshots.values())
        most = self.config.snapshots * (1 if client.key else self.config.per_address)
        if theirs >= most and not mine:
            raise ProtocolError("full", f"the clients of your address have {theirs} snapshots; allowed: {most}.")
        token, taken = new_token(), self.worlds[hosted.world].engine.snapshot(hosted.number)
        about = {"owner": client.owner, "world": hosted.world, "episode": hosted.episode}
        about |= {"counted": client.counted, "account": client.account}
        try:
            if self.checkpoints is not None:
                self.checkpoints.store(token, taken, about)
        except BaseException:
            taken.close()
            raise
        self.snapshots[token] = StoredSnapshot(**about, snapshot=taken)
        self.keepers[client.owner] = time.monotonic()
        too_many = max(len(mine) + 1 - self.config.snapshots, theirs + 1 - most, 0)
        for old in mine[:too_many]:
            self.drop(old)
        return token

    def stored(self, token: str, world: str) -> tuple[Snapshot, int]:
        """Get a snapshot by its token, and the number of frames of its episode.

        Raises:
            ProtocolError: no-snapshot.
            SnapshotError: it cannot be read.
        """
        stored = self.snapshots.get(token)
        if stored is None or stored.world != world:
            raise ProtocolError("no-snapshot", f"no snapshot of {world} goes by that token.")
        if isinstance(stored.snapshot, Path):
            stored.snapshot = Snapshot.load(stored.snapshot)
        return stored.snapshot, stored.episode

    def drop(self, token: str) -> None:
        """Forget a snapshot."""
        stored = self.snapshots.pop(token, None)
        if stored is not None and isinstance(stored.snapshot, Snapshot):
            stored.snapshot.close()
        if self.checkpoints is not None:
            self.checkpoints.drop(token)

    @contextlib.contextmanager
    def noted(self, hosted: Hosted, event: dict[str, Any]) -> Iterator[None]:
        """Write an event to the session's journal before it happens, and take it back if it does not.

        Raises:
            ProtocolError: no-room; it must not happen.
        """
        before = None if self.checkpoints is None else self.checkpoints.note(hosted, event)
        try:
            yield
        except BaseException:
            if self.checkpoints is not None:
                self.checkpoints.take_back(hosted, before)
            raise

    def save(self, hosted: Hosted) -> None:
        """Write a session's state to disk.

        Raises:
            ProtocolError: no-room; its checkpoint and its journal are as before.
        """
        if self.checkpoints is not None:
            self.checkpoints.save(hosted, self.worlds[hosted.world].engine, time.monotonic())

    def encoded_frame(self, hosted: Hosted, encoding: str, quality: int) -> Any:
        """Encode a session's last frame for a message.

        Raises:
            ProtocolError: unsupported.
        """
        record = self.record(hosted)
        if encoding == "jpeg":
            return to_jpeg(record.frame, quality)
        if encoding == "shm":
            if self.shared is None:
                raise ProtocolError("unsupported", "this host shares no memory; ask for raw or jpeg.")
            try:
                if hosted.ring is None:
                    hosted.ring = Ring(self.shared, record.frame.shape)
                return hosted.ring.put(record.frame, record.step)
            except OSError:  # no shared memory left, or no file: the frame goes as it is
                return record.frame
        return record.frame

    def drawn(self, hosted: Hosted) -> dict[str, Any]:
        """Describe a session's last frame, as a message does."""
        served, record = self.worlds[hosted.world], self.record(hosted)
        limit = served.about["episode_steps"]
        return {
            "step": record.step,
            "reward": record.reward,
            "ended": record.ended,
            "terminated": record.terminated,
            "truncated": limit is not None and hosted.episode >= limit,
        }

    def drawn_reply(self, call: Call, sessions: Sequence[Hosted]) -> Answer:
        """Make the reply to a `step` or `step_batch` from the records of its sessions."""
        if call.header["verb"] == "step":
            (hosted,) = sessions
            return self.drawn(hosted), {"frame": self.encoded_frame(hosted, hosted.encoding, hosted.quality)}
        drawn = [self.drawn(hosted) for hosted in sessions]
        names = {"steps": "step", "rewards": "reward"} | {name: name for name in ("ended", "terminated", "truncated")}
        return {many: [one[name] for one in drawn] for many, name in names.items()}, self.frames(sessions)

    def frames(self, sessions: Sequence[Hosted]) -> dict[str, np.ndarray]:
        """Stack the last frames of several sessions into one buffer, uint8 (N, H, W, 3)."""
        return {"frames": np.stack([self.record(hosted).frame for hosted in sessions])}
