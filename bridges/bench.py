"""Measure what the bridge costs on this machine: a step through it, a step in this process, and bare ZeroMQ.

Two engines: `StillEngine`, whose step takes no time, isolates the cost of the bridge for frames of any size; a real
world shows which part of its speed remote clients get. Host and clients are processes of their own.
"""

from __future__ import annotations

import json
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import zmq
from gymnasium import spaces

from worldsim.bridges import messages
from worldsim.bridges.actions import to_json
from worldsim.bridges.client import RemoteEngine
from worldsim.bridges.client.connection import ConnectionConfig
from worldsim.bridges.host.server import Host, HostConfig, ipc_address
from worldsim.engine.make import EngineConfig, make_engine
from worldsim.engine.records import SessionSpec, StepResult
from worldsim.envs.shipped import world_path
from worldsim.errors import BridgeError, ConfigError
from worldsim.evaluation.bench import machine
from worldsim.spaces import space_from_json

SIZES = {"64x64": (64, 64), "1280x720": (720, 1280)}  # (height, width)
WARM = 20  # steps before the first timed one
BLOCK = 25  # steps that are timed in a row before the next way is timed


@dataclass(frozen=True, kw_only=True)
class BridgeBenchConfig:
    """What to time."""

    world: str = "car-racing"
    """The real world."""
    steps: int = 500
    """Timed for each way."""
    clients: int = 32
    """Number of clients that step the real world at once."""
    threads: int = 1
    """CPU cores of its engine."""
    seconds: float = 10.0
    """Duration of that measurement, and of the one with as many local sessions."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.steps, self.clients, self.threads) < 1 or not self.seconds > 0:
            raise ConfigError("steps, clients, threads must be at least 1 and seconds above 0.")


class StillEngine:
    """An engine whose step takes no time: its frames are two fixed ones, in turns."""

    def __init__(self, frame_size: tuple[int, int]) -> None:
        """Make the two frames."""
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (2, frame_size[0] // 16, frame_size[1] // 16, 3), np.uint8)
        self._frames = coarse.repeat(16, 1).repeat(16, 2)  # patches of colour, about as hard on JPEG as a game is
        space = {"type": "box", "low": [-1.0] * 3, "high": [1.0] * 3, "dtype": "float32"}
        card = SimpleNamespace(
            name="still", frame_size=frame_size, fps=60.0, action_space=space, keys={}, prompts=[], episode_steps=None
        )
        action_space = space_from_json(space)
        self.world = SimpleNamespace(card=card, action_space=action_space, starts=[], fingerprint=lambda: "still")
        self.sessions: dict[int, Any] = {}
        self.context_frames = 1

    def open_all(self, specs: Sequence[SessionSpec]) -> list[int]:
        """Begin sessions."""
        numbers = [len(self.sessions) + 1 + i for i in range(len(specs))]
        for number in numbers:
            self.sessions[number] = SimpleNamespace(
                frame=self._frames[0], step=1, prompt="", reward=0.0, ended=0.0, terminated=False
            )
        return numbers

    def open_in_pieces(self, specs: Sequence[SessionSpec]) -> Generator[None, None, list[int]]:
        """Begin sessions without a pause."""
        yield from ()
        return self.open_all(specs)

    def close(self, session: int | None = None) -> None:
        """End a session."""
        self.sessions.pop(session or 0, None)

    def check(self, session: int, action: Any) -> None:
        """Accept any action."""

    def step(self, actions: Mapping[int, Any]) -> dict[int, StepResult]:
        """Draw the other one of the two frames; a copy, as `Engine.step` gives."""
        steps = {}
        for number in actions:
            known = self.sessions[number]
            known.step += 1
            known.frame = self._frames[known.step % 2]
            steps[number] = StepResult(known.frame.copy(), 0.0, 0.0, known.step, False)
        return steps

    def stats(self) -> dict[str, Any]:
        """Return no statistics."""
        return {}


def bench_bridge(config: BridgeBenchConfig) -> dict[str, Any]:
    """Time the bridge on an otherwise idle machine.

    Returns:
        still: by frame size: p50 and p99 ms of a step in this process, through the bridge by tcp, ipc, shared memory
            and JPEG, and of a bare ZeroMQ echo of the same bytes.
        real: p50 ms of a step of the real world here and through the bridge, in turns, and frames/s of many clients and
            of as many local sessions.
    """
    report: dict[str, Any] = {"machine": machine(config.threads), "still": {}}
    for name, size in SIZES.items():
        report["still"][name] = _still(size, config.steps)
    report["real"] = _real(config)
    return report


def _still(size: tuple[int, int], steps: int) -> dict[str, dict[str, float]]:
    """Time every way of stepping `StillEngine`, in turns."""
    engine, action = StillEngine(size), np.zeros(3, np.float32)
    local = engine.open_all([SessionSpec()])[0]
    ways: dict[str, Callable[[], Any]] = {"in process": lambda: engine.step({local: action})}
    height, width = map(str, size)
    with ExitStack() as stack:
        address = stack.enter_context(_process("still", height, width))
        bare = stack.enter_context(_process("echo", height, width))
        ipc = ipc_address(int(address.rsplit(":", 1)[1]))
        for name, (where, encoding) in {
            "tcp raw": (address, "raw"),
            "ipc raw": (ipc, "raw"),
            "shared memory": (address, "shm"),
            "shared memory, read in place": (address, "shm"),
            "tcp jpeg": (address, "jpeg"),
        }.items():
            config = ConnectionConfig(encoding=encoding, copy="in place" not in name)
            remote = RemoteEngine(where, config=config)
            stack.callback(remote.close)
            number = remote.open_all([SessionSpec()])[0]
            ways[name] = lambda remote=remote, number=number: remote.step({number: action})
        context = zmq.Context()
        stack.callback(context.destroy, linger=0)  # closes its sockets first: with an open one a process may not end
        for name, where in {"bare echo, tcp": bare, "bare echo, ipc": ipc_address(int(bare.rsplit(":", 1)[1]))}.items():
            ways[name] = _echo_client(context, where)
        times = _in_turns(ways, steps)
    base = times["in process"]["p50"]
    return {name: {**found, "cost": found["p50"] - base} for name, found in times.items()}


def _in_turns(ways: Mapping[str, Callable[[], Any]], steps: int) -> dict[str, dict[str, float]]:
    """Measure p50 and p99 in ms of each way, in alternating blocks, so that a busy moment slows all ways alike."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        for _ in range(WARM):
            way()
    while min(map(len, times.values())) < steps:
        for name, way in ways.items():
            for _ in range(BLOCK):
                begun = time.perf_counter()
                way()
                times[name].append(1000 * (time.perf_counter() - begun))
    return {
        name: {"p50": statistics.median(t), "p99": sorted(t)[int(0.99 * (len(t) - 1))]} for name, t in times.items()
    }


