"""Where a compiled pass of a shipped world spends its time, by kind of kernel.

python tests/benchmarks/profile_pass.py [WORLD]

The pass is compiled with a profiler's marks in it, which the runtime does not have, so shares tell more than times.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch._inductor.config as inductor
from torch.profiler import ProfilerActivity, profile

from worldsim.engine.runtimes import build
from worldsim.engine.stages import example
from worldsim.envs.shipped import world_path
from worldsim.evaluation.bench import gemm_peak
from worldsim.world import World

KINDS = {"_linear_pointwise": "linears", "scaled_dot_product": "attention in space and to words",
         "cpp_fused__softmax": "attention along time", "cpp_fused": "norms, modulation, activations"}  # fmt: skip
RUNS = 20


@torch.no_grad()
def shares(world: World, sessions: int) -> None:
    """Print the shares of one pass of some sessions."""
    with TemporaryDirectory() as folder:
        runtime = build(world, "eager", Path(folder))
    own = example(runtime.dynamics, sessions)["denoise"]
    torch._dynamo.reset()
    compiled = torch.compile(runtime.stages.denoise, dynamic=False)
    for _ in range(3):
        compiled(*own)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for _ in range(RUNS):
            compiled(*own)
    spent: dict[str, float] = {}
    for event in found.key_averages():
        fused = event.key.startswith("graph_")
        kind = next(
            (title for mark, title in KINDS.items() if mark in event.key and (fused or "fused" not in mark)), None
        )
        kind = kind or "calls between them"
        spent[kind] = spent.get(kind, 0.0) + event.self_cpu_time_total / RUNS / 1000
    total = sum(spent.values())
    print(f"{sessions} session(s): {total:.2f} ms a pass")
    for kind, ms in sorted(spent.items(), key=lambda item: -item[1]):
        print(f"  {kind:34} {ms:7.2f} ms  {100 * ms / total:3.0f} %")


def main() -> None:
    """One session and many."""
    torch.set_num_threads(1)
    inductor.freezing, inductor.cpp.enable_kernel_profile = True, True
    world = World.from_pretrained(world_path(sys.argv[1] if len(sys.argv) > 1 else "car-racing"))
    print(f"GEMM peak: bf16 {gemm_peak(torch.bfloat16):.0f}, fp32 {gemm_peak(torch.float32):.0f} GFLOP/s")
    for sessions in (1, 32):
        shares(world, sessions)


if __name__ == "__main__":
    main()
