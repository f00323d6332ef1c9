"""Draws pending frames in passes that sessions share; the trouble of one request is its own.

A step is written to the journal of its session before the engine steps, and taken back if no frame comes of it. If a
shared pass fails, each request is drawn by itself, so that only the sender of the one that fails hears of it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from worldsim.bridges import messages
from worldsim.bridges.actions import to_json
from worldsim.bridges.frames import SharedFolder
from worldsim.bridges.host.checkpoints import Checkpoints
from worldsim.bridges.host.division import Part, is_divided, measure, next_pass, rest, restored
from worldsim.bridges.host.hosted import Hosted
from worldsim.bridges.host.records import Call, PendingStep, Served, ServiceConfig
from worldsim.bridges.host.registry import Registry
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
ALONE = 10.0  # seconds after its last request that a session's clock goes on without a watcher
LATER = 1.0  # seconds until a clock tries again to draw a frame that could not be written to disk
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


class Drawing(Registry):
    """Sessions whose frames are drawn when it is time; see `Registry`.

    Attributes:
        counts: requests by verb.
        errors: by code.
        latencies: from a step's coming to its reply, seconds.
    """

    def __init__(
        self,
        engines: Mapping[str, Engine],
        config: ServiceConfig | None = None,
        checkpoints: Checkpoints | None = None,
        shared: SharedFolder | None = None,
    ) -> None:
        """Begin without sessions."""
        super().__init__(engines, config, checkpoints, shared)
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.latencies: deque[float] = deque(maxlen=4096)

    def send_to(self, peer: bytes, parts: list[Any]) -> bool:
        """Send a message; False where it could not be sent."""
        raise NotImplementedError

    def push_all(self, hosted: Hosted) -> None:
        """Send the last frame to all watchers."""
        raise NotImplementedError

    def explain(self, error: Exception) -> ProtocolError:
        """Turn any error into one that the protocol knows."""
        if not isinstance(error, ProtocolError):
            code = next((code for kind, code in CODES if isinstance(error, kind)), "failed")
            if code == "failed":
                log.error("a request failed", exc_info=error)
                error = ProtocolError(code, f"something failed inside the host: {type(error).__name__}.")
            else:
                error = ProtocolError(code, str(error))
        self.errors[error.code] += 1
        return error

    def refuse(self, peer: bytes, header: Mapping[str, Any], error: Exception) -> None:
        """Reply to a request with an error."""
        self.send_to(peer, messages.pack(messages.error_to(header, self.explain(error))))

    def add_pending(self, pending: PendingStep) -> None:
        """Ask for frames; a later `draw` draws them."""
        served = self.worlds[pending.sessions[0].world]
        served.pending.append(pending)
        for hosted in pending.sessions:
            served.answered.pop(hosted.token, None)

    def patience(self, now: float) -> float:
        """Compute the seconds until something has to be done, if no message comes."""
        times = [hosted.due for hosted in self._clocks(now)]
        times += [self._ready(served) for served in self.worlds.values() if served.pending]
        return max(0.0, min(times) - now) if times else 1.0

    def _ready(self, served: Served) -> float:
        """Compute when to draw: sessions that have just got a frame are waited for, as they are likely to ask again."""
        wait, now = max(self.config.wait_ms / 1000, served.took * WORTH), time.monotonic()
        served.answered = {token: when for token, when in served.answered.items() if now - when < wait}
        return max(served.answered.values()) + wait if served.answered else now

    def draw(self) -> bool:
        """Draw pending frames where it is time; see `patience`. Say whether a pass was drawn."""
        now, drawn = time.monotonic(), False
        for hosted in self._clocks(now):
            if hosted.due <= now:
                self._tick(hosted, now)
        for served in self.worlds.values():
            if served.pending and self._ready(served) <= time.monotonic():
                self._draw(served, next_pass(served))
                drawn = True
        return drawn

    def _clocks(self, now: float) -> list[Hosted]:
        """List the sessions whose clocks go: not those of a closed page, which nobody watches or steers."""
        going = [hosted for hosted in self.sessions.values() if hosted.fps and not hosted.pending]
        return [
            hosted
            for hosted in going
            if now - self.heard(hosted) < ALONE or any(one.looks(now, ALONE) for one in hosted.watchers.values())
        ]

    def draw_all(self, world: str) -> None:
        """Draw all pending frames of a world now."""
        served = self.worlds[world]
        if served.pending:
            self._draw(served, [(pending, rest(pending)) for pending in served.pending])

    def _tick(self, hosted: Hosted, now: float) -> None:
        """Ask for the frame that a session's clock is due; frames that the host has no time for are left out."""
        served, record = self.worlds[hosted.world], self.record(hosted)
        hosted.due = max(hosted.due + 1 / hosted.fps, now)
        try:
            action = hosted.action(record.step, served.engine.world.action_space, served.keymap)
            served.engine.check(hosted.number, action)
        except Exception as error:
            self._stop_clock(hosted, error)
            return
        hosted.pending = ("", 0)
        self.add_pending(PendingStep([hosted], {hosted.number: action}, now))

    def _draw(self, served: Served, parts: list[Part]) -> None:
        begun, done = time.monotonic(), list[PendingStep]()
        together = len(parts) > 1 and self._draw_together(served, parts)
        for part in parts:
            pending, numbers = part
            try:
                if not together:
                    self._step(served, [part])
                pending.drawn |= set(numbers)
                if rest(pending):
                    for hosted in pending.sessions:
                        hosted.divided = True
                    continue
                pending.undo.close()
                done.append(pending)
            except Exception as error:
                self._fail(pending, error)
            self._end(served, pending)
        measure(served, sum(len(numbers) for _, numbers in parts), time.monotonic() - begun)
        for pending in done:
            self._drawn(served, pending)
            if pending.call is not None:
                self.latencies.append(time.monotonic() - pending.came)
                self._reply(pending, pending.call)
        for pending in done:
            for hosted in pending.sessions:
                self.push_all(hosted)

    def undo(self, pending: PendingStep, error: Exception) -> None:
        """Undo the parts of a request that were drawn."""
        try:
            pending.undo.__exit__(type(error), error, error.__traceback__)
        except Exception:
            log.exception("a part cannot be undone")

    def draw_now(self, hosted: Hosted) -> None:
        """Draw the pending frame of a session now."""
        served = self.worlds[hosted.world]
        mine = [(pending, rest(pending)) for pending in served.pending if hosted in pending.sessions]
        if mine:
            self._draw(served, mine)

    def _end(self, served: Served, pending: PendingStep) -> None:
        """No longer wait for the frames of a request."""
        served.pending = [other for other in served.pending if other is not pending]
        for hosted in pending.sessions:
            hosted.pending, hosted.divided = None, False

    def _draw_together(self, served: Served, parts: list[Part]) -> bool:
        """Draw several requests in one pass; False if one of them prevents it, and no session has changed."""
        try:
            self._step(served, parts)
        except ProtocolError:
            return False  # a journal cannot be written
        except Exception as error:
            fields = {"requests": len(parts), "error": f"{type(error).__name__}: {error}"}
            log.warning("a shared pass failed; each request is drawn by itself", extra={"fields": fields})
            return False
        return True

    def _step(self, served: Served, parts: list[Part]) -> None:
        """Write the steps of requests to the journals, and draw them; all or none."""
        actions = {number: pending.actions[number] for pending, numbers in parts for number in numbers}
        with ExitStack() as undo:
            stacks = [undo.enter_context(ExitStack()) for _ in parts]
            for part, stack in zip(parts, stacks, strict=True):
                pending, numbers = part
                by = pending.call.request_key if pending.call else None
                for hosted in pending.sessions:
                    if hosted.number in numbers and is_divided(part):
                        stack.enter_context(restored(served.engine, hosted.number))
                    if hosted.number in numbers and self.checkpoints is not None:
                        action = to_json(served.engine.world.action_space, pending.actions[hosted.number])
                        stack.enter_context(self.noted(hosted, {"step": action, "by": by}))
            served.engine.step(actions)  # if it raises, it has left all sessions as they were
            for part, stack in zip(parts, stacks, strict=True):
                if is_divided(part):
                    part[0].undo.enter_context(stack.pop_all())

    def _drawn(self, served: Served, pending: PendingStep) -> None:
        for hosted in pending.sessions:
            if hosted.number in pending.actions:
                hosted.episode += 1
                hosted.last_request = pending.call.request_key if pending.call else None
                if not hosted.fps:
                    served.answered[hosted.token] = time.monotonic()

    def _reply(self, pending: PendingStep, call: Call) -> None:
        try:
            fields, buffers = self.drawn_reply(call, pending.sessions)
            parts = messages.pack(messages.reply_to(call.header, **fields), buffers)
        except Exception as error:
            parts = messages.pack(messages.error_to(call.header, self.explain(error)))
        for peer in pending.peers:
            self.send_to(peer, parts)

    def _fail(self, pending: PendingStep, error: Exception) -> None:
        """Undo what was drawn of a request, and tell its senders, or stop the clock that asks."""
        self.undo(pending, error)
        if pending.call is None:
            for hosted in pending.sessions:
                if isinstance(error, ProtocolError) and error.code == "no-room":
                    hosted.due = time.monotonic() + LATER
                else:
                    self._stop_clock(hosted, error)
            return
        parts = messages.pack(messages.error_to(pending.call.header, self.explain(error)))
        for peer in pending.peers:
            self.send_to(peer, parts)

    def _stop_clock(self, hosted: Hosted, error: Exception) -> None:
        hosted.fps = 0.0
        fields = {"session": hosted.token[:8], "error": f"{type(error).__name__}: {error}"}
        log.warning("the clock stops", extra={"fields": fields})
