"""A host from outside: who may come, what each may use, how it stops, what it tells."""

from __future__ import annotations

import io
import json
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import zmq
from hosting import HostProcess, digest, drive, hosting, reference

from worldsim import cli
from worldsim.bridges import messages
from worldsim.bridges.client import RemoteEngine
from worldsim.bridges.client.connection import Connection, ConnectionConfig
from worldsim.bridges.client.top import page
from worldsim.bridges.host.server import HostConfig, check_bind, ipc_address
from worldsim.bridges.keys import KeysConfig, make_keys
from worldsim.engine.records import SessionSpec
from worldsim.errors import BridgeError, ConfigError, EngineFull, ProtocolError, SessionError, SnapshotMismatch

QUICK = ConnectionConfig(timeout=0.5, patience=2.0)


def opened(connection: Connection, **fields: Any) -> dict[str, Any]:
    return connection.call("open", **({"seed": 1, "prompt": "a cart"} | fields)).header


def code(connection: Connection, verb: str, **fields: Any) -> str:
    with pytest.raises(ProtocolError) as caught:
        connection.call(verb, **fields)
    return caught.value.code


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def test_ipc(host: HostProcess) -> None:
    engine = RemoteEngine(ipc_address(host.port))
    number = engine.open_all([SessionSpec(seed=3, prompt="a cart")])[0]
    assert digest(engine.sessions[number].frame) == reference(host.address, 3, [])[0]
    engine.close()


def test_a_public_address_needs_keys(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="worldsim keys host"):
        check_bind(HostConfig(bind="0.0.0.0"))
    with pytest.raises(ConfigError, match="make one"):
        check_bind(HostConfig(bind="0.0.0.0", key=tmp_path / "host.key_secret"))
    assert cli.main(["serve", "--worlds", "nowhere", "--bind", "0.0.0.0"]) == 2


def test_keys(world_path: Path, tmp_path: Path) -> None:
    folder, allowed = tmp_path / "keys", tmp_path / "allowed"
    pairs = {name: make_keys(KeysConfig(name=name, folder=folder)) for name in ("host", "alice", "mallory")}
    with pytest.raises(ConfigError, match="there already"):
        make_keys(KeysConfig(name="alice", folder=folder))
    with pytest.raises(ConfigError, match="file name"):
        make_keys(KeysConfig(name="../alice", folder=folder))
    assert pairs["host"][1].stat().st_mode & 0o077 == 0
    allowed.mkdir()
    (allowed / "alice.key").write_bytes(pairs["alice"][0].read_bytes())
    words = ("--key", str(pairs["host"][1]), "--allow", str(allowed))
    with hosting([world_path], tmp_path / "host", *words) as host:

        def settings(name: str, patience: float) -> ConnectionConfig:
            return ConnectionConfig(key=pairs[name][1], host_key=pairs["host"][0], timeout=1, patience=patience)

        engine = RemoteEngine(host.address, config=settings("alice", 3))
        number = engine.open_all([SessionSpec(seed=1)])[0]
        assert engine.step({number: 1})[number].step == engine.sessions[number].step
        engine.close()
        for config in (settings("mallory", 1.5), QUICK):  # a key that is not on the list, and none
            with pytest.raises(BridgeError, match="has not answered"):
                Connection(host.address, config)


def test_limits_of_one_client(world_path: Path, tmp_path: Path) -> None:
    words = ("--sessions", "2", "--rate", "100", "--snapshots", "2", "--lease", "1.5")
    with hosting([world_path], tmp_path, *words) as host:
        one, other = Connection(host.address), Connection(host.address)
        first, _ = opened(one), opened(one)
        with pytest.raises(EngineFull, match="allowed: 2"):
            opened(one)
        theirs = opened(other)
        kept = [one.call("snapshot", session=first["session"]).header["snapshot"] for _ in range(3)]
        with pytest.raises(SnapshotMismatch):
            one.call("restore", session=first["session"], snapshot=kept[0])
        one.call("restore", session=first["session"], snapshot=kept[2])
        assert code(other, "drop", snapshot=kept[2]) == "not-allowed"
        # A hundred requests a second: the connection waits as it is told, and loses nothing.
        begun = time.monotonic()
        for _ in range(150):
            one.call("keep", sessions=[first["session"]])
        assert time.monotonic() - begun > 0.3
        # A lease ends for who is silent, and for nobody else.
        for _ in range(10):
            time.sleep(0.25)
            one.call("keep", sessions=[first["session"]])
        with pytest.raises(SessionError, match="lease"):
            other.call("render", session=theirs["session"])
        assert one.call("stats").header["stats"]["sessions"] == 1
        for connection in (one, other):
            connection.close()