def _real(config: BridgeBenchConfig) -> dict[str, Any]:
    engine = make_engine(world_path(config.world), EngineConfig(threads=config.threads))
    action = engine.world.action_space.sample()
    with _process("world", config.world, str(config.threads)) as address:
        remote = RemoteEngine(address)
        here, there = engine.open(seed=1), remote.open_all([SessionSpec(seed=1)])[0]
        ways = {"in process": lambda: engine.step({here: action}), "remote": lambda: remote.step({there: action})}
        single = _in_turns(ways, config.steps)
        engine.close(here)
        remote.close()
        local = many = 0.0
        for _ in range(2):  # in turns
            local += _local(engine, config.clients, action, config.seconds / 2) / 2
            many += _clients(address, config.clients, config.seconds / 2) / 2
    engine.close()
    facts = {"runtime": engine.runtime.name, "clients": config.clients, "threads": config.threads}
    return {**facts, "single": single, "local_fps": local, "remote_fps": many, "ratio": many / local}


def _local(engine: Any, sessions: int, action: Any, seconds: float) -> float:
    """Measure the frames/s of sessions in this process."""
    numbers = engine.open_all([SessionSpec(seed=i) for i in range(sessions)])
    engine.step(dict.fromkeys(numbers, action))
    frames, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        frames += len(engine.step(dict.fromkeys(numbers, action)))
    spent = time.perf_counter() - begun
    for number in numbers:
        engine.close(number)
    return frames / spent


