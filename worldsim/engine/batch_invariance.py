"""Where batched kernels differ from single ones, found by trying.

Libraries choose kernels by the shapes they get, and another kernel may add up in another order. That does not depend
on the numbers, so random ones show it: a size is exact if every row of it has the bits that it has alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldsim.engine.stages import Stages, example
from worldsim.models.dit import DiT

Sizes = dict[str, tuple[int, ...]]
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
SMALL, TRIES = ("prepare", "judge"), 4  # stages of small products
PARTS = (1, 2, 4)  # of long sums, see `models.layers.MLP`
ENOUGH = 8  # rows in a batch; beyond that a frame gets little cheaper


@torch.no_grad()
def exact_sizes(
    stages: Stages, dynamics: DiT, passes: tuple[int, ...] = (1, 2), sizes: tuple[int, ...] = SIZES
) -> Sizes:
    """The batch sizes at which every row is what it is alone, for each stage by name.

    Args:
        stages: of a runtime.
        dynamics: the model that they run.
        passes: how many noise levels are prepared at once.
        sizes: to try; 1 is always exact.
    """
    found = dict.fromkeys(vars(stages), sizes)
    # Few of a small product's numbers show that the order of a sum has changed: these take many tries to be seen.
    for turn, (count, seed) in enumerate((count, seed) for seed in range(TRIES) for count in passes):
        inputs = example(dynamics, max(sizes), count, seed)
        for name in vars(stages) if turn == 0 else SMALL:
            call, (own, shared) = getattr(stages, name), inputs[name]
            rows = _alone(call, own, shared, max(sizes))
            found[name] = tuple(n for n in found[name] if n == 1 or _equal(_run(call, own, shared, 0, n), rows))
    return {name: tuple(sorted({1, *exact})) for name, exact in found.items()}


@torch.no_grad()
def exact_parts(stages: Stages, dynamics: DiT) -> int:
    """In how many parts the model has to add up its long sums, so that `ENOUGH` sessions are exact; it is left so."""
    own, shared = example(dynamics, ENOUGH)["denoise"]
    for parts in PARTS:
        set_parts(dynamics, parts)
        if _equal(_run(stages.denoise, own, shared, 0, ENOUGH), _alone(stages.denoise, own, shared, ENOUGH)):
            return parts
    set_parts(dynamics, PARTS[0])  # parts are not what it hangs on
    return PARTS[0]


def set_parts(dynamics: DiT, parts: int) -> None:
    """Let the model add up its long sums in so many parts, see `models.layers.MLP`."""
    for block in dynamics.blocks:
        block.mlp.parts = parts  # type: ignore[union-attr]


def _run(
    call: Callable[..., Any], own: tuple[Tensor, ...], shared: tuple[Tensor, ...], first: int, last: int
) -> list[Tensor]:
    """All that a stage gives for some rows in one batch."""
    out = call(*(arg[first:last] for arg in own), *shared)
    return [out] if isinstance(out, Tensor) else list(out)


def _alone(call: Callable[..., Any], own: tuple[Tensor, ...], shared: tuple[Tensor, ...], count: int) -> list[Tensor]:
    """The same for the first `count` rows, each of them alone."""
    singles = [_run(call, own, shared, row, row + 1) for row in range(count)]
    return [torch.cat(parts) for parts in zip(*singles, strict=True)]


def _equal(some: list[Tensor], rows: list[Tensor]) -> bool:
    return all(torch.equal(a, b[: len(a)]) for a, b in zip(some, rows, strict=True))