def test_a_host_with_several_worlds(world_path: Path, tmp_path: Path) -> None:
    import shutil

    twin = tmp_path / "twin"
    shutil.copytree(world_path, twin)
    card = json.loads((twin / "world.json").read_text())
    (twin / "world.json").write_text(json.dumps(card | {"name": "twin"}))
    with hosting([world_path, twin], tmp_path / "host") as host:
        engines = [RemoteEngine(host.address, world=name) for name in ("CartPole-v1", "twin")]
        numbers = [engine.open_all([SessionSpec(seed=1, prompt="a cart")])[0] for engine in engines]
        for action in drive(5):
            a, b = (engine.step({n: action})[n].frame for engine, n in zip(engines, numbers, strict=True))
            assert digest(a) == digest(b)  # the same weights
        with pytest.raises(ConfigError, match="serves"):
            RemoteEngine(host.address)
        connection = Connection(host.address)
        assert code(connection, "open") == code(connection, "open", world="third") == "no-world"
        tokens = [engine.sessions[n].token for engine, n in zip(engines, numbers, strict=True)]
        assert code(connection, "step_batch", sessions=tokens, steps=[6, 6], actions=[0, 0]) == "bad-field"
        for thing in (*engines, connection):
            thing.close()


def test_two_players(host: HostProcess) -> None:
    one, two, eyes = (Connection(host.address) for _ in range(3))
    about = opened(one)
    token, now = about["session"], about["step"]
    turns = one.call("share", session=token, mode="turns", every=2).header["player"]
    for i in range(8):
        mine, theirs = (one, two) if i // 2 % 2 == 0 else (two, one)
        tokens = {one: token, two: turns}
        assert code(theirs, "step", session=tokens[theirs], step=now, action=1) == "not-your-turn"
        now = mine.call("step", session=tokens[mine], step=now, action=1).header["step"]
    assert code(two, "reset", session=turns) == code(eyes, "close", session=about["watch"]) == "not-allowed"
    parts = one.call("share", session=token, mode="split", parts=["left"]).header["player"]
    with pytest.raises(SessionError):
        two.call("input", session=turns, keys="left")  # the player from before is out
    two.call("input", session=parts, keys="left")
    assert code(one, "share", session=token, mode="split", parts=[0]) == "bad-field"
    assert one.call("step", session=token, step=now, keys="").header["step"] == now + 1
    one.call("close", session=token)
    for connection in (one, two, eyes):
        connection.close()


def test_split_controls_are_combined(host: HostProcess) -> None:
    """What the first holds and what the second holds give the frames of both keys in one hand."""
    one, two = Connection(host.address), Connection(host.address)
    both, alone = opened(one), opened(one)
    player = one.call("share", session=both["session"], mode="split", parts=["right"]).header["player"]
    frames = []
    for keys in ("left", "right", "", "right", "left"):
        two.call("input", session=player, keys="right" if "right" in keys else "")
        mine = "left" if "left" in keys else ""
        a = one.call("step", session=both["session"], step=both["step"], keys=mine)
        b = one.call("step", session=alone["session"], step=alone["step"], keys=keys)
        both["step"], alone["step"] = a.header["step"], b.header["step"]
        frames.append((a.buffers["frame"].tobytes(), b.buffers["frame"].tobytes()))
    assert all(a == b for a, b in frames) and len({a for a, _ in frames}) > 1
    for connection in (one, two):
        connection.close()


