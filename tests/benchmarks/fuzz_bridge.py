"""Malformed messages for a live host, by the million; beside them somebody plays, and must see the right frames.

python tests/benchmarks/fuzz_bridge.py car-racing --messages 1000000
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import zmq

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hosting import HostProcess, digest
from nonsense import nonsense

from worldsim.bridges import protocol
from worldsim.bridges.client import RemoteEngine
from worldsim.engine.records import Opening

BURST = 32  # messages that are sent before replies are read


def fuzz(address: str, process: int, messages: int, seed: int, report_every: float = 0.0) -> dict[str, Any]:
    """Send messages and count what comes back.

    Returns:
        Counts of replies by error code; memory of the host in MB before, after a tenth, and after; whether who plays
        saw the frames of a quiet host; and how many sessions are left over once all that were told of are closed.
    """
    rng, counts = random.Random(seed), {"sent": 0, "replies": 0}
    codes: dict[str, int] = {}
    player = RemoteEngine(address)
    actions = [player.world.action_space.sample() for _ in range(20)]
    numbers = player.open_all([Opening(seed=1), Opening(seed=1)])
    others = player.connection.call("stats").header["stats"]["sessions"]
    expected = [digest(player.step({numbers[0]: action})[numbers[0]].frame) for action in actions]
    context, tokens, seen = zmq.Context(), [], []
    opened: set[str] = set()
    socket = context.socket(zmq.DEALER)
    socket.connect(address)
    before, begun, told = memory_mb(process), time.monotonic(), time.monotonic()
    warm = before
    while counts["sent"] < messages:
        if counts["sent"] % (BURST * 40) == 0:
            socket.send_multipart(protocol.pack({"v": 1, "id": 1, "verb": "hello", "client": "fuzzer-of-hosts"}))
        for _ in range(BURST):
            socket.send_multipart(nonsense(rng, tokens, counts["sent"]))
            counts["sent"] += 1
        for header in _read(socket, 1):
            counts["replies"] += 1
            code = header.get("error", {}).get("code", "ok")
            codes[code] = codes.get(code, 0) + 1
            told_of = _opened(header)
            opened.update(told_of)
            others_told = [token for token in (header.get("watch"), header.get("snapshot")) if token]
            tokens = [*tokens, *told_of, *others_told][-60:]
        done = len(seen) / len(actions)
        if counts["sent"] / messages > done and len(seen) < len(actions):
            seen.append(digest(player.step({numbers[1]: actions[len(seen)]})[numbers[1]].frame))
        if counts["sent"] >= messages // 10 and warm == before:
            warm = memory_mb(process)
        if report_every and time.monotonic() - told > report_every:
            told = time.monotonic()
            print(f"{counts['sent']} sent, {memory_mb(process):.0f} MB", file=sys.stderr, flush=True)
    while len(seen) < len(actions):
        seen.append(digest(player.step({numbers[1]: actions[len(seen)]})[numbers[1]].frame))
    after = memory_mb(process)
    seconds = time.monotonic() - begun
    for header in _read(socket, 500):
        opened.update(_opened(header))
    for token in opened:
        player.connection.call("close", session=token)
    left = player.connection.call("stats").header["stats"]["sessions"] - others
    player.close()
    context.destroy(linger=0)
    return {**counts, "seconds": seconds, "codes": codes, "memory_mb": [before, warm, after],
            "equal": seen == expected, "sessions_left": left}  # fmt: skip


def _opened(header: dict[str, Any]) -> list[str]:
    """The tokens of sessions that a reply says were begun."""
    if header.get("verb") not in ("open", "fork", "open_batch"):
        return []
    return [token for token in [header.get("session"), *header.get("sessions", [])] if token]


def _read(socket: zmq.Socket, patience_ms: int) -> Iterator[dict[str, Any]]:
    """Headers of replies, until none comes for a while."""
    while socket.poll(patience_ms):
        parts = socket.recv_multipart()
        yield protocol.unpack(parts if parts[0] else parts[1:]).header  # as to a REQ socket, if it was asked as one


def memory_mb(process: int) -> float:
    """Resident memory of the host."""
    return psutil.Process(process).memory_info().rss / 1e6


def main() -> None:
    """Start a host and fuzz it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = ("--sessions", "24", "--snapshots", "8", "--rate", "1e9")
        host = HostProcess([words.world], Path(folder), 0, *settings)
        try:
            print(fuzz(host.address, host.process.pid, words.messages, words.seed, 10.0))
            print("the host", "lives" if host.process.poll() is None else "DIED")
        finally:
            host.kill()


if __name__ == "__main__":
    main()
