"""Real hosts of tiny real worlds in processes of their own, and what a client of one must see."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from forks import Forked

from worldsim.bridges.client import RemoteEngine
from worldsim.bridges.conformance.checks import Result
from worldsim.engine.records import SessionSpec

START = 120.0  # seconds that a host may take to load


class HostProcess:
    """A `worldsim serve` that was started, and is killed at the end."""

    def __init__(
        self, worlds: Sequence[Path | str], folder: Path, port: int = 0, *words: str, afresh: bool = False
    ) -> None:
        """Start one, and wait until it serves; its log and its checkpoints are in `folder`.

        Where forks are safe it is one of a process that has imported all that a host needs, but `afresh`.
        """
        folder.mkdir(exist_ok=True)
        self.log = folder / "host.log"
        words = ("serve", "--worlds", *map(str, worlds), "--port", str(port), *words)
        words += ("--checkpoints", str(folder / "sessions"), "--threads", "1", "--runtime", "eager")
        self.process: subprocess.Popen[bytes] | Forked
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            begin = log.tell()
            if afresh or sys.platform != "linux":
                command = [sys.executable, "-m", "worldsim.cli", *words]
                self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            else:
                self.process = Forked(words, self.log, environment)
        end = time.monotonic() + START
        while b'"serving"' not in (said := self.log.read_bytes()[begin:]):
            if self.process.poll() is not None or time.monotonic() > end:
                self.process.kill()
                raise RuntimeError(f"the host does not serve:\n{said.decode()}")
            time.sleep(0.02)
        line = next(line for line in said.decode().splitlines() if '"serving"' in line)
        self.address = line.split('"address": "')[1].split('"')[0]
        self.port = int(self.address.rsplit(":", 1)[1])

    def kill(self, how: int = signal.SIGKILL) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(30)


@contextmanager
def hosting(worlds: Sequence[Path | str], folder: Path, *words: str, afresh: bool = False) -> Iterator[HostProcess]:
    """A host for a while."""
    host = HostProcess(worlds, folder, 0, *words, afresh=afresh)
    try:
        yield host
    finally:
        host.kill()


def drive(count: int, seed: int = 0) -> list[int]:
    """Actions for the tiny world (Discrete(2)): a plain rule, which every language can follow too.

    x starts at `seed`; for each action x = (1103515245 x + 12345) mod 2^31, and the action is bit 16 of x.
    """
    actions, x = [], seed
    for _ in range(count):
        x = (1103515245 * x + 12345) % 2**31
        actions.append(x >> 16 & 1)
    return actions


def reference(address: str, seed: int, actions: Sequence[Any], prompt: str = "a cart") -> list[str]:
    """SHA-256 of the first frame of a session and of each after an action, as the Python client sees them."""
    engine = RemoteEngine(address)
    try:
        number = engine.open_all([SessionSpec(seed=seed, prompt=prompt)])[0]
        hashes = [digest(engine.sessions[number].frame)]
        for action in actions:
            hashes.append(digest(engine.step({number: action})[number].frame))
        return hashes
    finally:
        engine.close()


def digest(frame: np.ndarray) -> str:
    """SHA-256 of a frame's bytes."""
    return hashlib.sha256(frame.tobytes()).hexdigest()


def failed(results: Sequence[Result]) -> dict[str, str]:
    """What did not pass, and why."""
    return {result.name: result.detail for result in results if result.ok is False}