def test_watching_and_the_clock(host: HostProcess) -> None:
    one, eyes = Connection(host.address), Connection(host.address)
    about = opened(one)
    eyes.call("watch", session=about["watch"], credits=3)
    assert code(eyes, "input", session=about["watch"], keys="left") == "not-allowed"
    one.call("run", session=about["session"], fps=50)
    assert code(one, "step", session=about["session"], step=1, action=0) == "wrong-mode"
    seen = [message.header for _ in range(3) if (message := eyes.poll(5)) is not None]
    assert [header["credits"] for header in seen] == [2, 1, 0] and eyes.poll(0.3) is None
    eyes.call("watch", session=about["watch"], credits=1)
    late = eyes.poll(5)
    assert late is not None and late.header["dropped"] >= 5  # the newest waited, the others made way for it
    assert late.header["step"] - seen[-1]["step"] == late.header["dropped"] + 1
    one.call("input", session=about["session"], keys="left")
    stopped = one.call("pause", session=about["session"]).header["step"]
    time.sleep(0.1)
    now = one.call("render", session=about["session"]).header["step"]
    assert now == stopped
    assert one.call("step", session=about["session"], step=now, action=1).header["step"] == now + 1
    one.call("close", session=about["session"])
    for connection in (one, eyes):
        connection.close()


def test_slow_readers_hold_up_nobody(host: HostProcess) -> None:
    """Someone asks for thousands of frames and reads none; the steps of another take what they took."""
    quick = RemoteEngine(host.address)
    number = quick.open_all([SessionSpec(seed=1)])[0]

    def pace() -> list[float]:
        times = []
        for action in drive(80):
            begun = time.perf_counter()
            quick.step({number: action})
            times.append(time.perf_counter() - begun)
        return times

    before = statistics.median(pace())
    context = zmq.Context()
    slow = context.socket(zmq.DEALER)
    slow.setsockopt(zmq.RCVHWM, 1)
    slow.setsockopt(zmq.RCVBUF, 4096)
    slow.connect(host.address)
    slow.send_multipart(messages.pack({"v": 1, "id": 1, "verb": "hello", "client": "a-slow-reader"}))
    slow.recv_multipart()
    slow.send_multipart(messages.pack({"v": 1, "id": 2, "verb": "open"}))
    token = messages.unpack(slow.recv_multipart()).header["session"]
    slow.send_multipart(messages.pack({"v": 1, "id": 3, "verb": "watch", "session": token, "credits": 10_000}))
    slow.send_multipart(messages.pack({"v": 1, "id": 4, "verb": "run", "session": token}))
    for i in range(3000):
        slow.send_multipart(messages.pack({"v": 1, "id": 5 + i, "verb": "render", "session": token}))
    during = statistics.median(pace())
    stats = Connection(host.address)
    assert stats.call("stats").header["stats"]["requests"]["unsent"] > 0  # it was not waited for
    stats.call("close", session=token)  # or its clock would run on until the lease ends
    stats.close()
    context.destroy(linger=0)
    quick.close()
    assert during < 3 * before + 0.02  # a frame of the other session may come in between; never a queue of them


