"""What a host does, without sockets: draws frames when it is time, and sends messages.

One thread drives it (`server.Host`). Requests that draw a frame become pending steps; those of all clients, and of the
clocks that are due, are drawn in one pass. A repeated request gets a reply made anew from the session's own record:
nothing is stored for it, and a host that was killed in between answers the same.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Any

from worldsim.bridges import messages, protocol
from worldsim.bridges.actions import to_json
from worldsim.bridges.frames import SharedFolder
from worldsim.bridges.host.checkpoints import Checkpoints
from worldsim.bridges.host.hosted import Hosted
from worldsim.bridges.host.records import Call, Client, PendingStep, Served, ServiceConfig, clip_bytes
from worldsim.bridges.host.registry import Registry
from worldsim.bridges.protocol import new_token
from worldsim.engine.engine import Engine
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
WORTH = 0.05  # part of a pass that the host may wait for one more session to join it
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


class Service(Registry):
    """Sessions of several worlds and the clients that step them.

    Args:
        engines: by the name of their world.
        send: takes a peer and the parts of a message; False where it could not be sent, LookupError where it is gone.
        config: limits.
        checkpoints: where live sessions are written to disk.
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
        """Begin without clients."""
        super().__init__(engines, config, checkpoints, shared)
        self.send = send
        self.name = new_token()
        self.peers: OrderedDict[bytes, Client] = OrderedDict()
        self.clients: OrderedDict[str, Client] = OrderedDict()
        self.stopping = False
        self.started = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.message_bytes = max(clip_bytes(served.engine) for served in self.worlds.values())
        self.latencies: deque[float] = deque(maxlen=4096)  # from a step's coming to its reply, seconds

    def explain(self, error: Exception) -> ProtocolError:
        """Turn any error into one that the protocol knows."""
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
        """Reply to a request with an error."""
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

    def remove(self, hosted: Hosted, why: str) -> None:
        """End a session, and refuse what is pending for it."""
        served = self.worlds[hosted.world]
        served.pending = [pending for pending in served.pending if not self._cancelled(pending, hosted)]
        served.answered.pop(hosted.token, None)
        self.delete(hosted)
        log.info("close", extra={"fields": {"session": hosted.token[:8], "world": hosted.world, "why": why}})

    def _cancelled(self, pending: PendingStep, hosted: Hosted) -> bool:
        """Cancel a pending step if a session of it ends, and refuse its request."""
        if hosted not in pending.sessions:
            return False
        for other in pending.sessions:
            other.pending = None
        if pending.call is not None:
            gone = ProtocolError("no-session", "the session was closed before its frame was drawn.")
            for peer in pending.peers:
                self.refuse(peer, pending.call.header, gone)
        return True

    def add_pending(self, pending: PendingStep) -> None:
        """Ask for frames; a later `draw` draws them."""
        served = self.worlds[pending.sessions[0].world]
        served.pending.append(pending)
        for hosted in pending.sessions:
            served.answered.pop(hosted.token, None)

    def patience(self, now: float) -> float:
        """Compute the seconds until something has to be done, if no message comes."""
        times = [hosted.due for hosted in self.sessions.values() if hosted.fps and not hosted.pending]
        times += [self._ready(served) for served in self.worlds.values() if served.pending]
        return max(0.0, min(times) - now) if times else 1.0

    def _ready(self, served: Served) -> float:
        """Compute when to draw: sessions that have just got a frame are waited for, as they are likely to ask again."""
        wait, now = max(self.config.wait_ms / 1000, served.took * WORTH), time.monotonic()
        served.answered = {token: when for token, when in served.answered.items() if now - when < wait}
        return max(served.answered.values()) + wait if served.answered else now

    def draw(self) -> None:
        """Draw pending frames where it is time; see `patience`."""
        now = time.monotonic()
        for hosted in self.sessions.values():
            if hosted.fps and not hosted.pending and hosted.due <= now:
                self._tick(hosted, now)
        for served in self.worlds.values():
            if served.pending and self._ready(served) <= time.monotonic():
                self.draw_all(served.name)

    def draw_all(self, world: str) -> None:
        """Draw all pending frames of a world now."""
        served = self.worlds[world]
        batch, served.pending = served.pending, []
        if batch:
            self._draw(served, batch)

    def _tick(self, hosted: Hosted, now: float) -> None:
        """Ask for the frame that a session's clock is due; frames that the host has no time for are left out."""
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
        self.add_pending(PendingStep([hosted], {hosted.number: action}, now))

    def _draw(self, served: Served, batch: list[PendingStep]) -> None:
        actions = {number: action for pending in batch for number, action in pending.actions.items()}
        failure: Exception | None = None
        begun = time.monotonic()
        try:
            served.engine.step(actions)
            served.took = time.monotonic() - begun
        except Exception as error:  # the engine has left all sessions as they were
            failure = error
        for pending in batch:
            for hosted in pending.sessions:
                hosted.pending = None
            if failure is not None:
                self._fail(pending, failure)
                continue
            for hosted in pending.sessions:
                if hosted.number in pending.actions:
                    hosted.episode += 1
                    hosted.last_request = pending.call.request_key if pending.call else None
                    if self.checkpoints is not None:
                        action = to_json(served.engine.world.action_space, pending.actions[hosted.number])
                        self.note(hosted, {"step": action, "by": hosted.last_request})
                    if not hosted.fps:
                        served.answered[hosted.token] = time.monotonic()
            if pending.call is not None:
                self.latencies.append(time.monotonic() - pending.came)
                self._reply(pending, pending.call)
        for pending in batch if failure is None else ():
            for hosted in pending.sessions:
                self.push_all(hosted)

    def _reply(self, pending: PendingStep, call: Call) -> None:
        try:
            fields, buffers = self.drawn_reply(call, pending.sessions)
            parts = messages.pack(messages.reply_to(call.header, **fields), buffers)
        except Exception as error:
            parts = messages.pack(messages.error_to(call.header, self.explain(error)))
        for peer in pending.peers:
            self.send_to(peer, parts)

    def _fail(self, pending: PendingStep, error: Exception) -> None:
        for hosted in pending.sessions:
            hosted.fps = 0.0
        explained = self.explain(error)
        if pending.call is not None:
            for peer in pending.peers:
                self.send_to(peer, messages.pack(messages.error_to(pending.call.header, explained)))

    def push_all(self, hosted: Hosted) -> None:
        """Send the last frame to all watchers."""
        for peer in list(hosted.watchers):
            self.push(hosted, peer)

    def push(self, hosted: Hosted, peer: bytes) -> None:
        """Send a watcher the last frame if it has credits; else the frame waits, in place of any that waited before."""
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
        if self.send_to(
            peer, messages.pack(header, {"frame": self.encoded_frame(hosted, watch.encoding, watch.quality)})
        ):
            watch.credits, watch.dropped, watch.waiting = watch.credits - 1, 0, False
        else:
            watch.dropped = dropped + 1

    def tidy(self) -> None:
        """End leases, and write one checkpoint that is due: only one, so that no client waits long."""
        now = time.monotonic()
        for hosted in [hosted for hosted in self.sessions.values() if hosted.lease_end < now]:
            self.remove(hosted, "lease")
        here = {client.owner for client in self.clients.values() if client.seen + self.config.lease >= now}
        for token in [token for token, stored in self.snapshots.items() if stored.owner not in here]:
            self.drop(token)
        if self.checkpoints is not None and (token := self.checkpoints.due(now)) is not None:
            self.save(self.sessions[token])

    def bye(self) -> None:
        """Write all sessions to disk, and say goodbye to all clients."""
        self.stopping = True
        for name in self.worlds:
            self.draw_all(name)
        resume = self.checkpoints is not None
        for hosted in self.sessions.values():
            self.save(hosted)
        farewell = {"v": protocol.VERSION, "id": 0, "verb": "bye", "resume": resume}
        for peer in list(self.peers):
            self.send_to(peer, messages.pack(farewell))
