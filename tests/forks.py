"""Processes of the command line that need not import torch again: forks of one that has imported everything.

A process that loads a world imports for six seconds of a core, most of it torch and diffusers. Each worker of the tests
keeps one process that has done so and forks what is asked for: a process of its own with its own environment, files,
threads and end, as one that was started. The shared host in conftest.py starts from nothing.
"""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Forked:
    """A forked `worldsim WORDS`; the part of `subprocess.Popen` that tests use."""

    def __init__(self, words: Sequence[str], log: Path, environment: dict[str, str]) -> None:
        """Begin one, which adds what it says to `log`."""
        self.returncode: int | None = None
        self.pid = _ask({"words": list(words), "log": str(log.absolute()), "folder": os.getcwd(), "env": environment})

    def poll(self) -> int | None:
        """Its exit status, if it has ended. Until this says so, the process id is no one else's."""
        if self.returncode is None:
            self.returncode = _ask({"pid": self.pid})
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Wait for its end."""
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.01)
        return code

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it lives."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it at once."""
        self.send_signal(9)


_one_at_a_time = threading.Lock()


@functools.cache
def _server() -> subprocess.Popen[str]:
    command = [sys.executable, __file__]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    atexit.register(_end, process)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.close()
    process.wait(30)
    process.stdout.close()


def _ask(what: dict[str, Any]) -> Any:
    with _one_at_a_time:
        process = _server()
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps(what) + "\n")
        process.stdin.flush()
        return json.loads(process.stdout.readline())


def _serve() -> None:
    """Fork as is asked for, and say how forks ended, until the worker ends."""
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC  # noqa: F401

    import worldsim.bridges.host.serve  # noqa: F401
    from worldsim.cli import main

    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("an import has begun a thread: forks would lack it")
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        if "words" not in asked:
            pid, status = os.waitpid(asked["pid"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif not (answer := os.fork()):
            _become(asked)
            raise SystemExit(main(asked["words"]))
        print(json.dumps(answer), flush=True)


def _become(asked: dict[str, Any]) -> None:
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.argv = ["worldsim", *asked["words"]]
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(asked["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for old, new in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(old, new)
    os.close(nothing)
    os.close(log)


if __name__ == "__main__":
    sys.path[0] = ""  # as of `python -m`
    _serve()
