"""How rows are batched: in pieces of exact sizes, or in padded buckets.

A kernel may add up in another order when it gets more rows, and a frame would then depend on who shares its batch.
There are two ways out. `ExactPieces` cuts a batch into pieces of the sizes at which every row is what it is alone,
which `batch_invariance.sizes` finds by trying. `Buckets` fills every batch up to one of a few sizes, so that the
kernels see the same shapes again and again (one graph each on a GPU), and with one bucket always the same.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from worldsim.engine.batch_invariance.sizes import Sizes
from worldsim.engine.runtimes import MOST_ROWS, Runtime
from worldsim.engine.stages import Stages
from worldsim.errors import ConfigError

ANY_SIZE = tuple(range(1, MOST_ROWS // 2 + 1))  # of batches that need not be exact; guidance doubles their rows


class Batching(Protocol):
    """A way to compute many rows.

    Attributes:
        identity: what the bits of rows depend on besides the runtime; empty where they are those of single rows.
    """

    identity: str

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

    identity = ""

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


class Buckets:
    """Batches filled up to one of a few sizes; those beyond the largest are cut into pieces of it.

    The rows that are missing are copies of the last one: numbers of zero may divide by zero, or hide all keys from an
    attention. With one bucket a kernel always sees the same shape, and gives a row the same bits whatever the others
    are, as long as it computes all rows of a batch alike.

    Args:
        sizes: of each stage by name, ascending.
    """

    def __init__(self, sizes: Sizes) -> None:
        """Nothing is tried."""
        self._sizes = sizes
        self.identity = "" if sizes["denoise"] == (1,) else "-".join(["buckets", *map(str, sizes["denoise"])])

    @property
    def sizes(self) -> Sizes:
        """See `Batching`."""
        return self._sizes

    def wrap(self, stages: Stages) -> Stages:
        """See `Batching`."""
        return Stages(**{name: _Padded(call, self._sizes[name]) for name, call in vars(stages).items()})

    def split(self, sessions: int, workers: int) -> list[int]:
        """See `Batching`: groups fill the bucket that holds a worker's share, as padding costs as much as sessions."""
        size = _bucket(-(-sessions // workers), self._sizes["denoise"])
        rest = sessions % size
        return [size] * (sessions // size) + ([rest] if rest else [])


def check_buckets(
    buckets: tuple[int, ...] | list[int] | None, *, exact: bool, isolated: bool
) -> tuple[int, ...] | None:
    """An engine's buckets, ascending.

    Raises:
        ConfigError: they cannot work, or say something else than the other two settings.
    """
    if buckets is None:
        return None
    found = tuple(buckets) if isinstance(buckets, list | tuple) else ()
    if not found or len(set(found)) < len(found) or not all(type(n) is int and 1 <= n <= MOST_ROWS for n in found):
        raise ConfigError(
            f"buckets is {buckets!r}; allowed: a tuple of one or more different whole numbers from 1 to {MOST_ROWS}. "
            "Give one, such as (8,), for sessions that keep their bits in any batch, or several, such as (1, 4, 16), "
            "for less padding; or leave it out."
        )
    for name, contradicts in (("isolated=True computes every session by itself", isolated),
                              ("exact=False allows batches of any size", not exact)):  # fmt: skip
        if contradicts:
            raise ConfigError(f"{name}, and buckets={buckets!r} fills batches up to sizes; leave one of the two out.")
    return tuple(sorted(found))


def batching_for(
    runtime: Runtime, *, exact: bool = True, isolated: bool = False, buckets: tuple[int, ...] | None = None
) -> Batching:
    """How an engine batches its sessions; `worldsim.engine.engine.Engine` says what the settings mean."""
    names = vars(runtime.stages)
    if buckets is not None:
        sizes = dict.fromkeys(names, buckets)
        if runtime.dynamics.config.frames_per_latent > 1:  # a session's chunk is decoded by itself
            sizes["decode"] = (1,)
        return Buckets(sizes)
    if exact and not isolated:
        return ExactPieces(lambda: runtime.sizes, runtime.largest)
    return ExactPieces(lambda: dict.fromkeys(names, (1,) if isolated else ANY_SIZE), runtime.largest)


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


class _Padded:
    def __init__(self, call: Callable[..., Any], buckets: Sequence[int]) -> None:
        self.call, self.buckets = call, buckets

    def __call__(self, *args: Tensor) -> Any:
        rows, most = len(args[0]), self.buckets[-1]
        return _joined([self._run([arg[first : first + most] for arg in args]) for first in range(0, rows, most)])

    def _run(self, parts: list[Tensor]) -> Any:
        rows = len(parts[0])
        outs = self.call(*_padded(parts, _bucket(rows, self.buckets)))
        return outs[:rows] if isinstance(outs, Tensor) else tuple(out[:rows] for out in outs)


def _bucket(rows: int, buckets: Sequence[int]) -> int:
    """The smallest of ascending `buckets` that holds so many rows; the largest where none does."""
    return next((size for size in buckets if size >= rows), buckets[-1])


def _padded(parts: list[Tensor], size: int) -> list[Tensor]:
    """Tensors (n, ...) with copies of their last row up to `size` rows."""
    places = torch.arange(size, device=parts[0].device).clamp_(max=len(parts[0]) - 1)

    def whole(part: Tensor) -> bool:  # copied otherwise: kernels may also depend on strides and on the alignment
        return len(part) == size and part.is_contiguous() and part.storage_offset() == 0

    return [part if whole(part) else part.index_select(0, places) for part in parts]


def _joined(outs: list[Any]) -> Any:
    """What a stage gave for parts of the rows, as what it gives for all."""
    if len(outs) == 1:
        return outs[0]
    if isinstance(outs[0], Tensor):
        return torch.cat(outs)
    return tuple(torch.cat(parts) for parts in zip(*outs, strict=True))
