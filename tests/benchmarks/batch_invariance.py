"""Play sessions in batches and alone, and count the frames that differ by a bit.

    python tests/benchmarks/batch_invariance.py tests/data/old_world --frames 500000
    python tests/benchmarks/batch_invariance.py car-racing --frames 100000
    python tests/benchmarks/batch_invariance.py car-racing --buckets 4

Two engines of one world play the same sessions under the same random actions: one in batches of all sizes that it
takes for exact (or in padded buckets), one session by session. Frame, reward, probability of an end and what the
session remembers are compared at every step; after a difference the session goes on from what it was alone. Figures are
in docs/engine.md.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

from worldsim.engine.engine import Engine
from worldsim.engine.records import SessionSpec, StepResult
from worldsim.envs.shipped import world_path
from worldsim.world import World

LIFE = 200  # steps of a session, then another takes its place


def main() -> None:
    """Compare, and print what differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=12)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--buckets", type=int, nargs="*")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    world = World.from_pretrained(world_path(options.world), dtype=getattr(torch, options.dtype))
    settings: list[dict[str, Any]] = [{"buckets": options.buckets}] * 2 if options.buckets else [{}, {"isolated": True}]
    together, alone = (Engine(world, threads=1, runtime="eager", **kwargs) for kwargs in settings)
    rng, seed = np.random.default_rng(options.seed), options.seed
    print(f"sizes: {together.sizes}; sums in {together.runtime.split_k} parts", flush=True)
    frames = differ = 0
    begun = time.monotonic()
    while frames < options.frames:
        specs = [SessionSpec(seed=seed + i) for i in range(options.sessions)]
        seed += options.sessions
        pairs = list(zip(together.open_all(specs), alone.open_all(specs), strict=True))
        world.action_space.seed(seed)
        for _ in range(LIFE):
            count = int(rng.integers(2, options.sessions + 1))  # batches of many sizes
            chosen = [pairs[i] for i in rng.choice(options.sessions, count, replace=False)]
            actions = [world.action_space.sample() for _ in chosen]
            both = together.step(dict(zip((a for a, _ in chosen), actions, strict=True)))
            frames += count
            differ += compare(together, both, alone, chosen, actions)
        together.close()
        alone.close()
        rate = frames / (time.monotonic() - begun)
        print(f"{frames} frames, {differ} differ, {rate:.0f} frames/s", flush=True)


def compare(
    together: Engine, both: dict[int, StepResult], alone: Engine, pairs: list[tuple[int, int]], actions: list[Any]
) -> int:
    """Draw alone what a batch has drawn, and count the sessions that differ; they go on from what they are alone."""
    differ = 0
    for (a, b), action in zip(pairs, actions, strict=True):
        if not _equal(together, a, both[a], alone, b, alone.step({b: action})[b]):
            differ += 1
            print(f"session {a} of seed {together.sessions[a].seed}, batch of {len(pairs)}", flush=True)
            together.restore(alone.table.copy(b), a)
    return differ


def _equal(one: Engine, a: int, x: StepResult, other: Engine, b: int, y: StepResult) -> bool:
    """Compare what two sessions show and remember, to the bit."""
    same = np.array_equal(x.frame, y.frame) and (x.reward, x.ended) == (y.reward, y.ended)
    pools = ((one.table.pool, one.sessions[a].blocks[-1]), (other.table.pool, other.sessions[b].blocks[-1]))
    parts = [(pool.keys[block], pool.values[block], pool.latents[block]) for pool, block in pools]
    return same and all(torch.equal(p, q) for p, q in zip(*parts, strict=True))


if __name__ == "__main__":
    main()
