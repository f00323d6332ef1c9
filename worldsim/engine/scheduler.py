"""Steps that come one by one from many callers, drawn together: who waits for whom, and how long at most.

One thread drives the engine. It waits up to `wait_ms` after the first request for others to come, unless all sessions
have asked already, then takes the sessions in turns, one request each. So a batch fills while nobody waits longer than
the setting plus a round of steps of the others, and nobody is passed over. What takes long, such as a session's first
frame, goes between two batches.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from worldsim.engine.engine import Engine
from worldsim.engine.records import StepResult
from worldsim.errors import ConfigError, SessionError, WorldsimError

Result = TypeVar("Result")


@dataclass
class _Request:
    session: int
    action: Any
    future: Future[StepResult]
    came: float


class Scheduler:
    """Fills batches; a context manager.

    Args:
        engine: is driven by this scheduler alone from now on.
        wait_ms: how long a request may wait for others.
        largest: sessions in a batch at most.

    Raises:
        ConfigError: a setting that cannot work.
    """

    def __init__(self, engine: Engine, wait_ms: float = 2.0, largest: int = 64) -> None:
        """Start the thread."""
        if wait_ms < 0 or largest < 1:
            raise ConfigError(f"wait_ms is {wait_ms} and largest {largest}; allowed: at least 0 and at least 1.")
        self.engine, self.wait, self.largest = engine, wait_ms / 1000, largest
        self._requests: OrderedDict[int, deque[_Request]] = OrderedDict()  # by session, whose turn is next first
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed, self._open = threading.Condition(), True
        self._thread = threading.Thread(target=self._run, name="worldsim-scheduler", daemon=True)
        self._thread.start()

    def __enter__(self) -> Scheduler:
        """Itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close."""
        self.close()

    def step(self, session: int, action: Any) -> Future[StepResult]:
        """Ask for a session's next frame. Several requests of one session are drawn in their order.

        The future raises what `Engine.step` raises for this session; other sessions of the batch are not touched by it.
        """
        future: Future[StepResult] = Future()
        with self._changed:
            self._check_open()
            request = _Request(session, action, future, time.monotonic())
            self._requests.setdefault(session, deque()).append(request)
            self._changed.notify()
        return future

    def call(self, function: Callable[[Engine], Result]) -> Future[Result]:
        """Ask for anything else to be done with the engine, between two batches: `call(lambda e: e.open(seed=3))`."""
        future: Future[Result] = Future()
        with self._changed:
            self._check_open()
            self._calls.append((lambda: function(self.engine), future))
            self._changed.notify()
        return future

    def close(self) -> None:
        """Stop; requests that were not begun raise SessionError. The engine stays open."""
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join()

    def _check_open(self) -> None:
        if not self._open:
            raise SessionError("the scheduler was closed; make a new one.")

    def _run(self) -> None:
        while True:
            with self._changed:
                while self._open and not self._calls and not self._ready():
                    self._changed.wait(self._patience())
                if not self._open:
                    self._refuse()
                    return
                call = self._calls.popleft() if self._calls else None
                # A call goes first, then a batch of those who are ready: neither can hold up the other for long.
                batch = self._take() if self._ready() else []
            if call is not None:
                _answer(call[1], call[0])
            if batch:
                self._draw(batch)

    def _ready(self) -> bool:
        if not self._requests:
            return False
        enough = min(self.largest, len(self.engine.sessions))
        return len(self._requests) >= enough or time.monotonic() - self._oldest() >= self.wait

    def _patience(self) -> float | None:
        return max(0.0, self._oldest() + self.wait - time.monotonic()) if self._requests else None

    def _oldest(self) -> float:
        return min(queue[0].came for queue in self._requests.values())

    def _take(self) -> list[_Request]:
        """One request of each session whose turn it is."""
        batch = []
        for session in list(self._requests)[: self.largest]:
            queue = self._requests.pop(session)
            batch.append(queue.popleft())
            if queue:
                self._requests[session] = queue  # behind all others
        return [request for request in batch if request.future.set_running_or_notify_cancel()]

    def _draw(self, batch: list[_Request]) -> None:
        good = []
        for request in batch:  # a wrong request is answered by itself, and does not spoil the others'
            try:
                self.engine.check(request.session, request.action)
                good.append(request)
            except WorldsimError as error:
                request.future.set_exception(error)
        try:
            steps = self.engine.step({request.session: request.action for request in good})
        except Exception as error:
            for request in good:
                request.future.set_exception(error)
            return
        for request in good:
            request.future.set_result(steps[request.session])

    def _refuse(self) -> None:
        error = SessionError("the scheduler was closed before this was done.")
        futures = [request.future for queue in self._requests.values() for request in queue]
        for future in [*futures, *(future for _, future in self._calls)]:
            if future.set_running_or_notify_cancel():
                future.set_exception(error)


def _answer(future: Future[Any], call: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(call())
    except Exception as error:
        future.set_exception(error)
