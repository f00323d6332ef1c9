"""Time an engine on this machine: many sessions, forks and snapshots by age, cost of late steps, and a soak test.

A step is what a server does: actions in, uint8 frames out. Speeds are given as ratios to one session of the same run.
"""

from __future__ import annotations

import gc
import hashlib
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from worldsim.engine.engine import Engine
from worldsim.engine.records import SessionSpec
from worldsim.engine.session import Snapshot
from worldsim.errors import ConfigError, RuntimeUnavailable, WorldsimError
from worldsim.evaluation.bench import machine, memory_mb
from worldsim.world import World

REPLAYED = 100  # frames that must be equal in another process


@dataclass(frozen=True, kw_only=True)
class EngineBenchConfig:
    """What to time."""

    world: Path
    """A world's folder or hub id, or the name of a shipped world."""
    runtimes: tuple[str, ...] = ("auto",)
    """Which to time; the first is the one that everything after the speeds is done on."""
    sessions: tuple[int, ...] = (1, 8, 32)
    threads: int = 1
    """CPU cores."""
    seconds: float = 4.0
    """For each number of sessions."""
    age: int = 10_000
    """Steps of the flat run, after which forks and snapshots are timed again (0: none)."""
    soak_minutes: float = 0.0
    """Random joins, leaves, forks, snapshots and bad calls for so long."""
    seed: int = 0
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.runtimes or not self.sessions or min(self.sessions) < 1:
            raise ConfigError(
                f"runtimes {self.runtimes} and sessions {self.sessions}: at least one of each, from 1 on."
            )
        if self.threads < 1 or self.age < 0 or self.soak_minutes < 0 or not self.seconds > 0:
            raise ConfigError("threads must be at least 1, seconds above 0, age and soak_minutes not below 0.")


def bench_engine(config: EngineBenchConfig) -> dict[str, Any]:
    """Time an engine; nothing else should run meanwhile.

    Returns:
        speeds: by runtime and mode ("exact", "fast") and number of sessions: p50 ms of a step, frames/s, and these over
            those of one session.
        young, old: fork and snapshot of a session of a few steps, and of one of `age` steps.
        flat: p50 ms of the first and the last 500 steps of `age`, and memory.
        soak: operations done, and memory at the beginning and the end.

    Raises:
        WorldError: the world cannot be loaded.
    """
    torch.set_num_threads(1)
    world = World.from_pretrained(config.world)
    report: dict[str, Any] = {"world": world.card.name, "machine": machine(config.threads), "speeds": {}}
    for name in config.runtimes:
        for mode in ("exact", "fast"):
            try:
                engine = Engine(world, runtime=name, threads=config.threads, exact=mode == "exact")
            except RuntimeUnavailable as error:
                report["speeds"][f"{name}, {mode}"] = {"unavailable": str(error)}
                continue
            report["speeds"][f"{engine.runtime.name}, {mode}"] = speeds(engine, config)
            engine.close()
    engine = Engine(world, runtime=config.runtimes[0], threads=config.threads)
    number = engine.open(seed=config.seed)
    _walk(engine, [number], 10)
    report["session_mb"] = engine.table.session_bytes / 1e6
    report["young"] = forks_and_snapshots(engine, number)
    if config.age:
        report["flat"] = flat_run(engine, number, config.age)
        report["old"] = forks_and_snapshots(engine, number)
    engine.close()
    if config.soak_minutes:
        report["soak"] = soak(world, config)
    return report


def speeds(engine: Engine, config: EngineBenchConfig) -> dict[str, dict[str, float]]:
    """Time steps of 1, 8, 32... sessions."""
    found: dict[str, dict[str, float]] = {}
    for count in config.sessions:
        numbers = engine.open_all([SessionSpec(seed=config.seed + i) for i in range(count)])
        _walk(engine, numbers, 3)
        times: list[float] = []
        end = time.perf_counter() + config.seconds
        while len(times) < 5 or time.perf_counter() < end:
            times += _walk(engine, numbers, 1)
        p50 = statistics.median(times)
        found[str(count)] = {"step_ms": 1000 * p50, "frames_per_second": count / p50}
        for number in numbers:
            engine.close(number)
    first = next(iter(found.values()))["frames_per_second"]
    for row in found.values():
        row["gain"] = row["frames_per_second"] / first
    return found


