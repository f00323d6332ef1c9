"""The checks for authors of hosts and clients: ours pass, and broken ones fail.

Past 400 lines, because every broken host and client stands beside the check that must find it.
"""

from __future__ import annotations

import itertools
import json
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from hosting import HostProcess, drive, hosting

from worldsim.bridges import messages, protocol
from worldsim.bridges.check_client import check_client
from worldsim.bridges.check_host import CHECKS, check_host
from worldsim.bridges.checks import Result, reply_faults
from worldsim.bridges.client import RemoteEngine
from worldsim.bridges.client_troubles import TROUBLES
from worldsim.bridges.connection import ConnectionConfig
from worldsim.bridges.messages import Message
from worldsim.engine.records import Opening
from worldsim.errors import SnapshotMismatch

Parts = list[bytes]
STEPS = 6  # of an episode in the second world
NEEDS_LIMITS = {"bad-prompt", "unsupported", "two-worlds", "episode", "lease", "full", "snapshots-full", "too-fast"}
"""Checks that a host with one world and large limits skips."""

KNOWN: set[str] = set()
"""Checks that our own host does not pass yet."""


def failed(results: Sequence[Result]) -> dict[str, str]:
    return {result.name: result.detail for result in results if result.ok is False}


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
    results = check_host(host.address, tell=print)
    assert set(failed(results)) == KNOWN - NEEDS_LIMITS
    assert {result.name for result in results if result.ok is None} == NEEDS_LIMITS
    assert {result.name for result in results} == {"hello", *CHECKS, "declared"}


def test_our_host_with_small_limits(strict_host: HostProcess) -> None:
    results = check_host(strict_host.address, only=[*sorted(NEEDS_LIMITS), "bad-values"], tell=print)
    assert set(failed(results)) == KNOWN & NEEDS_LIMITS
    assert all(result.ok is not None for result in results)


def test_the_command_for_hosts(host: HostProcess) -> None:
    words = [sys.executable, "-m", "worldsim.bridges.check_host", host.address, "--only", "open-step", "lease"]
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


class Proxy(threading.Thread):
    """Stands before a host and passes messages on, both ways; a subclass breaks something."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.context, self.host = zmq.Context(), address
        self.front = self.context.socket(zmq.ROUTER)
        self.front.bind("tcp://127.0.0.1:*")
        self.address = self.front.getsockopt_string(zmq.LAST_ENDPOINT)
        self.backs: dict[bytes, zmq.Socket] = {}
        self.asked: dict[int, dict[str, Any]] = {}
        self.done = threading.Event()

    def __enter__(self) -> Proxy:
        self.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self.done.set()
        self.join(10)
        self.context.destroy(linger=0)

    def run(self) -> None:
        poller = zmq.Poller()
        poller.register(self.front, zmq.POLLIN)
        while not self.done.is_set():
            for socket, _ in poller.poll(20):
                assert isinstance(socket, zmq.Socket)
                if socket is self.front:
                    peer, *parts = self.front.recv_multipart()
                    if peer not in self.backs:
                        self.backs[peer] = self.context.socket(zmq.DEALER)
                        self.backs[peer].connect(self.host)
                        poller.register(self.backs[peer], zmq.POLLIN)
                    self.take(peer, parts)
                else:
                    peer = next(peer for peer, back in self.backs.items() if back is socket)
                    parts = socket.recv_multipart()
                    header = json.loads(parts[0])
                    self.front.send_multipart([peer, *self.reply(peer, header, parts[1:])])

    def take(self, peer: bytes, parts: Parts) -> None:
        """A request, which may be none."""
        try:
            header = json.loads(parts[0])
            self.asked[header["id"]] = dict(header)
        except (ValueError, TypeError, KeyError):
            self.backs[peer].send_multipart(parts)
            return
        for whole in self.request(peer, header, parts[1:]):
            self.backs[peer].send_multipart(whole)

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        """What goes on to the host."""
        return [[json.dumps(header).encode(), *rest]]

    def reply(self, peer: bytes, header: dict[str, Any], rest: Parts) -> Parts:
        """What goes back."""
        return [json.dumps(self.change(header)).encode(), *rest]

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        """The same for the header alone."""
        return header

    def say(self, peer: bytes, header: dict[str, Any], **fields: Any) -> None:
        """Answer in place of the host."""
        said = {"v": 1, "id": header["id"], "verb": header["verb"], **fields}
        self.front.send_multipart([peer, json.dumps(said).encode()])


class StepsAnew(Proxy):
    """A step that comes again is done again: under a new id, with the number that the host wants."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.steps: dict[str, int] = {}
        self.real: dict[int, int] = {}

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        if header["verb"] == "step" and header["id"] in self.real.values():
            number = 10**9 + len(self.real)
            self.real[number] = header["id"]
            header |= {"id": number, "step": self.steps.get(header["session"], header["step"])}
        elif header["verb"] == "step":
            self.real[header["id"]] = header["id"]
        return super().request(peer, header, rest)

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        if header["id"] in self.real:
            header["id"] = self.real[header["id"]]
        if header["verb"] == "step" and "step" in header:
            self.steps[self.asked[header["id"]]["session"]] = header["step"]
        return header


