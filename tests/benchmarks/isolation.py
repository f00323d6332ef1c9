"""Play sessions in wild company and alone, and count the frames that differ by a bit.

    python tests/benchmarks/isolation.py tests/data/old_world --frames 500000
    python tests/benchmarks/isolation.py doom --frames 100000

As batch_invariance.py, and what a host or a careless caller adds: prompts that nobody has seen, which push others out
of the book; clips and snapshots that push others out of the memory; sessions that begin in pieces, are forked, go back,
leave, or never come to be; calls from threads that have set torch as they like; integers, arrays and lists where floats
are usual. The engine that plays one session by itself meets none of that: it has a world, words and memory of its own.
"""

from __future__ import annotations

import argparse
import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from batch_invariance import LIFE, compare

from worldsim.engine.engine import Engine
from worldsim.engine.records import SessionSpec
from worldsim.envs.shipped import world_path
from worldsim.world import World

Result = TypeVar("Result")
CHANCE = 0.05  # of each kind of trouble, a step
SETTINGS: tuple[Callable[[], contextlib.AbstractContextManager[Any]], ...] = (
    contextlib.nullcontext,
    torch.inference_mode,
    lambda: torch.autocast("cpu", torch.bfloat16),
    lambda: torch.device("meta"),
)


def main() -> None:
    """Compare, and print what differed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world")
    parser.add_argument("--frames", type=int, default=10_000)
    parser.add_argument("--sessions", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    wild, quiet = (World.from_pretrained(world_path(options.world), dtype=torch.float32) for _ in range(2))
    together = Engine(wild, threads=1, runtime="eager", clips=1)
    alone = Engine(quiet, threads=1, runtime="eager", isolated=True)
    rng, frames, differ, begun = np.random.default_rng(options.seed), 0, 0, time.monotonic()
    while frames < options.frames:
        specs = [spec_of(rng, wild) for _ in range(options.sessions)]
        first = [foreign(rng, lambda spec=spec: begin(rng, together, wild, spec)) for spec in specs]
        pairs = list(zip(first, alone.open_all([plain(spec) for spec in specs]), strict=True))
        wild.action_space.seed(int(rng.integers(2**31)))
        for _ in range(LIFE):
            trouble(rng, together, alone, wild, pairs)
            count = int(rng.integers(1, options.sessions + 1))
            chosen = [pairs[i] for i in rng.choice(options.sessions, count, replace=False)]
            actions = [wild.action_space.sample() for _ in chosen]
            odd = {a: other_type(rng, action) for (a, _), action in zip(chosen, actions, strict=True)}
            both = foreign(rng, lambda odd=odd: together.step(odd))
            frames += count
            differ += compare(together, both, alone, chosen, actions)
        together.close()
        alone.close()
        rate = frames / (time.monotonic() - begun)
        print(f"{frames} frames, {differ} differ, {rate:.0f} frames/s, {len(wild.book.prompts)} prompts", flush=True)


def foreign(rng: np.random.Generator, call: Callable[[], Result]) -> Result:
    """Call on a new thread, with settings of torch that are not ours."""
    found: list[Any] = []
    threads, setting = int(rng.integers(1, 4)), SETTINGS[int(rng.integers(len(SETTINGS)))]
    dtype = (torch.float32, torch.float64, torch.bfloat16)[int(rng.integers(3))]

    def work() -> None:
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision("medium" if threads > 1 else "highest")
        try:
            with setting():
                found.append(call())
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_float32_matmul_precision("highest")

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if not found:
        raise RuntimeError(f"a call failed with {threads} threads, {setting}, {dtype}")
    return found[0]


def spec_of(rng: np.random.Generator, world: World) -> SessionSpec:
    """Choose how a session begins, in types that callers have."""
    known = world.card.prompts
    prompts = [None, "", words(rng), *(known[int(rng.integers(len(known)))] for _ in range(2 if known else 0))]
    start = int(rng.integers(len(world.starts))) if world.starts and rng.random() < 0.4 else None
    guidance: Any = (None, 1, 2, np.float32(1.5), 0.5)[int(rng.integers(5))]
    seed = int(rng.integers(2**31)) ** int(rng.integers(1, 4))
    return SessionSpec(seed=seed, prompt=prompts[int(rng.integers(len(prompts)))], start=start, guidance=guidance)


def plain(spec: SessionSpec) -> SessionSpec:
    """Say the same in the usual types."""
    guidance = None if spec.guidance is None else float(spec.guidance)
    return SessionSpec(seed=spec.seed, prompt=spec.prompt, start=spec.start, guidance=guidance)


def words(rng: np.random.Generator) -> str:
    """Make up a prompt that nobody has seen."""
    return f"a {'wild' if rng.random() < 0.5 else 'calm'} place of number {int(rng.integers(10**9))}"


def begin(rng: np.random.Generator, engine: Engine, world: World, spec: SessionSpec) -> int:
    """Begin a session at once, or in pieces between which others begin."""
    if rng.random() < 0.5:
        return engine.open_all([spec])[0]
    work = engine.open_in_pieces([spec])
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value[0]
        if rng.random() < CHANCE:
            engine.close(engine.open_all([spec_of(rng, world)])[0])


def trouble(
    rng: np.random.Generator, together: Engine, alone: Engine, world: World, pairs: list[tuple[int, int]]
) -> None:
    """Let something happen, to the pairs in both engines, to others in one."""
    a, b = pairs[int(rng.integers(len(pairs)))]
    if rng.random() < CHANCE:
        text = words(rng) if rng.random() < 0.5 else ""
        foreign(rng, lambda: together.set_prompt(a, text))
        alone.set_prompt(b, text)
    if rng.random() < CHANCE:  # it goes back to where it is, by way of a copy or of shared memory
        with contextlib.closing(together.snapshot(a, share=bool(rng.random() < 0.5))) as kept:
            together.step({a: world.action_space.sample()})
            together.restore(kept, a)
    if rng.random() < CHANCE:
        fork = together.fork(a, int(rng.integers(2**31)))
        together.step({fork: world.action_space.sample()})
        together.close(fork)
    if rng.random() < CHANCE:  # one that is given up
        work = together.open_in_pieces([spec_of(rng, world)])
        for _ in range(int(rng.integers(1, 4))):
            next(work, None)
        work.close()
    if rng.random() < CHANCE / 10:  # more words than the book keeps, over a run of 100,000 frames
        for _ in range(20):
            world.book.encode(words(rng))


def other_type(rng: np.random.Generator, action: Any) -> Any:
    """Say an action in another type."""
    if isinstance(action, np.ndarray) and action.dtype.kind == "f":
        return (action, action.astype(np.float64), [float(part) for part in action])[int(rng.integers(3))]
    if isinstance(action, (int, np.integer)):
        return (int(action), np.int16(action), np.array(action))[int(rng.integers(3))]
    return action


if __name__ == "__main__":
    main()
