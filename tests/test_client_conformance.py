"""The checks of clients: what our client does on bad days, and that careless clients are found out."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hosting import drive, failed

from worldsim.bridges import messages, protocol
from worldsim.bridges.client import RemoteEngine
from worldsim.bridges.client.connection import ConnectionConfig
from worldsim.bridges.conformance.check_client import check_client
from worldsim.bridges.conformance.checks import Result
from worldsim.bridges.conformance.troubles import TROUBLES
from worldsim.engine.records import SessionSpec

QUICK = ConnectionConfig(timeout=0.3, patience=8.0)
FRAMES = 10
Run = Callable[[str], None]


def play(address: str) -> None:
    """What a client under test does, with the Python client."""
    engine = RemoteEngine(address, config=QUICK)
    try:
        number = engine.open_all([SessionSpec(seed=1, prompt="a cart")])[0]
        for action in drive(FRAMES):
            engine.step({number: action})
    finally:
        engine.close()


def all_troubles(run: Run) -> list[Result]:
    """All checks at a time: they mostly wait."""
    with ThreadPoolExecutor(len(TROUBLES)) as pool:
        one = lambda name: check_client(run, FRAMES, only=[name], patience=20, report=print)  # noqa: E731
        return [result for results in pool.map(one, TROUBLES) for result in results]


def test_our_client() -> None:
    results = all_troubles(play)
    assert failed(results) == {} and len(results) == len(TROUBLES)


SCRIPT = """
import sys
from worldsim.bridges.client import RemoteEngine
from worldsim.bridges.client.connection import ConnectionConfig
from worldsim.engine.records import SessionSpec

engine = RemoteEngine(sys.argv[1], config=ConnectionConfig(timeout=0.5, patience=20))
number = engine.open_all([SessionSpec(seed=1)])[0]
for i in range(int(sys.argv[2])):
    engine.step({number: i % 2})
