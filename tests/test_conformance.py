"""The checks for authors of hosts: our host passes, and broken ones fail."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from broken_hosts import (
    Endless,
    Generous,
    Held,
    IgnoresClose,
    IgnoresDrop,
    IgnoresInput,
    IgnoresPrompt,
    IgnoresUnwatch,
    Keeps,
    NewHost,
    NoEnvelope,
    NoOrder,
    NoPause,
    NoRefusals,
    NoTurns,
    NoWorlds,
    Nulls,
    Roomy,
    SlowClock,
    Uncounted,
    Unlimited,
    Unseeded,
)
from hosting import HostProcess, failed, hosting
from proxies import (
    AnyHeader,
    ForgetsWhoAsked,
    Greets,
    Lenient,
    Master,
    MoreFields,
    Noise,
    OddCodes,
    Proxy,
    Small,
    StepsAnew,
    Strangers,
    WrongSteps,
)

from worldsim.bridges import protocol
from worldsim.bridges.client import RemoteEngine
from worldsim.bridges.conformance.check_client import check_client
from worldsim.bridges.conformance.check_host import CHECKS, check_host
from worldsim.bridges.conformance.checks import reply_faults
from worldsim.bridges.messages import Message
from worldsim.engine.records import SessionSpec
from worldsim.errors import SnapshotMismatch

STEPS = 6  # of an episode in the second world
NEEDS_LIMITS = {"bad-prompt", "unsupported", "two-worlds", "episode", "lease", "full", "snapshots-full", "too-fast"}
"""Checks that a host with one world and large limits skips."""

KNOWN: set[str] = set()
"""Checks that our own host does not pass yet."""


# Our host.


@pytest.fixture(scope="module")
def strict_host(world_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host of two worlds with small limits: all checks have something to do."""
    folder = tmp_path_factory.mktemp("strict")
    other = folder / "silent"
    shutil.copytree(world_path, other)
    card = json.loads((other / "world.json").read_text())
    card |= {"name": "silent", "text_encoder": None, "prompts": [], "episode_steps": STEPS}
    (other / "world.json").write_text(json.dumps(card))
    limits = ("--lease", "2", "--sessions", "8", "--snapshots", "3", "--rate", "300", "--no-shared")
    with hosting([world_path, other], folder / "host", *limits) as process:
        yield process


def test_our_host(host: HostProcess) -> None:
    results = check_host(host.address, report=print)
    assert set(failed(results)) == KNOWN - NEEDS_LIMITS
    assert {result.name for result in results if result.ok is None} == NEEDS_LIMITS
    assert {result.name for result in results} == {"hello", *CHECKS, "declared"}


def test_our_host_with_small_limits(strict_host: HostProcess) -> None:
    results = check_host(strict_host.address, only=[*sorted(NEEDS_LIMITS), "bad-values"], report=print)
    assert set(failed(results)) == KNOWN & NEEDS_LIMITS
    assert all(result.ok is not None for result in results)


def test_the_command_for_hosts(host: HostProcess) -> None:
    words = [
        sys.executable,
        "-m",
        "worldsim.bridges.conformance.check_host",
        host.address,
        "--only",
        "open-step",
        "lease",
    ]
    said = subprocess.run(words, capture_output=True, text=True, timeout=60)
    lines = said.stdout.splitlines()
    assert said.returncode == 0 and lines[-1] == "3 ok, 0 failed, 1 skipped"
    assert lines[1].startswith("ok      open-step: ") and lines[2].startswith("skipped lease: the lease is 300 s")
    words[3:] = ["tcp://127.0.0.1:1", "--patience", "0.2"]
    said = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert said.returncode == 1 and "FAILED  hello: " in said.stdout and "none within 0.2 s" in said.stdout


def test_unknown_checks() -> None:
    with pytest.raises(ValueError, match="no checks called"):
        check_host("tcp://127.0.0.1:1", only=["nothing"])
    with pytest.raises(ValueError, match="no checks called"):
        check_client(["true"], only=["nothing"])
    with pytest.raises(ValueError, match="at least 8"):
        check_client(["true"], frames=3)


# Every check can fail: a real host behind something that breaks one thing.