class ForgetsWhoAsked(Proxy):
    """The number of a request is changed each time, so that nothing is known by it again."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.real: dict[int, int] = {}

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        number = 10**9 + len(self.real)
        self.real[number] = header["id"]
        return super().request(peer, header | {"id": number}, rest)

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | {"id": self.real.get(header["id"], header["id"])}


class WrongSteps(Proxy):
    """The number in a step's reply is that before it."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | ({"step": header["step"] - 1} if header["verb"] == "step" and "step" in header else {})


class Noise(Proxy):
    """A pixel of each frame is anything."""

    def reply(self, peer: bytes, header: dict[str, Any], rest: Parts) -> Parts:
        return super().reply(peer, header, [secrets.token_bytes(3) + part[3:] for part in rest])


class Small(Proxy):
    """Frames are described as of another shape."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        for buffer in header.get("buffers", ()):
            if buffer.get("encoding") == "raw":
                buffer["shape"] = [buffer["shape"][0] * 2, buffer["shape"][1] // 2, *buffer["shape"][2:]]
        return header


class MoreFields(Proxy):
    """Replies with a field that is not declared."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | {"colour": "blue"}


class OddCodes(Proxy):
    """Errors of a code that there is not."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | ({"error": {"code": "oops", "message": "oops"}} if "error" in header else {})


class Lenient(Proxy):
    """What a verb does not declare is left out, what is missing or wrong is made up."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        declared = protocol.VERBS.get(str(header.get("verb")))
        for field in declared.request if declared else ():
            value = header.get(field.name)
            if value is not None and not protocol.KINDS[field.kind][1](value):
                del header[field.name]
            if header.get(field.name) is None and field.name == "credits":
                header["credits"] = 1
        names = {field.name for field in declared.request} if declared else set(header)
        header = {k: v for k, v in header.items() if k in {"v", "id", "verb", "buffers"} | names and v is not None}
        return super().request(peer, header, rest)


class AnyHeader(Proxy):
    """Another version is taken for this one, an unknown verb for stats, any id and any JSON for a request."""

    def take(self, peer: bytes, parts: Parts) -> None:
        try:
            header = json.loads(parts[0])
        except (ValueError, RecursionError):
            header = {"id": None, "verb": "stats"}
        header = header if isinstance(header, dict) else {"id": None, "verb": "stats"}
        number = header.get("id")
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**63:
            self.say(peer, {"id": None, "verb": "stats"}, stats={})
            return
        if header.get("v") != 1 or str(header.get("verb")) not in protocol.VERBS:
            header |= {"v": 1, "verb": "stats"} if header.get("verb") != "hello" else {"v": 1}
            header = {k: v for k, v in header.items() if k in ("v", "id", "verb", "client")}
        super().take(peer, [json.dumps(header).encode(), *([] if header["verb"] == "stats" else parts[1:])])


class Greets(Proxy):
    """Says hello in the place of those who have not."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        hello = {"v": 1, "id": 2**62, "verb": "hello", "client": secrets.token_hex(8)}
        first = [] if header["verb"] == "hello" or peer in self.known else [[json.dumps(hello).encode()]]
        self.known.add(peer)
        return first + super().request(peer, header, rest)

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.known: set[bytes] = set()

    def reply(self, peer: bytes, header: dict[str, Any], rest: Parts) -> Parts:
        return super().reply(peer, header, rest)


class Strangers(Proxy):
    """Each connection is another client."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        return super().request(peer, header | ({"client": peer.hex() * 4} if header["verb"] == "hello" else {}), rest)


