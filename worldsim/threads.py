"""Threads of our own, on which the caller's settings of torch have no effect on a single bit.

How many threads torch uses, autocast, inference mode and the default device belong to a thread: ours begin without.
The default dtype, the precision of products and oneDNN belong to the process: while ours compute, they are as we need
them, and they are given back afterwards. After a fork a child has none of its parent's threads: they begin anew.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
Given = ParamSpec("Given")
LONGEST_WAIT = 10.0  # seconds that a fork waits for what is under way
_ALL: weakref.WeakSet[OwnThreads] = weakref.WeakSet()


class _Fixed:
    """Settings of the process, and how many computations need them as they are."""

    def __init__(self) -> None:
        self.lock, self.users, self.before = threading.Lock(), 0, []

    def take(self) -> None:
        with self.lock:
            self.users += 1
            if self.users > 1:
                return
            self.before = []
            if (dtype := torch.get_default_dtype()) != torch.float32:
                torch.set_default_dtype(torch.float32)
                self.before.append(lambda: torch.set_default_dtype(dtype))
            if (precision := torch.get_float32_matmul_precision()) != "highest":
                torch.set_float32_matmul_precision("highest")
                self.before.append(lambda: torch.set_float32_matmul_precision(precision))
            if not torch.backends.mkldnn.enabled:
                torch._C._set_mkldnn_enabled(True)  # alone: torch's own setter sets, and warns of, other things too
                self.before.append(lambda: torch._C._set_mkldnn_enabled(False))

    def give_back(self) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0:
                for undo in self.before:
                    undo()


_fixed = _Fixed()


@contextlib.contextmanager
def fixed_settings() -> Iterator[None]:
    """Compute with the process's settings of torch as worldsim needs them; the caller's come back afterwards."""
    _fixed.take()
    try:
        yield
    finally:
        _fixed.give_back()


class OwnThreads:
    """One thread that calls happen on, one after the other, and threads that compute for it.

    Args:
        threads: that compute, each on one core.
    """

    def __init__(self, threads: int = 1) -> None:
        """Begin without threads; they come when something is to be done."""
        self.threads = threads
        self._begin()
        _ALL.add(self)

    def _begin(self) -> None:
        self._lock, self.busy = threading.Lock(), threading.RLock()
        self._main: ThreadPoolExecutor | None = None
        self._workers: ThreadPoolExecutor | None = None
        self._here = threading.local()
        self._given_up: deque[Generator[Any, Any, Any]] = deque()

    def call(self, function: Callable[[], Result]) -> Result:
        """Call a function on the one thread, and wait for it.

        An exception in the caller's thread while it waits, such as Ctrl-C, does not stop what the function does.
        """
        if getattr(self._here, "main", False):
            return function()
        with self._lock:
            if self._main is None:
                self._main = ThreadPoolExecutor(1, "worldsim", _set_up, (self._here,))
            try:
                future = self._main.submit(_compute, self.busy, self._given_up, function)
            except RuntimeError:  # the interpreter is about to end, and begins no more threads
                return _compute(self.busy, self._given_up, function)
        return future.result()

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Call for each item, several at a time; to be called on the one thread, which does a single item itself."""
        if len(items) < 2 or self.threads == 1:
            return [function(item) for item in items]
        if self._workers is None:
            self._workers = ThreadPoolExecutor(self.threads, "worldsim", _set_up)
        return list(self._workers.map(function, items))

    def pieces(self, work: Generator[None, None, Result]) -> Generator[None, None, Result]:
        """Do work that pauses, each piece on the one thread, and pause where it does.

        If it is given up halfway it is closed at the next call: whoever collects it must not wait for the thread.
        """

        def piece() -> tuple[bool, Any]:
            try:
                return False, next(work)
            except StopIteration as done:
                return True, done.value

        try:
            while True:
                ended, result = self.call(piece)
                if ended:
                    return result
                yield
        except GeneratorExit:
            self._given_up.append(work)
            raise

    def close(self) -> None:
        """End the threads; they begin anew if something is to be done again."""
        with self._lock:
            ended, self._main, self._workers = (self._main, self._workers), None, None
        for executor in ended:
            if executor is not None:
                executor.shutdown(wait=not getattr(self._here, "main", False))


def at_once(work: Generator[Any, None, Result]) -> Result:
    """Do work that pauses without a pause, and return its result."""
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value


def _set_up(here: threading.local | None = None) -> None:
    """Set up a thread; it must not know its owner, which would then never be collected."""
    torch.set_num_threads(1)
    torch.get_num_threads()  # from now on it holds: at first use a thread takes what was set last, by any thread
    if here is not None:
        here.main = True


def _compute(
    busy: threading.RLock, given_up: deque[Generator[Any, Any, Any]], function: Callable[[], Result]
) -> Result:
    with busy, fixed_settings():
        while given_up:
            given_up.popleft().close()
        return function()


def on_own_thread(
    method: Callable[Concatenate[Any, Given], Result],
) -> Callable[Concatenate[Any, Given], Result]:
    """Have a method run on the one thread of its object's `own`, an `OwnThreads`."""

    @functools.wraps(method)
    def call(self: Any, *args: Given.args, **kwargs: Given.kwargs) -> Result:
        return self.own.call(lambda: method(self, *args, **kwargs))

    return call


def _before_fork() -> None:
    """Wait until nothing is under way, so that a child finds everything whole."""
    global _waited_for
    _waited_for = [own for own in list(_ALL) if own.busy.acquire(timeout=LONGEST_WAIT)]


def _after_fork() -> None:
    for own in _waited_for:
        own.busy.release()


def _in_child() -> None:
    """No threads are there, and what they held is free again. More than one core would hang in torch."""
    _fixed.lock, _fixed.users = threading.Lock(), 0
    torch.set_num_threads(1)
    for own in list(_ALL):
        own._begin()


_waited_for: list[OwnThreads] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_child)