BROKEN: list[tuple[type[Proxy], str, str]] = [
    (NoWorlds, "hello", "frame_size"),
    (Greets, "hello-first", "expected hello-first"),
    (NewHost, "greeting-again", "came another"),
    (AnyHeader, "wrong-version", "expected wrong-version"),
    (AnyHeader, "unknown-verb", "expected unknown-verb"),
    (AnyHeader, "bad-id", "expected bad-field"),
    (AnyHeader, "bad-message", "expected bad-message"),
    (Lenient, "unknown-field", "'colour': 1"),
    (Lenient, "missing-field", "expected bad-field"),
    (Lenient, "bad-values", "expected bad-field"),
    (Nulls, "null-field", "expected open to be granted"),
    (Unlimited, "large-header", "expected too-large"),
    (Unlimited, "large-message", "expected too-large"),
    (Unlimited, "bad-buffer", "expected bad-buffer"),
    (NoRefusals, "no-world", "expected no-world"),
    (NoRefusals, "bad-action", "expected bad-action"),
    (NoRefusals, "bad-start", "expected bad-start"),
    (NoRefusals, "no-session", "expected no-session"),
    (OddCodes, "no-world", "expected no-world"),
    (WrongSteps, "open-step", "expected step"),
    (Small, "open-step", "expected a raw frame"),
    (Unseeded, "replay", "the same frames"),
    (Noise, "replay", "the same frames"),
    (Unseeded, "reset", "frame"),
    (IgnoresPrompt, "prompt", "expected the prompt"),
    (IgnoresDrop, "snapshot", "expected no-snapshot"),
    (Noise, "snapshot", "the frame of the snapshot"),
    (Master, "snapshot-owner", "expected not-allowed"),
    (Noise, "fork", "the same last frame"),
    (Noise, "render", "the same frame as raw"),
    (IgnoresClose, "close", "expected no-session"),
    (Unseeded, "batch", "the first frames of open_batch"),
    (NoEnvelope, "req-socket", "came none within"),
    (StepsAnew, "repeat-step", "expected the first reply again"),
    (ForgetsWhoAsked, "repeat-batch", "expected"),
    (ForgetsWhoAsked, "repeat-open", "expected the first reply again"),
    (Noise, "repeat-restore", "expected the same frame"),
    (NoOrder, "out-of-order", "expected out-of-order"),
    (NoOrder, "reordering", "expected out-of-order"),
    (Strangers, "reconnect", "expected"),
    (Master, "watch-token", "expected not-allowed"),
    (Generous, "watch", "expected 3 frames for 3 credits"),
    (Uncounted, "watch", "dropped after"),
    (IgnoresUnwatch, "watch", "no frames after unwatch"),
    (NoTurns, "share-turns", "expected"),
    (Master, "share-turns", "expected not-allowed"),
    (IgnoresInput, "share-split", "expected the frame of"),
    (IgnoresInput, "run", "expected the frame of"),
    (SlowClock, "run", "frames a second"),
    (NoPause, "run", "no frame after pause"),
    (Held, "slow-reader", "meanwhile"),
    (OddCodes, "odd-clips", "expected bad-start"),
    (OddCodes, "odd-guidance", "expected"),
    (NoRefusals, "batch-shared", "expected not-allowed"),
    (ForgetsWhoAsked, "repeat-watch", "expected 2 frames"),
    (ForgetsWhoAsked, "repeat-share", "expected the token"),
    (ForgetsWhoAsked, "repeat-snapshot", "expected the first reply again"),
    (ForgetsWhoAsked, "late", "expected out-of-order"),
]
STRICT: list[tuple[type[Proxy], str, str]] = [
    (OddCodes, "bad-prompt", "expected bad-prompt"),
    (NoRefusals, "unsupported", "expected unsupported"),
    (NoRefusals, "two-worlds", "expected bad-field"),
    (Endless, "episode", "expected truncated"),
    (Keeps, "lease", "expected no-session"),
    (Roomy, "full", "expected full"),
    (Roomy, "snapshots-full", "expected no-snapshot"),
    (Roomy, "too-fast", "expected too-fast"),
]


def broken_hosts(cases: Sequence[tuple[type[Proxy], str, str]]) -> list[Any]:
    """As parameters; those that take their time are slow tests."""
    slow = (Held, IgnoresUnwatch, Keeps, NoPause, SlowClock)
    return [
        pytest.param(*case, id=f"{case[0].__name__}-{case[1]}", marks=[pytest.mark.slow] if case[0] in slow else [])
        for case in cases
    ]


