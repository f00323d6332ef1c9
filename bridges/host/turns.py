"""Whose message is handled next: short ones as they come, and of long work one piece between two passes.

Long is what encodes a prompt, begins a session, or writes one to disk. It waits behind what its connection has sent
before, so that the order of a connection's requests stays; accounts, and of each its connections, have it in turn. So a
frame waits for one piece of work at most, however much others ask for; and after a piece that took longer than a pass,
frames have as much time before the next.
"""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from worldsim.bridges import messages
from worldsim.bridges.host.accounts import account_of
from worldsim.bridges.host.dispatch import receive
from worldsim.bridges.host.service import Service
from worldsim.errors import ProtocolError

JOBS = {"open", "open_batch", "reset", "reset_batch"}  # take several pieces
LONG = JOBS | {"fork", "restore", "snapshot", "share", "close_batch"}
MOST_JOBS = 16  # at once; beyond, an account that has one already waits with others
MOST_REMEMBERED = 4096  # accounts and connections whose last turn is known
MOST_WAITING = 64  # messages of one connection, as many as its socket holds
MOST_BYTES = 64 * 2**20  # of all messages that wait
PLAYING = 0.5  # seconds after a pass in which more frames are likely to be asked for
RETRY = 0.05  # seconds after which a message that may not wait can be sent again


@dataclass(frozen=True)
class Arrived:
    """A message that waits."""

    parts: Sequence[Any]
    key: str
    address: str
    long: bool
    verb: str
    size: int


class Turns:
    """Messages that wait for their turn, by connection.

    Args:
        service: handles them.
    """

    def __init__(self, service: Service) -> None:
        """Begin without messages."""
        self.service, service.turned = service, True
        self._queues: OrderedDict[bytes, deque[Arrived]] = OrderedDict()
        self._bytes = 0
        self._last: dict[str | bytes, int] = {}  # the last turn of each account and each connection
        self._count = 0  # of turns
        self._next = 0.0  # when work may go on, if there are frames to draw
        self._last_pass = 0.0
        self._drawn = True  # whether a pass was drawn since the last piece of work

    def patience(self, now: float) -> float:
        """Compute the seconds until there is work to do, if no message comes."""
        if not (self._queues or self.service.jobs):
            return 1.0
        return max(0.0, self._next - now) if now - self._last_pass < PLAYING else 0.0

    def put(self, peer: bytes, parts: Sequence[Any], key: str, address: str) -> None:
        """Handle a message now, or let it wait if it is long or its connection has others that wait."""
        header = _header(parts)
        queue = self._queues.get(peer)
        long = self._is_long(header)
        if queue is None and not long and not self.service.busy(peer):
            receive(self.service, peer, parts, key, address, header)
            return
        size = sum(map(len, parts))
        if (queue is not None and len(queue) >= MOST_WAITING) or self._bytes + size > MOST_BYTES:
            error = ProtocolError("too-fast", "too many requests wait for their turn.", {"wait": RETRY})
            self.service.refuse(peer, header, error)
            return
        self._bytes += size
        self._queues.setdefault(peer, deque()).append(Arrived(parts, key, address, long, str(header.get("verb")), size))

    def drew(self) -> None:
        """Take down that a pass was drawn: others may have their turn."""
        self._drawn, self._last_pass = True, time.monotonic()

    def turn(self) -> None:
        """Do one piece of long work, if no frame waits for it to end."""
        now, waits = time.monotonic(), any(served.pending for served in self.service.worlds.values())
        if self.patience(now) or (waits and not self._drawn):
            return
        self._drawn = False
        self._piece()
        took = time.monotonic() - now
        if took > max(served.took for served in self.service.worlds.values()):
            self._next = now + 2 * took

    def _piece(self) -> None:
        """Do a piece for the account that has waited longest, and of its connections for the one that has."""
        jobs, turns = self.service.jobs, dict[str, list[bytes]]()
        working = {peer for job in jobs.values() for peer in job.peers}
        keys = {job.call.peer: key for key, job in jobs.items()}  # a connection has one job at a time
        for job in jobs.values():
            turns.setdefault(job.call.client.account, []).append(job.call.peer)
        busy = set(turns) if len(jobs) >= MOST_JOBS else set()
        for peer, queue in self._queues.items():
            account = self._account(peer)
            if peer not in working and not (account in busy and queue[0].verb in JOBS):
                turns.setdefault(account, []).append(peer)
        if not turns:
            return
        waiting = [*turns, *(peer for peers in turns.values() for peer in peers)]
        for name in waiting:
            self._last.setdefault(name, self._count)  # who is new comes after who waits
        account = min(turns, key=self._last.__getitem__)  # the first of equal ones
        peer = min(turns[account], key=self._last.__getitem__)
        self._count += 1
        self._last[account] = self._last[peer] = self._count
        if len(self._last) > MOST_REMEMBERED:
            self._last = {name: self._last[name] for name in waiting}
        if peer in keys:
            self.service.work(keys[peer])
        else:
            self._handle(peer)

    def _account(self, peer: bytes) -> str:
        first = self._queues[peer][0]
        return account_of(first.key, first.address)

    def _handle(self, peer: bytes) -> None:
        """Handle the first message of a connection, and those behind it up to the next long one."""
        queue, long = self._queues[peer], False
        while queue and not (long and queue[0].long) and not self.service.busy(peer):
            message = queue.popleft()
            self._bytes -= message.size
            long = True
            receive(self.service, peer, message.parts, message.key, message.address)
        if queue:
            self._queues.move_to_end(peer)
        else:
            del self._queues[peer]

    def _is_long(self, header: Mapping[str, Any]) -> bool:
        verb = header.get("verb")
        if verb == "prompt":
            found = self.service.tokens.get(str(header.get("session")))
            text = header.get("prompt")
            return found is not None and isinstance(text, str) and not self.service.knows(found[0].world, text)
        return isinstance(verb, str) and verb in LONG


def _header(parts: Sequence[Any]) -> dict[str, Any]:
    try:
        return messages.read_header(parts)
    except ProtocolError:
        return {}  # `receive` says what is wrong with it