class Master(Proxy):
    """A token of a watcher or a player counts as the owner's, and each client as every other."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.owners: dict[str, str] = {}
        self.everybody = secrets.token_hex(8)

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        if "session" in header:
            header["session"] = self.owners.get(header["session"], header["session"])
        if header["verb"] == "hello":
            header["client"] = self.everybody
        return super().request(peer, header, rest)

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        if "watch" in header:
            self.owners[header["watch"]] = header["session"]
        if "player" in header:
            self.owners[header["player"]] = self.asked[header["id"]]["session"]
        return header


class Generous(Proxy):
    """A watcher gets credits that it did not ask for."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        return super().request(peer, header | ({"credits": 1000} if header["verb"] == "watch" else {}), rest)


class Uncounted(Proxy):
    """What a watcher misses is not counted."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | ({"dropped": 0} if header["verb"] == "frame" else {})


class SlowClock(Proxy):
    """The clock runs at a third of the pace."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        return super().request(peer, header | ({"fps": header["fps"] / 3} if "fps" in header else {}), rest)

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | ({"fps": self.asked[header["id"]]["fps"]} if header["verb"] == "run" else {})


class NoPause(Proxy):
    """The clock is not stopped by pause."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        return super().request(peer, header | ({"verb": "render"} if header["verb"] == "pause" else {}), rest)

    def reply(self, peer: bytes, header: dict[str, Any], rest: Parts) -> Parts:
        if self.asked.get(header["id"], {}).get("verb") != "pause" or "error" in header:
            return super().reply(peer, header, rest)
        said = {k: v for k, v in header.items() if k not in ("role", "world", "buffers")}
        return [json.dumps(said | {"verb": "pause"}).encode()]


class Held(Proxy):
    """A client that floods holds up all others."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        time.sleep(0.03 if header["verb"] == "render" else 0)
        return super().request(peer, header, rest)


class Ignores(Proxy):
    """A verb that is answered and not done."""

    verb, fields = "", {}

    def take(self, peer: bytes, parts: Parts) -> None:
        header = json.loads(parts[0])
        if header["verb"] == self.verb:
            self.say(peer, header, **self.fields)
        else:
            super().take(peer, parts)


class IgnoresClose(Ignores):
    """Sessions are not closed."""

    verb = "close"


class IgnoresDrop(Ignores):
    """Snapshots are not dropped."""

    verb = "drop"


class IgnoresInput(Ignores):
    """What is held is not."""

    verb, fields = "input", {"step": 1}


class IgnoresPrompt(Ignores):
    """Prompts have no effect."""

    verb, fields = "prompt", {"step": 1, "prompt": "a cart"}


class IgnoresUnwatch(Ignores):
    """Frames go on after unwatch."""

    verb = "unwatch"


class Unseeded(Proxy):
    """Seeds are those of other requests, in their order: chance might choose the same starts."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.seeds = itertools.count()

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        for one in (header, *header.get("openings", ())):
            if isinstance(one, dict) and isinstance(one.get("seed"), int):
                one["seed"] = next(self.seeds)
        return super().request(peer, header, rest)


class NoOrder(Proxy):
    """The number in a step is not looked at."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.steps: dict[str, int] = {}

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        if header["verb"] == "step":
            header["step"] = self.steps.get(header["session"], header["step"])
        return super().request(peer, header, rest)

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        token = header.get("session") or self.asked.get(header["id"], {}).get("session")
        if "step" in header and token:
            self.steps[token] = header["step"]
        return header


class Unlimited(Proxy):
    """Too large headers and messages, and buffers that do not fit, are taken for nothing."""

    def take(self, peer: bytes, parts: Parts) -> None:
        try:
            messages.unpack(parts)
        except Exception:
            self.say(peer, {"id": json.loads(parts[0]).get("id"), "verb": "stats"}, stats={})
            return
        parts = parts[:1] if sum(map(len, parts)) > 10**6 else parts
        if len(parts) == 1 and b'"buffers"' in parts[0]:
            header = json.loads(parts[0])
            header.pop("buffers")
            parts = [json.dumps(header).encode()]
        super().take(peer, parts)


class NoRefusals(Proxy):
    """What the host refuses of an action, a start, a world or a session is said to be done."""

    def reply(self, peer: bytes, header: dict[str, Any], rest: Parts) -> Parts:
        if "error" in header and header["error"]["code"] != "hello-first":
            del header["error"]
            header["step"] = 1
        return super().reply(peer, header, rest)