engine.close()
"""


def test_the_command_for_clients(tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text(SCRIPT)
    words = [
        sys.executable,
        "-m",
        "worldsim.bridges.conformance.check_client",
        "--only",
        "lost-step",
        "--only",
        "error",
        "--",
    ]
    client = [sys.executable, str(script), "{address}", "{frames}"]
    said = subprocess.run([*words, *client], capture_output=True, text=True, timeout=100)
    lines = said.stdout.splitlines()
    assert said.returncode == 0 and lines[-1] == "2 ok, 0 failed", said
    assert lines[0].endswith("(12 steps)") and "it ended with 1" in lines[1] and "made up." in lines[1]
    said = subprocess.run([*words, sys.executable, "-c", "1"], capture_output=True, text=True, timeout=100)
    assert said.returncode == 1 and "expected a hello; came none" in said.stdout


FRAME = np.zeros((40, 56, 3), np.uint8)


class Careless:
    """A client in a few lines, which does everything right as long as nothing goes wrong; habits make it worse.

    Args:
        habits: what it does wrong; see where they are asked for.
    """

    def __init__(self, *habits: str) -> None:
        self.habits = habits

    def __call__(self, address: str) -> None:
        self.address, self.number, self.context = address, 1000, zmq.Context()
        self.token = "always-me" if "one-token" in self.habits else secrets.token_hex(8)
        try:
            self.connect()
            if "no-hello" not in self.habits:
                self.hello()
            opened = self.ask("open", seed=1)
            token, step = opened["session"], opened["step"]
            for i in range(FRAMES - ("one-frame-less" in self.habits)):
                action = 2 if "wrong-action" in self.habits else i % 2
                reply = self.ask("step", session=token, step=step + ("wrong-step" in self.habits), action=action)
                step = step + 1 if "counts-on" in self.habits else reply.get("step", step + 1)
            self.ask("close", session=token)
        finally:
            self.context.destroy(linger=0)

    def connect(self) -> None:
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.connect(self.address)

    def hello(self) -> None:
        if "new-token" in self.habits:
            self.token = secrets.token_hex(8)
        self.ask("hello", client=self.token)

    def ask(self, verb: str, **fields: Any) -> dict[str, Any]:
        self.number += 0 if "no-id" in self.habits else -1 if "falling-id" in self.habits else 1
        header = {"v": 1, "id": self.number, "verb": verb, **fields}
        for _ in range(300):
            self.socket.send(json.dumps(header).encode())
            reply = self.wait(header["id"])
            if reply is None:
                if "no-retry" in self.habits:
                    raise TimeoutError
                if "new-id" in self.habits:
                    self.number += 1
                    header["id"] = self.number
                self.socket.close(linger=0)
                self.connect()
                if verb != "hello":
                    self.hello()
                continue
            if "strict-fields" in self.habits and "colour" in reply:
                raise ValueError("an unknown field")
            code = reply.get("error", {}).get("code")
            if code == "hello-first" and "no-greeting-again" not in self.habits:
                self.hello()
            elif code in ("too-fast", "stopping"):
                time.sleep(0.001 if "no-pause" in self.habits else reply["error"].get("wait", 0.1))
            elif code is None or "goes-on" in self.habits:
                return reply
            else:
                raise ValueError(code)
        raise TimeoutError

    def wait(self, number: int) -> dict[str, Any] | None:
        end = time.monotonic() + 0.35
        while (left := end - time.monotonic()) > 0 and self.socket.poll(int(1000 * left)):
            message = messages.unpack(self.socket.recv_multipart())
            if "fixed-size" in self.habits and message.buffers.get("frame", FRAME).shape != FRAME.shape:
                time.sleep(3)  # it hangs
                raise ValueError("a frame of another size")
            push = message.header["verb"] in protocol.PUSHES
            if message.header["id"] == number and (not push or "any-reply" in self.habits):
                return message.header
            if "any-id" in self.habits and not push:
                return message.header
        return None


def test_a_careful_client() -> None:
    assert failed(all_troubles(lambda address: Careless()(address))) == {}


CARELESS: list[tuple[tuple[str, ...], str, str]] = [
    (("one-frame-less",), "plain", f"expected {FRAMES} steps"),
    (("wrong-step",), "plain", "but the session has 1"),
    (("wrong-action",), "plain", "expected an action that is 0 or 1"),
    (("no-id",), "plain", "again with another body"),
    (("falling-id",), "plain", "expected a higher one"),
    (("no-hello",), "plain", "before hello"),
    (("strict-fields",), "unknown-field", "an unknown field"),
    (("no-retry",), "lost-hello", "TimeoutError"),
    (("new-id",), "lost-open", "a second session was opened"),
    (("new-id",), "lost-step", "had no reply yet"),
    (("no-retry",), "lost-step", "TimeoutError"),
    (("new-token",), "lost-twice", "another client token"),
    (("any-id",), "late-and-twice", "had no reply yet"),
    (("no-greeting-again",), "hello-first", "hello-first"),
    (("new-token",), "hello-first", "another client token"),
    (("no-pause",), "too-fast", "asked again after 0.0"),
    (("no-pause",), "stopping", "asked 100 times"),
    (("goes-on", "counts-on"), "error", "but the session has 3"),
    (("any-reply",), "push-frame", "had no reply yet"),
    (("any-reply",), "push-bye", "had no reply yet"),
    (("fixed-size",), "other-size", "silence for"),
    (("no-retry",), "restart", "TimeoutError"),
]


@pytest.mark.parametrize(
    ("habits", "check", "words"), CARELESS, ids=[f"{'+'.join(habits)}-{check}" for habits, check, _ in CARELESS]
)
def test_a_careless_client_fails(habits: tuple[str, ...], check: str, words: str) -> None:
    found = failed(check_client(Careless(*habits), FRAMES, only=[check], patience=1.0))
    assert words in found.get(check, ""), found


def test_every_check_of_clients_is_seen_to_fail() -> None:
    assert {check for _, check, _ in CARELESS} == set(TROUBLES)


def test_a_client_with_one_token_for_all_its_runs_fails() -> None:
    results = check_client(Careless("one-token"), FRAMES, only=["plain", "unknown-field"])
    assert "the same as in the run before" in failed(results)["unknown-field"]