def _clients(address: str, count: int, seconds: float) -> float:
    """Measure the frames/s of clients in lock-step, one connection each, all driven by one other process."""
    command = [sys.executable, "-m", "worldsim.bridges.bench", "clients", address, str(count), str(seconds)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BridgeError(f"the clients failed: {done.stderr[-1000:]}")
    return float(done.stdout.split()[-1])


def drive_clients(address: str, count: int, seconds: float) -> float:
    """Drive the clients of `_clients`: each steps again as soon as it has its reply, independent of the others."""
    poller, sockets, sessions = zmq.Poller(), {}, {}
    context, space = zmq.Context(), spaces.Discrete(1)
    for i in range(count):
        socket = context.socket(zmq.DEALER)
        socket.connect(address)
        hello = _ask(socket, 1, "hello", client=secrets.token_hex(16))
        space = space_from_json(hello["worlds"][0]["action_space"])
        opened = _ask(socket, 2, "open", seed=i)
        poller.register(socket, zmq.POLLIN)
        sockets[socket], sessions[socket] = 3, (opened["session"], opened["step"])
    action = to_json(space, space.sample())

    def step(socket: zmq.Socket) -> None:
        token, now = sessions[socket]
        header = {"v": 1, "id": sockets[socket], "verb": "step", "session": token, "step": now, "action": action}
        socket.send_multipart(messages.pack(header), copy=False)

    for socket in sockets:
        step(socket)
    frames, begun = -count, 0.0  # the first round is not counted
    while frames <= 0 or time.perf_counter() - begun < seconds:
        for socket, _ in poller.poll(10_000):
            reply = messages.unpack(socket.recv_multipart()).header
            sessions[socket] = sessions[socket][0], reply["step"]
            sockets[socket] += 1
            frames += 1
            if frames == 0:
                begun = time.perf_counter()
            step(socket)
    spent = time.perf_counter() - begun
    for socket, (token, _) in sessions.items():
        socket.recv_multipart()
        _ask(socket, sockets[socket] + 1, "close", session=token)
    context.destroy(linger=0)
    return frames / spent


def _ask(socket: zmq.Socket, number: int, verb: str, **fields: Any) -> dict[str, Any]:
    socket.send_multipart(messages.pack({"v": 1, "id": number, "verb": verb, **fields}))
    reply = messages.unpack(socket.recv_multipart()).header
    if "error" in reply:
        raise BridgeError(f"{verb}: {reply['error']['message']}")
    return reply


def _echo_client(context: zmq.Context, address: str) -> Callable[[], Any]:
    """Make a function that sends the bytes of a step and waits for a frame, without a protocol."""
    socket = context.socket(zmq.DEALER)
    socket.connect(address)
    request = messages.pack(
        {"v": 1, "id": 1, "verb": "step", "session": "0" * 32, "step": 1, "action": [0.0, 0.0, 0.0]}
    )

    def trip() -> Any:
        socket.send_multipart(request, copy=False)
        return np.array(np.frombuffer(socket.recv_multipart(copy=False)[1].buffer, np.uint8))

    return trip


def _echo_host(frame: np.ndarray) -> None:
    """Answer every message with a header and a frame."""
    socket = zmq.Context.instance().socket(zmq.ROUTER)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    socket.bind(ipc_address(port))
    print(f"tcp://127.0.0.1:{port}", flush=True)
    header = b"x" * 180
    while True:
        peer, _ = socket.recv_multipart()
        socket.send_multipart([peer, header, frame], copy=False)


class _process:
    """A context with a host in a process of its own; gives its address."""

    def __init__(self, *words: str) -> None:
        command = [sys.executable, "-m", "worldsim.bridges.bench", *words]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> str:
        assert self.process.stdout is not None
        address = self.process.stdout.readline().strip()
        if not address:
            raise BridgeError("the host of the benchmark did not start; what it said is above.")
        return address

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def table(report: Mapping[str, Any]) -> str:
    """Format the report as a table."""
    lines = [f"machine: {json.dumps(report['machine'])}"]
    for size, ways in report["still"].items():
        lines += ["", f"still frames of {size}: ms a step{'':18} p50      p99     cost"]
        lines += [f"  {way:40} {f['p50']:8.3f} {f['p99']:8.3f} {f['cost']:8.3f}" for way, f in ways.items()]
    real = report["real"]
    lines += ["", f"{real['runtime']}, one session: ms a step{'':16} p50      p99"]
    lines += [f"  {way:40} {found['p50']:8.3f} {found['p99']:8.3f}" for way, found in real["single"].items()]
    lines.append(
        f"{real['clients']} remote clients {real['remote_fps']:.0f} frames/s, as many local sessions "
        f"{real['local_fps']:.0f}: {100 * real['ratio']:.0f} % ({real['threads']} core(s) for the engine)"
    )
    return "\n".join(lines)


def _main(words: Sequence[str]) -> None:
    """Run one of the processes of the benchmark."""
    kind, *rest = words
    if kind == "clients":
        print(drive_clients(rest[0], int(rest[1]), float(rest[2])))
    elif kind == "echo":
        _echo_host(np.zeros((int(rest[0]), int(rest[1]), 3), np.uint8))
    else:
        if kind == "still":
            engine: Any = StillEngine((int(rest[0]), int(rest[1])))
        else:
            engine = make_engine(world_path(rest[0]), EngineConfig(threads=int(rest[1])))
            _ = engine.sizes  # tried now, not by the first client
        with Host({engine.world.card.name: engine}, HostConfig(port=0)) as host:
            print(host.address, flush=True)
            host.run()


if __name__ == "__main__":
    _main(sys.argv[1:])
