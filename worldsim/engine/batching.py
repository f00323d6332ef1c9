"""Rows in batches whose size does not change their bits.

A kernel may add up in another order when it gets more rows, and a frame would then depend on who shares its batch.
`batch_invariance.sizes` finds the sizes at which every row is what it is alone; here a batch is cut into pieces of
these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from worldsim.engine.batch_invariance.sizes import Sizes
from worldsim.engine.stages import Stages


def pieces(rows: int, sizes: Sequence[int]) -> list[int]:
    """`rows` as a sum of `sizes`, which contain 1, largest first."""
    found = []
    for size in sorted(sizes, reverse=True):
        found += [size] * (rows // size)
        rows %= size
    return found


def spread(rows: int, sizes: Sequence[int], workers: int, largest: int) -> list[int]:
    """`rows` as a sum of `sizes`, none above `largest`, so that `workers` have about as much to do each."""
    share = -(-rows // workers)
    return pieces(rows, [size for size in sizes if size <= max(1, min(share, largest))])


def in_pieces(stages: Stages, sizes: Callable[[], Sizes]) -> Stages:
    """The same stages, run over pieces of their `sizes` alone, which are asked for when there are several rows."""

    def piecewise(name: str) -> _Pieces:
        return _Pieces(getattr(stages, name), lambda: sizes()[name])

    return Stages(piecewise("encode"), piecewise("denoise"), piecewise("decode"))


class _Pieces:
    def __init__(self, call: Callable[..., Any], sizes: Callable[[], Sequence[int]]) -> None:
        self.call, self.sizes = call, sizes

    def __call__(self, *args: torch.Tensor) -> Any:
        rows = len(args[0])
        if rows == 1 or rows in self.sizes():
            return self.call(*args)
        split = zip(*(arg.split(pieces(rows, self.sizes())) for arg in args), strict=True)
        outs = [self.call(*parts) for parts in split]
        if isinstance(outs[0], torch.Tensor):
            return torch.cat(outs)
        return tuple(torch.cat(parts) for parts in zip(*outs, strict=True))
