"""Batch sizes at which no kernel gives other bits than for one row, found by trying.

Libraries choose kernels by the shapes they get, and another kernel may add up in another order. That does not depend
on the numbers, so random ones show it: a size is exact if every row of it has the bits that it has alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldsim.engine.batch_invariance.modules import set_split_k
from worldsim.engine.stages import Stages, example
from worldsim.models.dit import DiT

Sizes = dict[str, tuple[int, ...]]
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
TRIES = 4  # with other numbers: few of a small product's show that the order of a sum has changed
PARTS = (1, 2, 4)  # of long sums, see `modules.SplitMLP`
ENOUGH = 8  # rows in a batch; beyond that a frame gets little cheaper


@torch.no_grad()
def exact_sizes(stages: Stages, dynamics: DiT, sizes: tuple[int, ...] = SIZES) -> Sizes:
    """The batch sizes at which every row is what it is alone, for each stage by name.

    Args:
        stages: of a runtime.
        dynamics: the model that they run.
        sizes: to try; 1 is always exact.
    """
    found = dict.fromkeys(vars(stages), sizes)
    for seed in range(TRIES):
        inputs = example(dynamics, max(sizes), seed)
        for name in found:
            call = getattr(stages, name)
            rows = _alone(call, inputs[name], max(sizes))
            found[name] = tuple(n for n in found[name] if n == 1 or _equal(_run(call, inputs[name], 0, n), rows))
    return {name: tuple(sorted({1, *exact})) for name, exact in found.items()}


@torch.no_grad()
def exact_split(stages: Stages, dynamics: DiT) -> int:
    """In how many parts the model has to add up its long sums, so that `ENOUGH` sessions are exact; it is left so."""
    inputs = example(dynamics, ENOUGH)["denoise"]
    for parts in PARTS:
        set_split_k(dynamics, parts)
        if _equal(_run(stages.denoise, inputs, 0, ENOUGH), _alone(stages.denoise, inputs, ENOUGH)):
            return parts
    set_split_k(dynamics, PARTS[0])  # parts are not what it hangs on
    return PARTS[0]


def _run(call: Callable[..., Any], inputs: tuple[Tensor, ...], first: int, last: int) -> list[Tensor]:
    """All that a stage gives for some rows in one batch."""
    out = call(*(arg[first:last] for arg in inputs))
    return [out] if isinstance(out, Tensor) else list(out)


def _alone(call: Callable[..., Any], inputs: tuple[Tensor, ...], count: int) -> list[Tensor]:
    """The same for the first `count` rows, each of them alone."""
    singles = [_run(call, inputs, row, row + 1) for row in range(count)]
    return [torch.cat(parts) for parts in zip(*singles, strict=True)]


def _equal(some: list[Tensor], rows: list[Tensor]) -> bool:
    return all(torch.equal(a, b[: len(a)]) for a, b in zip(some, rows, strict=True))