def forks_and_snapshots(engine: Engine, number: int) -> dict[str, Any]:
    """Time forks of a session, and snapshots that are restored in another process."""
    used, blocks, times = engine.table.pool.used, 0, []
    for _ in range(50):
        begin = time.perf_counter()
        fork = engine.fork(number)
        times.append(time.perf_counter() - begin)
        blocks = engine.table.pool.used - used
        engine.close(fork)
    found: dict[str, Any] = {"step": engine.sessions[number].step, "fork_ms": 1000 * statistics.median(times)}
    found["fork_share_of_memory"] = (blocks * engine.table.block_bytes + 4096) / engine.table.session_bytes
    assert engine.world.path is not None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "session"
        begin = time.perf_counter()
        with_snapshot = engine.snapshot(number)
        with_snapshot.save(path)
        found["save_ms"] = 1000 * (time.perf_counter() - begin)
        found["file_kb"] = path.stat().st_size / 1e3
        here = replayed(engine, engine.restore(with_snapshot))
        with_snapshot.close()
        command = [sys.executable, "-m", "worldsim.evaluation.bench_engine", str(engine.world.path), str(path)]
        out = subprocess.run([*command, engine.runtime.name], capture_output=True, text=True, check=True)
        there = json.loads(out.stdout.splitlines()[-1])
    found |= {"load_ms": there["load_ms"], "equal_frames": REPLAYED if there["digest"] == here else 0}
    return found


def replayed(engine: Engine, number: int) -> str:
    """Hash a session's next frames, rewards and terminations under fixed actions, then close the session."""
    digest, space = hashlib.sha256(), engine.world.action_space
    space.seed(1)
    for _ in range(REPLAYED):
        step = engine.step({number: space.sample()})[number]
        digest.update(step.frame.tobytes() + repr((step.reward, step.ended)).encode())
    engine.close(number)
    return digest.hexdigest()


