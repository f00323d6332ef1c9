"""Time a world on this machine, and show where the time goes.

A step here is what an environment does: an action in, a uint8 frame out. The speed of the machine is measured in the
same run, because timings mean little without it.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from worldsim.diffusion.noise import HISTORY, SAMPLE, normal
from worldsim.diffusion.sampler import SamplerConfig
from worldsim.engine.batching import in_pieces
from worldsim.engine.runtimes import Runtime
from worldsim.engine.simulator import Simulator, State
from worldsim.engine.stages import Stages, eager
from worldsim.engine.tuning import choose
from worldsim.errors import ConfigError
from worldsim.evaluation.rollout import check_single_frames
from worldsim.world import World

GEMMS = ((1024, 1024, 1024), (256, 1024, 1024), (256, 256, 1024))  # the fastest of these is called the peak
GEMM_SECONDS = 0.4  # for each


@dataclass(frozen=True, kw_only=True)
class BenchConfig:
    """What to time."""

    world: Path
    """A world's folder or hub id, or the name of a shipped world."""
    steps: int = 1000
    """Frames to generate."""
    sessions: int = 1
    """Sessions that are stepped together."""
    threads: int = 1
    """CPU threads."""
    runtime: str = "auto"
    """What computes: auto, eager, compiled, onnx or cudagraph."""
    num_denoising_steps: int | None = None
    """Denoising steps of a frame (default: what the world says)."""
    json: bool = False
    """Print JSON instead of a table."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, low in {"steps": 20, "sessions": 1, "threads": 1}.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least {low}.")


def timed(stages: Stages, spent: dict[str, float]) -> Stages:
    """Return the same stages; they add the seconds that they take to `spent`."""

    def wrap(name: str) -> Callable[..., Any]:
        call = getattr(stages, name)

        def run(*args: Tensor) -> Any:
            begin = time.perf_counter()
            out = call(*args)
            spent[name] += time.perf_counter() - begin
            return out

        return run

    return Stages(**{name: wrap(name) for name in vars(stages)})


def bench(config: BenchConfig) -> dict[str, Any]:
    """Time a world; nothing else should run meanwhile.

    Returns:
        step_ms: median, p95 and mean of a step of all sessions, and by stage (medians): encode, denoise, decode,
            noise (its draws, timed by themselves), python (the rest).
        flatness: median of steps 90-100 % of the run over that of 5-15 %; 1 is flat.
        memory_mb: of the process before the world was loaded, at the end, and at its peak; session_kb of one session.
        size: parameters of the parts, megabytes of the folder.
        gemm_gflops: the machine's peak in fp32 and bf16; share_of_peak: of the transformer and the decoder, in the
            weights' dtype.

    Raises:
        WorldError: the world cannot be loaded.
    """
    torch.set_num_threads(config.threads)
    before = _memory()["VmRSS"]
    world = World.from_pretrained(config.world)
    check_single_frames(world)
    settings = SamplerConfig.of(world.card.sampler, num_denoising_steps=config.num_denoising_steps)
    runtime, spent = choose(world, config.runtime), defaultdict(float)
    stages = timed(in_pieces(runtime.stages, lambda: runtime.sizes), spent)
    simulator = Simulator(runtime.dynamics, settings, stages)
    prompt = world.book.encode(world.card.prompts[0] if world.card.prompts else "")
    state = simulator.begin(list(range(config.sessions)), [prompt] * config.sessions)
    stages.frames(simulator.step(state, None).latents)
    world.action_space.seed(0)
    times: defaultdict[str, list[float]] = defaultdict(list)
    for _ in range(config.steps):
        sampled = [world.action_space.sample() for _ in range(config.sessions)]
        spent.clear()
        begin = time.perf_counter()
        actions = world.codec.flatten_list(sampled)
        stages.frames(simulator.step(state, torch.from_numpy(actions)).latents).cpu().numpy()
        times["step"].append(time.perf_counter() - begin)
        for name, seconds in spent.items():
            times[name].append(seconds)
    after = _memory()
    medians = {name: 1000 * statistics.median(values) for name, values in times.items()}
    steps, transformer = times["step"], medians["encode"] + medians["denoise"]
    noise = 1000 * _seconds(lambda: _noise(simulator, state))
    peaks = {"fp32": gemm_peak(torch.float32), "bf16": gemm_peak(torch.bfloat16)}
    flops = _flops(runtime, simulator, state)
    half = runtime.dtype == torch.bfloat16
    peak = peaks["bf16" if half else "fp32"]
    assert world.path is not None
    return {
        "world": world.card.name,
        "machine": machine(config.threads),
        "steps": config.steps,
        "sessions": config.sessions,
        "runtime": runtime.name,
        "dtype": "bf16" if half else "fp32",
        "denoising_steps": simulator.sampler.num_denoising_steps,
        "step_ms": {
            "median": medians["step"],
            "p95": 1000 * sorted(steps)[int(0.95 * (len(steps) - 1))],
            "mean": 1000 * statistics.fmean(steps),
            **{name: medians[name] for name in vars(stages)},
            "noise": noise,
            "python": medians["step"] - transformer - medians["decode"] - noise,
        },
        "frames_per_second": config.sessions * 1000 / medians["step"],
        "flatness": _window(steps, 0.9, 1.0) / _window(steps, 0.05, 0.15),
        "memory_mb": {"before": before, "end": after["VmRSS"], "peak": after["VmHWM"]},
        "session_kb": _bytes(state) / config.sessions / 1000,
        "size": {
            "dynamics_parameters": sum(p.numel() for p in world.dynamics.parameters()),
            "autoencoder_parameters": sum(p.numel() for p in world.autoencoder.parameters()),
            "folder_mb": sum(file.stat().st_size for file in world.path.rglob("*") if file.is_file()) / 1e6,
        },
        "gemm_gflops": peaks,
        "gflop_per_step": {name: count / 1e9 for name, count in flops.items()},
        "share_of_peak": {
            "transformer": flops["transformer"] / (transformer * 1e6) / peak,
            "decoder": flops["decoder"] / (medians["decode"] * 1e6) / peak,
        },
    }


def gemm_peak(dtype: torch.dtype) -> float:
    """Measure the most GFLOP/s of a matrix product here, with torch as it is set now."""
    best = 0.0
    for m, k, n in GEMMS:
        a, b = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype)
        best = max(best, 2 * m * k * n / _seconds(lambda a=a, b=b: a @ b, GEMM_SECONDS) / 1e9)
    return best


def _seconds(call: Callable[[], Any], budget: float = 0.2) -> float:
    """Measure the median time of a call, repeated for `budget` seconds after a first call that does not count."""
    call()
    times, end = [], time.perf_counter() + budget
    while not times or time.perf_counter() < end:
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _noise(simulator: Simulator, state: State) -> None:
    normal(state.keys, state.step, SAMPLE, tuple(state.history.shape[2:]))
    normal(state.keys, state.step, HISTORY, tuple(state.history.shape[1:]))


def _flops(runtime: Runtime, simulator: Simulator, state: State) -> dict[str, int]:
    """Count the floating-point operations of the passes of a step and of its decoding."""
    stages = eager(runtime.dynamics, runtime.autoencoder)  # whose operators can be counted
    simulator = Simulator(runtime.dynamics, simulator.sampler, stages)
    custom = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops}
    counts = {}
    with FlopCounterMode(display=False, custom_mapping=custom) as counter:
        latents = simulator.step(state, state.actions[:, -1]).latents
        counts["transformer"] = counter.get_total_flops()
        stages.frames(latents)
        counts["decoder"] = counter.get_total_flops() - counts["transformer"]
    return counts


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    """Count the operations of attention over shapes (B, H, N, E): scores and sums."""
    batch, heads, length, width = query
    return 2 * batch * heads * length * key[2] * (width + value[3])


def _window(times: list[float], begin: float, end: float) -> float:
    return statistics.median(times[int(begin * len(times)) : int(end * len(times))])


def _bytes(state: State) -> int:
    tensors = (state.history, state.actions, state.known, state.cache.keys, state.cache.values)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _memory() -> dict[str, float]:
    """Return the resident memory of this process and its peak, in megabytes."""
    try:
        lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
        return {line[0].rstrip(":"): int(line[1]) * 1024 / 1e6 for line in lines if line[0] in ("VmRSS:", "VmHWM:")}
    except OSError:  # not Linux: the peak is all that can be had
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
        return {"VmRSS": peak, "VmHWM": peak}


def memory_mb() -> float:
    """Return the resident memory of this process in megabytes."""
    return _memory()["VmRSS"]


def machine(threads: int) -> dict[str, Any]:
    """Describe the machine that a report was made on."""
    return {"cpu": _cpu(), "threads": threads, "torch": torch.__version__}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown"


def table(report: dict[str, Any]) -> str:
    """Format the report."""
    step, memory, size, gemm = (report[name] for name in ("step_ms", "memory_mb", "size", "gemm_gflops"))
    parts = ("encode", "denoise", "decode", "noise", "python")
    share = report["share_of_peak"]
    return "\n".join(
        [
            f"{report['world']}: {report['steps']} steps of {report['sessions']} session(s), {report['runtime']}, "
            f"{report['dtype']}, {report['denoising_steps']} denoising steps, {report['machine']['threads']} thread(s) "
            f"of {report['machine']['cpu']}",
            "",
            f"step       median {step['median']:.2f} ms, p95 {step['p95']:.2f} ms, "
            f"{report['frames_per_second']:.1f} frames/s",
            "by stage   " + ", ".join(f"{name} {step[name]:.2f}" for name in parts) + " ms",
            f"flatness   the last tenth costs {100 * (report['flatness'] - 1):+.1f} % against steps 5-15 %",
            f"memory     {memory['end']:.0f} MB at the end, {memory['peak']:.0f} MB at the peak, "
            f"{report['session_kb']:.0f} kB a session",
            f"size       {size['dynamics_parameters'] / 1e6:.2f}M dynamics + "
            f"{size['autoencoder_parameters'] / 1e6:.2f}M autoencoder parameters, {size['folder_mb']:.1f} MB on disk",
            f"GEMM peak  fp32 {gemm['fp32']:.0f}, bf16 {gemm['bf16']:.0f} GFLOP/s; of it the transformer reaches "
            f"{100 * share['transformer']:.0f} %, the decoder {100 * share['decoder']:.0f} %",
        ]
    )