def test_stats_metrics_log_and_top(world_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("prometheus_client")
    from prometheus_client.parser import text_string_to_metric_families

    port = free_port()
    with hosting([world_path], tmp_path, "--metrics-port", str(port)) as host:
        engine = RemoteEngine(host.address)
        number = engine.open_all([SessionSpec(seed=1, prompt="a cart")])[0]
        for action in drive(10):
            engine.step({number: action})
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            page = {family.name: family for family in text_string_to_metric_families(answer.read().decode())}
        steps = {s.labels["verb"]: s.value for s in page["worldsim_host_requests"].samples if "verb" in s.labels}
        assert steps["step"] == 10 and page["worldsim_host_sessions"].samples[0].value == 1
        assert page["worldsim_frames"].samples[0].labels["world"] == "CartPole-v1"
        capsys.readouterr()
        assert cli.main(["top", "--address", host.address, "--once"]) == 0
        shown = capsys.readouterr().out
        token = engine.sessions[number].token
        assert token[:6] in shown and token not in shown and "a cart" in shown and "CartPole-v1" in shown
        engine.close()
        time.sleep(0.2)
        lines = [json.loads(line) for line in host.log.read_text().splitlines()]
    events = [line["event"] for line in lines]
    assert events == ["loading", "loaded", "serving", "open", "close"] and lines[3]["session"] == token[:8]
    assert token not in host.log.read_text()


def test_top_shows_what_strangers_wrote_and_obeys_none_of_it() -> None:
    console = pytest.importorskip("rich.console").Console(record=True, width=140, file=io.StringIO())
    line = {"session": "ab", "world": "w", "step": 3, "fps": 0, "watchers": 0, "lease": 5}
    stats = {
        "uptime": 5, "sessions": 50, "clients": 1, "requests": {"step": 10}, "errors": {},
        "step_ms": dict.fromkeys(("p50", "p95", "p99"), 1.0), "worlds": {},
        "lines": [{**line, "prompt": "\x1b[2J\x1b]0;title\x07 [red]snow[/red]\n x"}] * 50,
    }  # fmt: skip
    console.print(page(stats, None, "tcp://here"))
    shown = console.export_text()
    assert "?[2J?]0;title? [red]snow[/red]? x" in shown and "\x1b" not in shown and "\x07" not in shown
    assert shown.count("snow") == 40 and "... and 10 more" in shown and "step 2.0/s" in shown


def test_the_port_is_taken(host: HostProcess, world_path: Path) -> None:
    command = [sys.executable, "-m", "worldsim.cli", "serve", "--worlds", str(world_path), "--port", str(host.port)]
    done = subprocess.run([*command, "--no-checkpoint"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "cannot bind" in done.stderr


def test_garbage_on_the_wire(host: HostProcess) -> None:
    """Bytes that are no ZMTP, and ZMTP that goes wrong later: the host serves on."""
    import random

    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    greeting = bytes.fromhex("ff00000000000000017f0300") + b"NULL" + bytes(48)
    ready = bytes([4, 28]) + b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    for i in range(120):
        with socket.create_connection(("127.0.0.1", host.port), timeout=5) as wire:
            wire.sendall([b"", greeting, greeting + ready][i % 3])
            try:
                for _ in range(rng.randrange(1, 5)):
                    wire.sendall(rng.randbytes(rng.randrange(1, 3000)))
            except OSError:
                pass  # it hung up, as it may
    assert reference(host.address, 9, drive(3)) == reference(host.address, 9, drive(3))


def test_a_request_that_comes_late_changes_nothing(host: HostProcess) -> None:
    """It was sent again over a new connection, answered there, and then arrives over the old one too."""
    one = Connection(host.address)
    about = opened(one)
    token = about["session"]
    late = one._ids + 1
    one.call("prompt", session=token, prompt="a cart")
    one.call("prompt", session=token, prompt="")
    kept = one.call("snapshot", session=token).header["snapshot"]
    one.call("step", session=token, step=about["step"], action=1)

    def again(number: int, verb: str, **fields: Any) -> dict[str, Any]:
        assert one._socket is not None
        one._socket.send_multipart(messages.pack({"v": 1, "id": number, "verb": verb, "session": token, **fields}))
        return messages.unpack(one._socket.recv_multipart()).header

    assert again(late, "prompt", prompt="a cart")["error"]["code"] == "out-of-order"
    assert again(late, "restore", snapshot=kept)["error"]["code"] == "out-of-order"
    assert again(late, "reset")["error"]["code"] == "out-of-order"
    now = one.call("render", session=token).header
    assert now["prompt"] == "" and now["step"] == about["step"] + 1
    # A request that began a session which has ended begins no second one.
    number = one._ids + 1
    other = opened(one)["session"]
    one.call("close", session=other)
    assert one._socket is not None
    one._socket.send_multipart(messages.pack({"v": 1, "id": number, "verb": "open", "seed": 1, "prompt": "a cart"}))
    assert messages.unpack(one._socket.recv_multipart()).header["error"]["code"] == "no-session"
    one.call("close", session=token)
    one.close()


def test_the_page_comes_and_goes_with_the_host(world_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    port = free_port()
    with hosting([world_path], tmp_path, "--web", "--web-port", str(port), "--web-token", "sesame") as host:
        end = time.monotonic() + 30
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/?token=sesame", timeout=5) as answer:
                    assert answer.status == 200 and b"<canvas" in answer.read()
                break
            except urllib.error.URLError:
                assert time.monotonic() < end
                time.sleep(0.1)
        assert "sesame" not in host.log.read_text()
        host.kill()  # also when the host is killed
        while time.monotonic() < end:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)):
                    return
            time.sleep(0.1)
        pytest.fail("the page is still there")
