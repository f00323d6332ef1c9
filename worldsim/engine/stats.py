"""What an engine tells about itself: counts, latencies and a page for Prometheus."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from worldsim.errors import MissingDependency

RECENT = 4096  # steps that latencies are computed over
PERCENTILES = (50, 95, 99)
WINDOW = 10.0  # seconds that frames a second are counted over


class Stats:
    """Counts steps."""

    def __init__(self) -> None:
        """Nothing counted yet."""
        self.frames = self.steps = 0
        self.seconds = 0.0
        self.batches: Counter[int] = Counter()
        self._recent: deque[tuple[float, float, int]] = deque(maxlen=RECENT)  # when, seconds, frames

    def note(self, seconds: float, sizes: list[int], stride: int = 1) -> None:
        """Count a step that took `seconds` in batches of `sizes` latents, each for `stride` frames."""
        frames = stride * sum(sizes)
        self.frames += frames
        self.steps += 1
        self.seconds += seconds
        self.batches.update(sizes)
        self._recent.append((time.perf_counter(), seconds, frames))

    def read(self) -> dict[str, Any]:
        """Totals; p50, p95 and p99 of the last steps in ms; frames/s over the last seconds; batches by size."""
        now, recent = time.perf_counter(), list(self._recent)  # another thread may add to it meanwhile
        lately = [(when - seconds, frames) for when, seconds, frames in recent if now - when < WINDOW]
        span = now - lately[0][0] if lately else 0.0
        return {
            "frames": self.frames,
            "steps": self.steps,
            "busy_seconds": self.seconds,
            "frames_per_second": sum(frames for _, frames in lately) / span if span else 0.0,
            "step_ms": percentiles_ms([seconds for _, seconds, _ in recent]),
            "batches": dict(sorted(self.batches.items())),
        }


def percentiles_ms(seconds: Sequence[float]) -> dict[str, float]:
    """Compute p50, p95 and p99 of times in milliseconds; 0 where there are none."""
    found = 1000 * np.percentile(seconds, PERCENTILES) if len(seconds) else np.zeros(len(PERCENTILES))
    return {f"p{q}": float(value) for q, value in zip(PERCENTILES, found, strict=True)}


def prometheus(stats: dict[str, Any], world: str) -> str:
    """The page that Prometheus reads (text format 0.0.4) of what `Engine.stats` says.

    Raises:
        MissingDependency: prometheus_client is not installed.
    """
    try:
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError as error:
        raise MissingDependency(
            "prometheus_client", "a Prometheus page", 'pip install "worldsim-engine[serve]"'
        ) from error

    class Page:
        def collect(self) -> Any:
            return metrics({world: stats})

    registry = CollectorRegistry()
    registry.register(Page())  # type: ignore[arg-type]  -- a collector is whatever collects
    return generate_latest(registry).decode()


def metrics(worlds: dict[str, dict[str, Any]]) -> Iterator[Any]:
    """Prometheus metrics of what engines say of themselves, by the name of their world."""
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily

    labels = ["world", "runtime"]
    rows = [([world, stats["runtime"]], stats) for world, stats in worlds.items()]
    gauges = ("sessions", "capacity", "session_bytes", "memory_bytes", "memory_budget_bytes", "pinned_bytes")
    for name in (*gauges, "frames_per_second"):
        metric = GaugeMetricFamily(f"worldsim_{name}", name.replace("_", " "), labels=labels)
        for values, stats in rows:
            metric.add_metric(values, stats[name])
        yield metric
    for name in ("frames", "steps"):
        metric = CounterMetricFamily(f"worldsim_{name}", f"{name} drawn", labels=labels)
        for values, stats in rows:
            metric.add_metric(values, stats[name])
        yield metric
    latency = GaugeMetricFamily("worldsim_step_ms", "recent step latency", labels=[*labels, "quantile"])
    summary = SummaryMetricFamily("worldsim_step_seconds", "all steps", labels=labels)
    batches = CounterMetricFamily("worldsim_batches", "batches by size", labels=[*labels, "size"])
    for values, stats in rows:
        for name, value in stats["step_ms"].items():
            latency.add_metric([*values, f"0.{name[1:]}"], value)
        summary.add_metric(values, stats["steps"], stats["busy_seconds"])
        for size, count in stats["batches"].items():
            batches.add_metric([*values, str(size)], count)
    yield from (latency, summary, batches)
