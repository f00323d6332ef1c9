"""What a host does, without sockets: knows clients, draws frames when it is time, and sends messages.

One thread drives it (`server.Host`). Requests that draw a frame become pending steps; those of all clients, and of the
clocks that are due, are drawn in one pass. A repeated request gets a reply made anew from the session's own record:
nothing is stored for it, and a host that was killed in between answers the same. Whatever a request, a clock or a
watcher raises is its own trouble: nothing here ends the host.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any

from worldsim.bridges import messages, protocol
from worldsim.bridges.frames import SharedFolder
from worldsim.bridges.host.checkpoints import Checkpoints
from worldsim.bridges.host.clients import ClientTable
from worldsim.bridges.host.drawing import Drawing
from worldsim.bridges.host.hosted import Hosted, RequestKey
from worldsim.bridges.host.records import Answer, Call, PendingStep, ServiceConfig, clip_bytes
from worldsim.bridges.protocol import new_token
from worldsim.engine.engine import Engine
from worldsim.errors import ProtocolError

log = logging.getLogger("worldsim.host")
LATE = 0.5  # seconds between two looks at leases from which on the host did not listen in between
MOST_TEXTS = 1024  # prompts that are known to have been encoded

Work = Generator[None, None, Answer]
"""A request that takes long: it yields between pieces of its work, and returns its reply."""


@dataclass
class Job:
    """A request that is worked on in pieces, and the connections over which it came."""

    call: Call
    work: Work
    peers: set[bytes] = field(default_factory=set)


class Service(Drawing):
    """Sessions of several worlds and the clients that step them.

    Args:
        engines: by the name of their world.
        send: takes a peer and the parts of a message; False where it could not be sent, LookupError where it is gone.
        config: limits.
        checkpoints: where live sessions are written to disk.
        shared: where frames in shared memory lie.

    Attributes:
        peers: clients by connection.
        clients: by name.
        jobs: requests that are worked on in pieces.
        turned: whether a `Turns` says when to work on them; else they are done at once.

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
        self.table = ClientTable(self.config, self.leave)
        self.peers, self.clients = self.table.peers, self.table.clients
        self.jobs: OrderedDict[RequestKey, Job] = OrderedDict()
        self.stopping, self.turned = False, False
        self.started = self.listened = time.monotonic()
        self.message_bytes = max(clip_bytes(served.engine) for served in self.worlds.values())
        self._texts: OrderedDict[str, None] = OrderedDict()

    def send_to(self, peer: bytes, parts: list[Any]) -> bool:
        """Send a message; False where it could not be sent."""
        try:
            sent = self.send(peer, parts)
        except LookupError:  # gone; its sessions wait for it until their leases end
            self.leave(peer)
            return False
        except Exception:
            log.exception("a message cannot be sent")
            return False
        self.counts["unsent"] += not sent
        return sent

    def leave(self, peer: bytes) -> None:
        """Forget a connection."""
        self.table.forget(peer)
        for hosted in self.sessions.values():
            hosted.watchers.pop(peer, None)

    def knows(self, world: str, text: str | None) -> bool:
        """Say whether a prompt needs no encoding, which takes long."""
        known = self.worlds[world].about["prompts"]
        return not text or text in known or f"{world}/{text}" in self._texts

    def learned(self, world: str, text: str | None) -> None:
        """Take down that a prompt was encoded."""
        if text:
            self._texts[f"{world}/{text}"] = None
            self._texts.move_to_end(f"{world}/{text}")
            if len(self._texts) > MOST_TEXTS:
                self._texts.popitem(last=False)

    # Requests that take long.

    def begin_job(self, call: Call, work: Work) -> None:
        """Work on a request in pieces, of which the first is done now; without a `Turns` all are.

        Raises:
            ProtocolError: bad-field, another request of that id is worked on.
        """
        if call.request_key in self.jobs:
            raise ProtocolError(
                "bad-field", f"'id' is {call.header['id']}, which another request has that is not done."
            )
        self.jobs[call.request_key] = Job(call, work, {call.peer})
        self.work(call.request_key)
        while not self.turned and call.request_key in self.jobs:
            self.work(call.request_key)

    def joins_job(self, call: Call) -> bool:
        """Say whether a request is worked on already: it came again, and its reply goes over both connections."""
        job = self.jobs.get(call.request_key)
        if job is None or job.call.header.get("verb") != call.header.get("verb"):
            return False
        job.peers.add(call.peer)
        return True

    def busy(self, peer: bytes) -> bool:
        """Say whether a request of a connection is worked on: later ones wait, so that their order stays."""
        return any(peer in job.peers for job in self.jobs.values())

    def stop_jobs(self) -> None:
        """Undo what jobs have begun, and refuse their requests; their clients ask again."""
        for job in self.jobs.values():
            job.work.close()
            for peer in job.peers:
                self.refuse(peer, job.call.header, ProtocolError("stopping", "the host is about to stop."))
        self.jobs.clear()

    def work(self, key: RequestKey) -> None:
        """Do one piece of a job."""
        job = self.jobs[key]
        try:
            next(job.work)
            return
        except StopIteration as done:
            try:
                fields, buffers = done.value
                parts = messages.pack(messages.reply_to(job.call.header, **fields), buffers)
            except Exception as error:
                parts = messages.pack(messages.error_to(job.call.header, self.explain(error)))
        except Exception as error:
            parts = messages.pack(messages.error_to(job.call.header, self.explain(error)))
        del self.jobs[key]
        for peer in job.peers:
            self.send_to(peer, parts)

    # Sessions end.

    def remove(self, hosted: Hosted, why: str, forget: bool = True) -> None:
        """End a session, and refuse what is pending for it."""
        served = self.worlds[hosted.world]
        served.pending = [pending for pending in served.pending if not self._cancelled(pending, hosted)]
        served.answered.pop(hosted.token, None)
        self.delete(hosted, forget)
        log.info("close", extra={"fields": {"session": hosted.token[:8], "world": hosted.world, "why": why}})

    def _cancelled(self, pending: PendingStep, hosted: Hosted) -> bool:
        """Cancel a pending step if a session of it ends, and refuse its request."""
        if hosted not in pending.sessions:
            return False
        for other in pending.sessions:
            other.pending, other.divided = None, False
        gone = ProtocolError("no-session", "the session was closed before its frame was drawn.")
        self.undo(pending, gone)
        if pending.call is not None:
            for peer in pending.peers:
                self.refuse(peer, pending.call.header, gone)
        return True

    def push_all(self, hosted: Hosted) -> None:
        """Send the last frame to all watchers."""
        for peer in list(hosted.watchers):
            try:
                self.push(hosted, peer)
            except Exception:  # its own trouble: it hears no more, the others do
                log.exception("a frame cannot be pushed", extra={"fields": {"session": hosted.token[:8]}})
                hosted.watchers.pop(peer, None)

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
        """End leases, and write one checkpoint that is due: only one, so that no client waits long.

        A lease counts only time in which the host listened: not that in which it was paused, or computed for long.
        """
        now = time.monotonic()
        if now - self.listened > LATE:
            for hosted in self.sessions.values():
                hosted.lease_end += now - self.listened
            for owner in self.keepers:
                self.keepers[owner] += now - self.listened
        self.listened = now
        for hosted in [hosted for hosted in self.sessions.values() if hosted.lease_end < now]:
            self._quietly(hosted.token, lambda hosted=hosted: self.remove(hosted, "lease"))
        gone = {owner for owner, seen in self.keepers.items() if seen + self.config.lease < now}
        for token in [token for token, stored in self.snapshots.items() if gone and stored.owner in gone]:
            self._quietly(token, lambda token=token: self.drop(token))
        for owner in gone:
            del self.keepers[owner]
        if self.checkpoints is not None and (token := self.checkpoints.due(now)) is not None:
            divided = self.sessions[token].divided  # its journal is about to go on, or to be taken back
            if divided or not self._quietly(token, lambda: self.save(self.sessions[token])):
                self.checkpoints.postpone(token, now)

    def _quietly(self, token: str, do: Callable[[], None]) -> bool:
        """Do something for one session or snapshot; what goes wrong is logged, and the others go on."""
        try:
            do()
        except Exception as error:
            known = isinstance(error, ProtocolError)
            fields = {"session": token[:8], "error": f"{type(error).__name__}: {error}"}
            log.warning("not done", exc_info=None if known else error, extra={"fields": fields})
            return False
        return True

    def bye(self) -> None:
        """Write all sessions to disk, and say goodbye to all clients."""
        self.stopping = True
        self.stop_jobs()
        for name in self.worlds:
            self.draw_all(name)
        resume = self.checkpoints is not None
        for hosted in self.sessions.values():  # where it fails, the journal has all that happened
            self._quietly(hosted.token, lambda hosted=hosted: self.save(hosted))
        farewell = {"v": protocol.VERSION, "id": 0, "verb": "bye", "resume": resume}
        for peer in list(self.peers):
            self.send_to(peer, messages.pack(farewell))
