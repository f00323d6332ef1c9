"""How rows are batched: in pieces of exact sizes.

A kernel may add up in another order when it gets more rows, and a frame would then depend on who shares its batch.
`batch_invariance.sizes` finds the sizes at which every row is what it is alone; here a batch is cut into pieces of
these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from worldsim.engine.batch_invariance.sizes import Sizes
from worldsim.engine.runtimes import MOST_ROWS, Runtime
from worldsim.engine.stages import Stages

ANY_SIZE = tuple(range(1, MOST_ROWS // 2 + 1))  # of batches that need not be exact; guidance doubles their rows


class Batching(Protocol):
    """A way to compute many rows."""

    @property
    def sizes(self) -> Sizes:
        """The numbers of rows that passes have, for each stage by name."""
        ...

    def wrap(self, stages: Stages) -> Stages:
        """The same stages for any number of rows, computed in passes of `sizes`."""
        ...

    def split(self, sessions: int, workers: int) -> list[int]:
        """`sessions` as a sum of groups, each for one of `workers` that compute at the same time."""
        ...


class ExactPieces:
    """Batches in pieces of sizes that were found to be exact.

    Args:
        sizes: finds them, for each stage by name; is asked only when there are several rows, as trying takes seconds.
        largest: number of sessions in a group beyond which a frame does not get cheaper.
    """

    def __init__(self, sizes: Callable[[], Sizes], largest: int) -> None:
        """Nothing is tried yet."""
        self._sizes, self.largest = sizes, largest

    @property
    def sizes(self) -> Sizes:
        """See `Batching`."""
        return self._sizes()

    def wrap(self, stages: Stages) -> Stages:
        """See `Batching`."""
        return in_pieces(stages, self._sizes)

    def split(self, sessions: int, workers: int) -> list[int]:
        """See `Batching`."""
        return [1] if sessions == 1 else spread(sessions, self.sizes["denoise"], workers, self.largest)


def batching_for(runtime: Runtime, *, exact: bool = True, isolated: bool = False) -> Batching:
    """How an engine batches its sessions; `worldsim.engine.engine.Engine` says what the settings mean."""

    def sizes() -> Sizes:
        if exact and not isolated:
            return runtime.sizes
        return dict.fromkeys(vars(runtime.stages), (1,) if isolated else ANY_SIZE)

    return ExactPieces(sizes, runtime.largest)


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

    def __call__(self, *args: Tensor) -> Any:
        rows = len(args[0])
        if rows == 1 or rows in self.sizes():
            return self.call(*args)
        split = zip(*(arg.split(pieces(rows, self.sizes())) for arg in args), strict=True)
        return _joined([self.call(*parts) for parts in split])


def _joined(outs: list[Any]) -> Any:
    """What a stage gave for parts of the rows, as what it gives for all."""
    if isinstance(outs[0], Tensor):
        return torch.cat(outs)
    return tuple(torch.cat(parts) for parts in zip(*outs, strict=True))