@pytest.mark.parametrize(("proxy", "check", "words"), broken_hosts(BROKEN))
def test_a_broken_host_fails(host: HostProcess, proxy: type[Proxy], check: str, words: str) -> None:
    with proxy(host.address) as broken:
        found = failed(check_host(broken.address, only=[] if check == "hello" else [check], patience=1.0))
    assert words in found.get(check, ""), found


def test_the_proxy_alone_breaks_nothing(host: HostProcess) -> None:
    with Proxy(host.address) as honest:
        assert failed(check_host(honest.address, only=["open-step", "reconnect", "bad-buffer"])) == {}


@pytest.mark.parametrize(("proxy", "check", "words"), broken_hosts(STRICT))
def test_a_broken_host_with_small_limits_fails(
    strict_host: HostProcess, proxy: type[Proxy], check: str, words: str
) -> None:
    with proxy(strict_host.address) as broken:
        found = failed(check_host(broken.address, only=[check], patience=1.0))
    assert words in found.get(check, ""), found


def test_every_check_of_hosts_is_seen_to_fail() -> None:
    assert {check for _, check, _ in BROKEN + STRICT} == {"hello", *CHECKS}


@pytest.mark.parametrize("proxy", [MoreFields, OddCodes])
def test_undeclared_replies_are_found(host: HostProcess, proxy: type[Proxy]) -> None:
    with proxy(host.address) as broken:
        assert "declared" in failed(check_host(broken.address, only=["out-of-order"], patience=1.0))


def test_what_is_declared() -> None:
    good = {"v": 1, "id": 1, "verb": "snapshot", "snapshot": "0123456789", "step": 1}
    error = {"v": 1, "id": None, "verb": None, "error": {"code": "too-fast", "message": "m", "wait": 0.1}}
    assert reply_faults(Message(good)) == reply_faults(Message(error)) == []
    for wrong in ({"v": 2}, {"id": "1"}, {"verb": "jump"}, {"step": -1}, {"step": None}, {"colour": 1},
                  {"error": {"code": "oops", "message": ""}}, {"error": "oops"},
                  {"error": {"code": "failed", "message": ""}}):  # fmt: skip
        assert reply_faults(Message(good | wrong)), wrong
    assert reply_faults(Message(error | {"error": {"code": "too-fast", "message": "no wait"}}))
    assert reply_faults(Message(good, {"frame": np.zeros((2, 2, 3), np.uint8)}))


@pytest.mark.slow
def test_a_damaged_snapshot(world_path: Path, tmp_path: Path) -> None:
    """bad-snapshot: the one code that needs a host to be killed first."""
    host = HostProcess([world_path], tmp_path, 0)
    engine = RemoteEngine(host.address)
    number = engine.open_all([SessionSpec(seed=1)])[0]
    kept = engine.snapshot(number)
    host.kill(signal.SIGKILL)
    (path,) = (tmp_path / "sessions" / "snapshots").glob("*.session")
    path.write_bytes(path.read_bytes()[:-100])
    again = HostProcess([world_path], tmp_path, host.port, "--resume")
    try:
        call = engine.connection.call
        session = engine.sessions[number].token
        with pytest.raises(SnapshotMismatch):  # which the client makes of bad-snapshot
            call("restore", session=session, snapshot=kept.token)
        with pytest.raises(SnapshotMismatch):
            call("open", snapshot=kept.token)
        engine.step({number: 1})
    finally:
        engine.close()
        again.kill()


# Every code.

NEVER = {
    "no-room": "a full disk; tests/test_host_disk.py has one",
    "failed": "it would be a fault of the host; `declared` fails if it comes",
    "stopping": "hosts say so for the moment that they take to stop; check_client says it to clients",
}
ELSEWHERE = {"bad-snapshot"}  # test_a_damaged_snapshot


def test_every_error_is_provoked() -> None:
    """Each code is in the source of a check, or told of here."""
    folder = Path(check_host.__code__.co_filename).with_name("host_checks")
    source = "".join(path.read_text() for path in folder.glob("*.py"))
    provoked = {code for code in protocol.ERRORS if f'"{code}"' in source}
    assert set(protocol.ERRORS) - provoked - ELSEWHERE == set(NEVER)