def flat_run(engine: Engine, number: int, steps: int) -> dict[str, float]:
    """Time many steps of one session, and compare the last steps with the first."""
    before = memory_mb()
    times = _walk(engine, [number], steps, progress=True)
    window = min(500, max(1, steps // 3))
    first, last = statistics.median(times[:window]), statistics.median(times[-window:])
    return {"steps": steps, "first_ms": 1000 * first, "last_ms": 1000 * last, "ratio": last / first,
            "memory_before_mb": before, "memory_after_mb": memory_mb()}  # fmt: skip


def soak(world: World, config: EngineBenchConfig) -> dict[str, float]:
    """Run random opens, closes, forks, snapshots and bad calls; at the end the memory should be as at the start."""
    rng = random.Random(config.seed)
    engine = Engine(world, runtime=config.runtimes[0], threads=config.threads, max_sessions=48)
    snapshots: list[Snapshot] = []
    counts = {"operations": 0, "refused": 0}

    def operate(numbers: list[int]) -> None:
        some = rng.choice(numbers) if numbers else 0
        deeds: list[tuple[float, Callable[[], Any]]] = [
            (0.15, lambda: engine.open(seed=rng.randrange(2**62))),
            (0.01, lambda: engine.open(seed=rng.randrange(2**62), prompt=rng.choice(world.card.prompts or [""]))),
            (0.50, lambda: _walk(engine, rng.sample(numbers, rng.randint(1, min(16, len(numbers)))), 1)),
            (0.08, lambda: engine.fork(some)),
            (0.06, lambda: snapshots.append(engine.snapshot(some))),
            (0.05, lambda: engine.restore(rng.choice(snapshots), some)),
            (0.12, lambda: engine.close(some)),
            (0.03, lambda: engine.step({some: "nonsense"})),
        ]
        rng.choices([deed for _, deed in deeds], [weight for weight, _ in deeds])[0]()
        while len(snapshots) > 30:
            snapshots.pop(0).close()

    def clear() -> float:
        while snapshots:
            snapshots.pop().close()
        for number in list(engine.sessions):
            engine.close(number)
        gc.collect()
        return memory_mb()

    # Memory that is touched for the first time is not a leak: first let it reach its usual size.
    end, begun = time.monotonic() + 60 * config.soak_minutes, None
    warm = time.monotonic() + 12 * config.soak_minutes
    with tqdm(desc="soak", unit="op", leave=False, disable=None) as bar:
        while time.monotonic() < end:
            if begun is None and time.monotonic() > warm:
                begun = clear()
            try:
                operate(list(engine.sessions))
            except (WorldsimError, ValueError, IndexError):  # also empty choices, when nobody is there
                counts["refused"] += 1
            counts["operations"] += 1
            bar.update()
    after = clear()
    stats = engine.stats()
    engine.close()
    return {**counts, "memory_before_mb": begun or after, "memory_after_mb": after, "frames": stats["frames"],
            "blocks_left": engine.table.pool.used, "p99_ms": stats["step_ms"]["p99"]}  # fmt: skip


def _walk(engine: Engine, numbers: list[int], steps: int, progress: bool = False) -> list[float]:
    """Step with random actions; return the seconds of each step."""
    space, times = engine.world.action_space, []
    for _ in tqdm(range(steps), desc="steps", leave=False, disable=None if progress else True):
        actions = {number: space.sample() for number in numbers}
        begin = time.perf_counter()
        engine.step(actions)
        times.append(time.perf_counter() - begin)
    return times


def table(report: dict[str, Any]) -> str:
    """Format the report."""
    lines = [f"{report['world']} on {report['machine']['threads']} core(s) of {report['machine']['cpu']}", ""]
    for name, rows in report["speeds"].items():
        if "unavailable" in rows:
            lines.append(f"{name:18} {rows['unavailable']}")
            continue
        parts = [
            f"{n}: {r['step_ms']:.1f} ms, {r['frames_per_second']:.0f}/s ({r['gain']:.2f}x)" for n, r in rows.items()
        ]
        lines.append(f"{name:18} " + "   ".join(parts))
    lines += ["", f"a session takes {report['session_mb']:.2f} MB"]
    for age in ("young", "old"):
        if age in report:
            part = report[age]
            lines.append(
                f"at frame {part['step']}: fork {part['fork_ms']:.3f} ms and "
                f"{100 * part['fork_share_of_memory']:.1f} % of a session's memory; saved in {part['save_ms']:.1f} ms, "
                f"loaded in another process in {part['load_ms']:.1f} ms ({part['file_kb']:.0f} kB), "
                f"{part['equal_frames']} frames equal there"
            )
    if "flat" in report:
        part = report["flat"]
        lines.append(
            f"{part['steps']} steps: the last cost {100 * (part['ratio'] - 1):+.1f} % against the first, memory "
            f"{part['memory_before_mb']:.0f} to {part['memory_after_mb']:.0f} MB"
        )
    if "soak" in report:
        part = report["soak"]
        lines.append(
            f"soak: {part['operations']} operations ({part['refused']} refused), {part['frames']} frames, p99 "
            f"{part['p99_ms']:.1f} ms, memory {part['memory_before_mb']:.0f} to {part['memory_after_mb']:.0f} MB, "
            f"{part['blocks_left']} blocks left"
        )
    return "\n".join(lines)


def _other_process(world: str, path: str, runtime: str) -> None:
    """Restore a snapshot and print how long that took, and a hash of the frames that follow."""
    torch.set_num_threads(1)
    engine = Engine(World.from_pretrained(world), runtime=runtime, threads=1)
    begin = time.perf_counter()
    number = engine.restore(Snapshot.load(path))
    seconds = time.perf_counter() - begin
    print(json.dumps({"load_ms": 1000 * seconds, "digest": replayed(engine, number)}))


if __name__ == "__main__":
    _other_process(*sys.argv[1:])
