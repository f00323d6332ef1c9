"""Has files of checkpoints written through to the disk, at a pace, in a thread of its own: an fsync may take long."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("worldsim.host")


class Syncer:
    """Syncs folders with their files every so many seconds.

    Args:
        every: seconds between two rounds.
    """

    def __init__(self, every: float) -> None:
        """Begin without folders; the thread starts with the first."""
        self.every = every
        self._waiting: dict[Path, Callable[[], None] | None] = {}
        self._lock, self._stopped = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._failing = False

    def ask(self, folder: Path, then: Callable[[], None] | None = None) -> None:
        """Sync a folder in the next round, and then call something, in the thread; a later call replaces an earlier."""
        with self._lock:
            self._waiting[folder] = then or self._waiting.get(folder)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="worldsim-fsync", daemon=True)
                self._thread.start()

    def forget(self, folder: Path) -> None:
        """Do not sync a folder that is removed."""
        with self._lock:
            self._waiting.pop(folder, None)

    def close(self) -> None:
        """Sync what waits, and end the thread."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        while not self._stopped.wait(self.every):
            self._round()
        self._round()

    def _round(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, {}
        for folder, then in waiting.items():
            try:
                sync(folder)
                self._failing = False
            except FileNotFoundError:
                continue  # its session has ended
            except OSError as error:
                if not self._failing:
                    log.warning("not synced", extra={"fields": {"folder": folder.name[:8], "error": str(error)}})
                self._failing = True
                continue
            if then is not None:
                with contextlib.suppress(OSError):
                    then()


def sync(folder: Path) -> None:
    """Write a folder and its files through to the disk.

    Raises:
        OSError: it cannot be done.
    """
    for path in [*(path for path in folder.iterdir() if path.is_file()), folder]:
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
