"""What a host keeps: its worlds, the sessions and snapshots of clients, and the tokens that they are found by."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.bridges.frames import Ring, SharedFolder, to_jpeg
from worldsim.bridges.host.checkpoints import Checkpoints
from worldsim.bridges.host.hosted import Hosted, RequestKey, Role
from worldsim.bridges.host.records import Answer, Call, Client, Served, ServiceConfig, StoredSnapshot, serve_world
from worldsim.bridges.protocol import new_token
from worldsim.engine.engine import Engine
from worldsim.engine.session import Snapshot
from worldsim.errors import ProtocolError

log = logging.getLogger("worldsim.host")
MOST_PEERS = 4096  # connections, clients and ended sessions that are remembered


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
        tokens: of owners, players and watchers, with the session and the role that each gives.
        born: sessions by the request that began them.
        over: requests that began sessions which have ended since, oldest first.
        snapshots: by token, oldest first.

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
        self.tokens: dict[str, tuple[Hosted, Role]] = {}
        self.born: dict[RequestKey, Hosted] = {}
        self.over: OrderedDict[RequestKey, None] = OrderedDict()
        self.snapshots: OrderedDict[str, StoredSnapshot] = OrderedDict()

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

    def record(self, hosted: Hosted) -> Any:
        """Get the engine's record of a session."""
        return self.worlds[hosted.world].engine.sessions[hosted.number]

    def add(self, hosted: Hosted) -> None:
        """Add a session."""
        self.sessions[hosted.token] = hosted
        self.born[hosted.born] = hosted
        self.list_tokens(hosted)
        log.info("open", extra={"fields": {"session": hosted.token[:8], "world": hosted.world}})

    def list_tokens(self, hosted: Hosted) -> None:
        """Find a session by its tokens from now on, and by no older ones."""
        for token in [token for token, (other, _) in self.tokens.items() if other is hosted]:
            del self.tokens[token]
        for token, role in hosted.tokens().items():
            self.tokens[token] = hosted, role

    def delete(self, hosted: Hosted) -> None:
        """Close a session, and delete all that belongs to it."""
        self.worlds[hosted.world].engine.close(hosted.number)
        if hosted.ring is not None:
            hosted.ring.close()
        del self.sessions[hosted.token]
        self.born.pop(hosted.born, None)
        self.over[hosted.born] = None
        if len(self.over) > MOST_PEERS:
            self.over.popitem(last=False)
        for token in hosted.tokens():
            self.tokens.pop(token, None)
        if self.checkpoints is not None:
            self.checkpoints.forget(hosted)

    def store(self, client: Client, hosted: Hosted) -> str:
        """Take a snapshot, and return its token; the client's oldest snapshot is dropped where it has too many."""
        token, taken = new_token(), self.worlds[hosted.world].engine.snapshot(hosted.number)
        if self.checkpoints is not None:
            about = {"owner": client.owner, "world": hosted.world, "episode": hosted.episode}
            self.checkpoints.store(token, taken, about)
        self.snapshots[token] = StoredSnapshot(client.owner, hosted.world, hosted.episode, taken)
        mine = [token for token, stored in self.snapshots.items() if stored.owner == client.owner]
        for old in mine[: max(0, len(mine) - self.config.snapshots)]:
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

    def note(self, hosted: Hosted, event: dict[str, Any]) -> None:
        """Write an event to the session's journal; called before the client gets its reply."""
        if self.checkpoints is not None:
            self.checkpoints.note(hosted, event)

    def save(self, hosted: Hosted) -> None:
        """Write a session's state to disk."""
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
            if hosted.ring is None:
                hosted.ring = Ring(self.shared, record.frame.shape)
            return hosted.ring.put(record.frame, record.step)
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