class NoTurns(Proxy):
    """A player's step is taken at any time: it is made the other's where it is refused."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        changed = {"every": 1000} if header["verb"] == "share" and header.get("mode") == "turns" else {}
        return super().request(peer, header | changed, rest)


class NoEnvelope(Proxy):
    """A REQ socket's empty part is not given back."""

    def take(self, peer: bytes, parts: Parts) -> None:
        super().take(peer, parts[1:] if not parts[0] else parts)


class Keeps(Proxy):
    """Leases never end."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.tokens: list[str] = []
        self.last = 0.0

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        if header["verb"] == "open" and "session" in header:
            self.tokens.append(header["session"])
        return header

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        sent = super().request(peer, header, rest)
        if header["verb"] in ("keep", "render"):
            keep = {"v": 1, "id": 2**60 + len(self.asked), "verb": "keep", "sessions": self.tokens[-3:]}
            sent.append([json.dumps(keep).encode()])
        return sent


class Roomy(Strangers):
    """Each request is another client's, so that nobody has too much."""

    def request(self, peer: bytes, header: dict[str, Any], rest: Parts) -> list[Parts]:
        hello = {"v": 1, "id": 2**62, "verb": "hello", "client": secrets.token_hex(8)}
        first = [] if header["verb"] == "hello" else [[json.dumps(hello).encode()]]
        return first + Proxy.request(self, peer, header, rest)


class Endless(Proxy):
    """Episodes have no end."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | ({"truncated": False} if "truncated" in header else {})


class NewHost(Proxy):
    """The host's name is another each time."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        return header | ({"host": secrets.token_hex(8)} if header["verb"] == "hello" else {})


class NoWorlds(Proxy):
    """Hello leaves out what clients need."""

    def change(self, header: dict[str, Any]) -> dict[str, Any]:
        for world in header.get("worlds", ()):
            del world["frame_size"]
        return header


class Nulls(Proxy):
    """A null counts as a value."""

    def take(self, peer: bytes, parts: Parts) -> None:
        header = json.loads(parts[0])
        if None in header.values():
            error = {"code": "bad-field", "message": "null"}
            self.say(peer, header, error=error)
        else:
            super().take(peer, parts)


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
    number = engine.open_all([Opening(seed=1)])[0]
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


# Our client.

QUICK = ConnectionConfig(timeout=0.3, patience=8.0)
FRAMES = 10
Run = Callable[[str], None]


def play(address: str) -> None:
    """What a client under test does, with the Python client."""
    engine = RemoteEngine(address, config=QUICK)
    try:
        number = engine.open_all([Opening(seed=1, prompt="a cart")])[0]
        for action in drive(FRAMES):
            engine.step({number: action})
    finally:
        engine.close()


def all_troubles(run: Run) -> list[Result]:
    """All checks at a time: they mostly wait."""
    with ThreadPoolExecutor(len(TROUBLES)) as pool:
        one = lambda name: check_client(run, FRAMES, only=[name], patience=20, tell=print)  # noqa: E731
        return [result for results in pool.map(one, TROUBLES) for result in results]


def test_our_client() -> None:
    results = all_troubles(play)
    assert failed(results) == {} and len(results) == len(TROUBLES)


SCRIPT = """
import sys
from worldsim.bridges.client import RemoteEngine
from worldsim.bridges.connection import ConnectionConfig
from worldsim.engine.records import Opening

engine = RemoteEngine(sys.argv[1], config=ConnectionConfig(timeout=0.5, patience=20))
number = engine.open_all([Opening(seed=1)])[0]
for i in range(int(sys.argv[2])):
    engine.step({number: i % 2})
engine.close()
"""


def test_the_command_for_clients(tmp_path: Path) -> None:
    script = tmp_path / "client.py"
    script.write_text(SCRIPT)
    words = [sys.executable, "-m", "worldsim.bridges.check_client", "--only", "lost-step", "--only", "error", "--"]
    client = [sys.executable, str(script), "{address}", "{frames}"]
    said = subprocess.run([*words, *client], capture_output=True, text=True, timeout=100)
    lines = said.stdout.splitlines()
    assert said.returncode == 0 and lines[-1] == "2 ok, 0 failed", said
    assert lines[0].endswith("(12 steps)") and "it ended with 1" in lines[1] and "made up." in lines[1]
    said = subprocess.run([*words, sys.executable, "-c", "1"], capture_output=True, text=True, timeout=100)
    assert said.returncode == 1 and "expected a hello; came none" in said.stdout


# Every check of clients can fail: a client with one bad habit.


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


# Every code.

NEVER = {
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
