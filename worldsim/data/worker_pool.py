"""Processes that work through numbered tasks, and that may be stopped or die at any time.

The executors of the standard library are not used: they do not say which task a dead process was at, and they finish
the tasks under way when the user stops the program.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from worldsim.errors import DataError, WorldsimError

READY = "ready"  # what a process says once it has started
ENVIRONMENT = {
    "SDL_VIDEODRIVER": "dummy",  # no windows
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
}


@contextlib.contextmanager
def _environment() -> Iterator[None]:
    """Set the environment variables of a worker within a `with` block."""
    before = {name: os.environ.get(name) for name in ENVIRONMENT}
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def refuse_to_begin_again() -> None:
    """End a process that is only just importing the script of the one that started it, and so records once more.

    The other then says what the script needs.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        sys.exit("worldsim: a process that shall play imported the script, which began to record again.")


class Alone:
    """The interface of `WorkerPool` in this process, for one worker: no other process has to import modules."""

    free, busy = True, 0

    def __init__(self, work: Callable[[int], int]) -> None:
        """Do `work(task)` for each task begun."""
        self.work = work

    def __enter__(self) -> Alone:
        """Nothing to start."""
        return self

    def __exit__(self, *details: object) -> None:
        """Nothing to stop."""

    def begin(self, task: int) -> None:
        """Do `task`."""
        with _environment():
            self.result = self.work(task)
        self.free, self.busy = False, 1

    def wait(self) -> list[int]:
        """Return the result of the last task."""
        self.free, self.busy = True, 0
        return [self.result]


class WorkerPool:
    """Workers, each a process with one thread; at most one task each."""

    def __init__(self, work: Callable[[int], int], workers: int) -> None:
        """Prepare `workers` processes that do `work(task)`, which they import by name."""
        self.work, self.workers = work, workers
        self.processes: dict[Connection, BaseProcess] = {}
        self.tasks: dict[Connection, int] = {}  # under way
        self.ready: set[Connection] = set()  # processes that have started

    @property
    def free(self) -> bool:
        """Say whether a task can begin at once."""
        return self.busy < self.workers

    @property
    def busy(self) -> int:
        """Count the tasks under way."""
        return len(self.tasks)

    def __enter__(self) -> WorkerPool:
        """Get ready; a process starts with its first task."""
        return self

    def __exit__(self, *details: object) -> None:
        """Stop all processes, also in the middle of a task."""
        for process in self.processes.values():
            process.terminate()
        for connection, process in self.processes.items():
            process.join(5)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
            connection.close()

    def begin(self, task: int) -> None:
        """Give `task` to a free worker."""
        waiting = [connection for connection in self.processes if connection not in self.tasks]
        connection = waiting[0] if waiting else self._start()
        self.tasks[connection] = task
        connection.send(task)

    def wait(self) -> list[int]:
        """Wait until a task is done; return the results of all tasks that are done.

        Raises:
            DataError: a task failed, or its process died.
            OSError, MemoryError: a task met one.
        """
        results = []
        for connection in wait(list(self.tasks)):
            if not isinstance(connection, Connection):
                continue
            task = self.tasks.pop(connection)
            try:
                while (result := connection.recv()) == READY:
                    self.ready.add(connection)
            except (EOFError, OSError) as error:
                process = self.processes[connection]
                process.join(5)
                if connection not in self.ready:
                    raise DataError(
                        "a process that shall play could not start; what it says is above. A script that records needs "
                        'the line `if __name__ == "__main__":` before what it does, because each process imports the '
                        "script anew; or record with 1 worker, which needs no other process."
                    ) from error
                raise DataError(
                    f"the process that played episode {task} died (exit code {process.exitcode}). Finished episodes "
                    "are kept; run the same command again to continue, with fewer workers if memory ran out."
                ) from error
            if isinstance(result, int):
                results.append(result)
            else:
                raise result
        return results

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")  # fork would copy threads and game libraries in mid-flight
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.work), daemon=True)
        with _environment():  # numpy reads it when the process imports it, which is before any code of ours runs
            process.start()
        theirs.close()
        self.processes[ours] = process
        return ours


def _serve(connection: Connection, work: Callable[[int], int]) -> None:
    """Work in a process of its own until it is told to stop."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's, which then stops us
    signal.signal(signal.SIGTERM, _leave)
    try:
        connection.send(READY)
        while True:
            connection.send(_attempt(work, connection.recv()))
    except (EOFError, OSError):
        pass  # the parent is gone


def _attempt(work: Callable[[int], int], task: int) -> Any:
    try:
        return work(task)
    except (OSError, MemoryError) as error:
        return error
    except Exception as error:
        words = str(error) if isinstance(error, WorldsimError) else f"{type(error).__name__}: {error}"
        found = DataError(f"{words} Finished episodes are kept.")
        if os.environ.get("WORLDSIM_TRACEBACK"):
            found.add_note(traceback.format_exc())
        return found


def _leave(number: int, frame: object) -> None:
    sys.exit(0)  # an exception, so that games are closed and their folders removed
