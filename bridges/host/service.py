"""What a host does, without sockets: messages come in, sessions are stepped together, messages go out.

One thread drives it (`host.Host`). Requests that draw a frame become wishes; wishes of all clients, and of the clocks
that are due, are drawn in one pass. What a repeated request gets is made anew from the session's own record, so that
nothing is stored for it and a host that was killed in between answers the same.
Past 400 lines, because requests, clocks and sessions change one state; what each verb does is in `verbs`.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.bridges import messages, protocol
from worldsim.bridges.actions import to_json
from worldsim.bridges.frames import Ring, SharedFolder, to_jpeg
from worldsim.bridges.host.checkpoints import Checkpoints
from worldsim.bridges.host.hosted import Hosted, RequestKey, Role, new_token
from worldsim.bridges.host.records import (
    Answer,
    Call,
    Client,
    PendingStep,
    Served,
    ServiceConfig,
    StoredSnapshot,
    clip_bytes,
    serve_world,
)
from worldsim.engine.engine import Engine
from worldsim.engine.session import Snapshot
from worldsim.errors import (
    ActionError,
    EngineFull,
    InputError,
    MissingDependency,
    PromptError,
    ProtocolError,
    SessionError,
    SnapshotError,
    WorldsimError,
)

log = logging.getLogger("worldsim.host")
MOST_PEERS = 4096  # connections and clients that are remembered
WORTH = 0.05  # part of a pass that waiting for another session may take
CODES: list[tuple[type[Exception], str]] = [
    (ActionError, "bad-action"),
    (PromptError, "bad-prompt"),
    (SnapshotError, "bad-snapshot"),
    (InputError, "bad-start"),
    (EngineFull, "full"),
    (MissingDependency, "unsupported"),
    (SessionError, "no-session"),
    (WorldsimError, "bad-field"),
]


class Service:
    """Sessions of several worlds and those who use them.

    Args:
        engines: by the name of their world.
        send: takes a peer and the parts of a message; False where it could not be sent. `peer gone` raises LookupError.
        config: limits.
        checkpoints: where live sessions are kept on disk.
        shared: where frames in shared memory lie.

    Raises:
        ConfigError: a world whose keys do not fit its actions.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        send: Callable[[bytes, list[Any]], bool],
        config: ServiceConfig | None = None,
        checkpoints: Checkpoints | None = None,
        shared: SharedFolder | None = None,
    ) -> None:
        """Nobody is there yet."""
        self.config, self.send, self.checkpoints, self.shared = config or ServiceConfig(), send, checkpoints, shared
        self.worlds = {name: serve_world(name, engine) for name, engine in engines.items()}
        self.name = new_token()
        self.sessions: dict[str, Hosted] = {}
        self.tokens: dict[str, tuple[Hosted, Role]] = {}
        self.born: dict[RequestKey, Hosted] = {}
        self.over: OrderedDict[RequestKey, None] = OrderedDict()  # requests that began sessions which have ended since
        self.snapshots: OrderedDict[str, StoredSnapshot] = OrderedDict()  # by token, oldest first
        self.peers: OrderedDict[bytes, Client] = OrderedDict()
        self.clients: OrderedDict[str, Client] = OrderedDict()
        self.stopping = False
        self.started = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.message_bytes = max(clip_bytes(served.engine) for served in self.worlds.values())
        self.latencies: deque[float] = deque(maxlen=4096)  # from a step's coming to its reply, seconds

    # Messages go out.

    def explain(self, error: Exception) -> ProtocolError:
        """Any error as one that the protocol knows."""
        if not isinstance(error, ProtocolError):
            code = next((code for kind, code in CODES if isinstance(error, kind)), "failed")
            if code == "failed":
                log.exception("a request failed", exc_info=error)
                error = ProtocolError(code, f"something failed inside the host: {type(error).__name__}.")
            else:
                error = ProtocolError(code, str(error))
        self.errors[error.code] += 1
        return error

    def refuse(self, peer: bytes, header: Mapping[str, Any], error: Exception) -> None:
        """Answer a request with what is wrong with it."""
        self.send_to(peer, messages.pack(messages.error_to(header, self.explain(error))))

    def send_to(self, peer: bytes, parts: list[Any]) -> bool:
        """Send a message; False where it could not be sent."""
        try:
            sent = self.send(peer, parts)
        except LookupError:  # gone; its sessions wait for it until their leases end
            self.leave(peer)
            return False
        self.counts["unsent"] += not sent
        return sent

    def leave(self, peer: bytes) -> None:
        """Forget a connection."""
        self.peers.pop(peer, None)
        for hosted in self.sessions.values():
            hosted.watchers.pop(peer, None)

    # What the verbs need.

    def served(self, name: str | None) -> Served:
        """The world of that name, or the only one.

        Raises:
            ProtocolError: no-world.
        """
        if name is None and len(self.worlds) == 1:
            return next(iter(self.worlds.values()))
        if name not in self.worlds:
            raise ProtocolError("no-world", f"world is {name!r}; this host serves: {', '.join(self.worlds)}.")
        return self.worlds[name]

    def found(self, token: str, *roles: Role) -> tuple[Hosted, Role]:
        """A session by one of its tokens, which must give one of the roles; its lease is renewed.

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
        """The engine's record of a session."""
        return self.worlds[hosted.world].engine.sessions[hosted.number]

    def add(self, hosted: Hosted) -> None:
        """Take a session in."""
        self.sessions[hosted.token] = hosted
        self.born[hosted.born] = hosted
        self.list_tokens(hosted)
        log.info("open", extra={"fields": {"session": hosted.token[:8], "world": hosted.world}})

    def list_tokens(self, hosted: Hosted) -> None:
        """Make a session be found by its tokens, and by no older ones."""
        for token in [token for token, (other, _) in self.tokens.items() if other is hosted]:
            del self.tokens[token]
        for token, role in hosted.tokens().items():
            self.tokens[token] = hosted, role

    def remove(self, hosted: Hosted, why: str) -> None:
        """End a session, with all that it has."""
        served = self.worlds[hosted.world]
        served.wishes = [wish for wish in served.wishes if not self._dropped(wish, hosted)]
        served.answered.pop(hosted.token, None)
        served.engine.close(hosted.number)
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
        log.info("close", extra={"fields": {"session": hosted.token[:8], "world": hosted.world, "why": why}})

    def _dropped(self, wish: PendingStep, hosted: Hosted) -> bool:
        """Whether a wish must be dropped because a session of it ends; who wished hears of it."""
        if hosted not in wish.sessions:
            return False
        for other in wish.sessions:
            other.pending = None
        if wish.call is not None:
            gone = ProtocolError("no-session", "the session was closed before its frame was drawn.")
            for peer in wish.peers:
                self.refuse(peer, wish.call.header, gone)
        return True

    def keep(self, client: Client, hosted: Hosted) -> str:
        """Take a snapshot, and return its token; the client's oldest goes where it has too many."""
        token, taken = new_token(), self.worlds[hosted.world].engine.snapshot(hosted.number)
        if self.checkpoints is not None:
            about = {"owner": client.owner, "world": hosted.world, "episode": hosted.episode}
            self.checkpoints.keep(token, taken, about)
        self.snapshots[token] = StoredSnapshot(client.owner, hosted.world, hosted.episode, taken)
        mine = [token for token, kept in self.snapshots.items() if kept.owner == client.owner]
        for old in mine[: max(0, len(mine) - self.config.snapshots)]:
            self.drop(old)
        return token

    def kept(self, token: str, world: str) -> tuple[Snapshot, int]:
        """A snapshot by its token, and how many frames its episode had.

        Raises:
            ProtocolError: no-snapshot.
            SnapshotError: it cannot be read.
        """
        kept = self.snapshots.get(token)
        if kept is None or kept.world != world:
            raise ProtocolError("no-snapshot", f"no snapshot of {world} goes by that token.")
        if isinstance(kept.snapshot, Path):
            kept.snapshot = Snapshot.load(kept.snapshot)
        return kept.snapshot, kept.episode

    def drop(self, token: str) -> None:
        """Forget a snapshot."""
        kept = self.snapshots.pop(token, None)
        if kept is not None and isinstance(kept.snapshot, Snapshot):
            kept.snapshot.close()
        if self.checkpoints is not None:
            self.checkpoints.drop(token)

    def note(self, hosted: Hosted, event: dict[str, Any]) -> None:
        """Write down what happened, before anyone hears of it."""
        if self.checkpoints is not None:
            self.checkpoints.note(hosted, event)

    def save(self, hosted: Hosted) -> None:
        """Write a session as it is now."""
        if self.checkpoints is not None:
            self.checkpoints.save(hosted, self.worlds[hosted.world].engine, time.monotonic())

    def picture(self, hosted: Hosted, encoding: str, quality: int) -> Any:
        """A session's last frame as a message carries it.

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
        """What a message says of a session's last frame."""
        served, record = self.worlds[hosted.world], self.record(hosted)
        limit = served.about["episode_steps"]
        return {
            "step": record.step,
            "reward": record.reward,
            "ended": record.ended,
            "terminated": record.terminated,
            "truncated": limit is not None and hosted.episode >= limit,
        }

    # Time passes.

    def wish(self, wish: PendingStep) -> None:
        """Ask for frames."""
        served = self.worlds[wish.sessions[0].world]
        served.wishes.append(wish)
        for hosted in wish.sessions:
            served.answered.pop(hosted.token, None)

    def patience(self, now: float) -> float:
        """Seconds until something has to be done, if no message comes."""
        times = [hosted.due for hosted in self.sessions.values() if hosted.fps and not hosted.pending]
        times += [self._ready(served) for served in self.worlds.values() if served.wishes]
        return max(0.0, min(times) - now) if times else 1.0

    def _ready(self, served: Served) -> float:
        """When to draw what is wished for: when nobody is left who got a frame just now and is likely to ask again."""
        wait, now = max(self.config.wait_ms / 1000, served.took * WORTH), time.monotonic()
        served.answered = {token: when for token, when in served.answered.items() if now - when < wait}
        return max(served.answered.values()) + wait if served.answered else now

    def draw(self) -> None:
        """Draw what is wished for where it is time; see `patience`."""
        now = time.monotonic()
        for hosted in self.sessions.values():
            if hosted.fps and not hosted.pending and hosted.due <= now:
                self._tick(hosted, now)
        for served in self.worlds.values():
            if served.wishes and self._ready(served) <= time.monotonic():
                self.draw_all(served.name)

    def draw_all(self, world: str) -> None:
        """Draw what is wished for in a world now."""
        served = self.worlds[world]
        wishes, served.wishes = served.wishes, []
        if wishes:
            self._draw(served, wishes)

    def _tick(self, hosted: Hosted, now: float) -> None:
        """A clock is due: its next frame under the actions held. A host too slow for the pace leaves frames out."""
        served, record = self.worlds[hosted.world], self.record(hosted)
        hosted.due = max(hosted.due + 1 / hosted.fps, now)
        try:
            action = hosted.action(record.step, served.engine.world.action_space, served.keymap)
            served.engine.check(hosted.number, action)
        except WorldsimError as error:
            log.warning("the clock stops", extra={"fields": {"session": hosted.token[:8], "error": str(error)}})
            hosted.fps = 0.0
            return
        hosted.pending = ("", 0)
        self.wish(PendingStep([hosted], {hosted.number: action}, now))

    def _draw(self, served: Served, wishes: list[PendingStep]) -> None:
        actions = {number: action for wish in wishes for number, action in wish.actions.items()}
        failure: Exception | None = None
        begun = time.monotonic()
        try:
            served.engine.step(actions)
            served.took = time.monotonic() - begun
        except Exception as error:  # the engine has left all sessions as they were
            failure = error
        for wish in wishes:
            for hosted in wish.sessions:
                hosted.pending = None
            if failure is not None:
                self._fail(wish, failure)
                continue
            for hosted in wish.sessions:
                if hosted.number in wish.actions:
                    hosted.episode += 1
                    hosted.mark = wish.call.mark if wish.call else None
                    if self.checkpoints is not None:
                        action = to_json(served.engine.world.action_space, wish.actions[hosted.number])
                        self.note(hosted, {"step": action, "by": hosted.mark})
                    if not hosted.fps:
                        served.answered[hosted.token] = time.monotonic()
            if wish.call is not None:
                self.latencies.append(time.monotonic() - wish.came)
                self._answer(wish)
        for wish in wishes if failure is None else ():
            for hosted in wish.sessions:
                self.push_all(hosted)

    def drawn_reply(self, call: Call, sessions: Sequence[Hosted]) -> Answer:
        """What a `step` or `step_batch` hears, from the sessions' own records."""
        if call.header["verb"] == "step":
            (hosted,) = sessions
            return self.drawn(hosted), {"frame": self.picture(hosted, hosted.encoding, hosted.quality)}
        drawn = [self.drawn(hosted) for hosted in sessions]
        names = {"steps": "step", "rewards": "reward"} | {name: name for name in ("ended", "terminated", "truncated")}
        return {many: [one[name] for one in drawn] for many, name in names.items()}, self.frames(sessions)

    def frames(self, sessions: Sequence[Hosted]) -> dict[str, np.ndarray]:
        """The last frames of several sessions as one buffer, (N, H, W, 3)."""
        return {"frames": np.stack([self.record(hosted).frame for hosted in sessions])}

    def _answer(self, wish: PendingStep) -> None:
        assert wish.call is not None
        try:
            fields, buffers = self.drawn_reply(wish.call, wish.sessions)
            parts = messages.pack(messages.reply_to(wish.call.header, **fields), buffers)
        except Exception as error:
            parts = messages.pack(messages.error_to(wish.call.header, self.explain(error)))
        for peer in wish.peers:
            self.send_to(peer, parts)

    def _fail(self, wish: PendingStep, error: Exception) -> None:
        for hosted in wish.sessions:
            hosted.fps = 0.0
        explained = self.explain(error)
        if wish.call is not None:
            for peer in wish.peers:
                self.send_to(peer, messages.pack(messages.error_to(wish.call.header, explained)))

    def push_all(self, hosted: Hosted) -> None:
        """Send everyone who watches the last frame."""
        for peer in list(hosted.watchers):
            self.push(hosted, peer)

    def push(self, hosted: Hosted, peer: bytes) -> None:
        """Send a watcher the last frame, if it has credits; else it waits, and takes the place of the one before."""
        watch = hosted.watchers[peer]
        if watch.credits == 0:
            watch.dropped += watch.waiting
            watch.waiting = True
            return
        dropped = watch.dropped
        fields = {
            "session": watch.token,
            **self.drawn(hosted),
            "prompt": self.record(hosted).prompt,
            "credits": watch.credits - 1,
            "dropped": dropped,
        }
        header = {"v": protocol.VERSION, "id": watch.id, "verb": "frame", **fields}
        if self.send_to(peer, messages.pack(header, {"frame": self.picture(hosted, watch.encoding, watch.quality)})):
            watch.credits, watch.dropped, watch.waiting = watch.credits - 1, 0, False
        else:
            watch.dropped = dropped + 1

    def tidy(self) -> None:
        """End leases, and write the checkpoint that is due: one, so that nobody waits long."""
        now = time.monotonic()
        for hosted in [hosted for hosted in self.sessions.values() if hosted.lease_end < now]:
            self.remove(hosted, "lease")
        here = {client.owner for client in self.clients.values() if client.seen + self.config.lease >= now}
        for token in [token for token, kept in self.snapshots.items() if kept.owner not in here]:
            self.drop(token)
        if self.checkpoints is not None and (token := self.checkpoints.due(now)) is not None:
            self.save(self.sessions[token])

    def bye(self) -> None:
        """Write all sessions, and tell everyone."""
        self.stopping = True
        for name in self.worlds:
            self.draw_all(name)
        resume = self.checkpoints is not None
        for hosted in self.sessions.values():
            self.save(hosted)
        farewell = {"v": protocol.VERSION, "id": 0, "verb": "bye", "resume": resume}
        for peer in list(self.peers):
            self.send_to(peer, messages.pack(farewell))

    def stats(self) -> dict[str, Any]:
        """Counts, latencies, and a line for each session; tokens are cut short, for they are secrets."""
        now, times = time.monotonic(), sorted(self.latencies)
        lines = [self._line(hosted, now) for hosted in list(self.sessions.values())[: protocol.MAX_BATCH]]
        return {
            "uptime": now - self.started,
            "sessions": len(self.sessions),
            "clients": len(set(map(id, self.peers.values()))),
            "requests": dict(self.counts),
            "errors": dict(self.errors),
            "step_ms": {f"p{q}": 1000 * times[int(q / 100 * (len(times) - 1))] if times else 0.0 for q in (50, 95, 99)},
            "worlds": {name: served.engine.stats() for name, served in self.worlds.items()},
            "lines": [line for line in lines if line],
        }

    def _line(self, hosted: Hosted, now: float) -> dict[str, Any]:
        record = self.worlds[hosted.world].engine.sessions.get(hosted.number)
        if record is None:  # closed while another thread asks
            return {}
        return {
            "session": hosted.token[:6],
            "world": hosted.world,
            "step": record.step,
            "fps": hosted.fps,
            "prompt": record.prompt[:40],
            "watchers": len(hosted.watchers),
            "lease": round(hosted.lease_end - now, 1),
        }
