"""Blocks of memory: what sessions remember of one frame lies in one block, which never changes once it is written.

A session is then a list of block numbers: a fork copies the list, and memory is shared until the two have drawn other
frames. Blocks are counted, and one that nobody holds is used again; the steady state allocates nothing.
Legend: L time layers, P patches, H heads, E head width, C h w latent.
"""

from __future__ import annotations

import contextlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from worldsim.errors import EngineFull
from worldsim.models.dit import DiTConfig

NOTHING = 0  # the block of a frame that does not exist: zeros


class KVBlockPool:
    """A fixed number of blocks.

    The memory is reserved at once, but an operating system only hands out what was written to.

    Args:
        config: the model's shape.
        blocks: how many there are, besides the empty one.
        dtype: of keys and values.
        device: where they lie.
        make_room: is called when there is no free block, to give up what can be had again.

    Attributes:
        keys: (blocks + 1, L, P, H, E).
        values: the same.
        latents: (blocks + 1, C, h, w) in float32.
    """

    def __init__(
        self,
        config: DiTConfig,
        blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        make_room: Callable[[], None] = lambda: None,
    ) -> None:
        """Reserve the memory."""
        self.make_room = make_room
        patches = (config.latent_size[0] // config.patch[1]) * (config.latent_size[1] // config.patch[2])
        memory = (config.pattern.count("t"), patches, config.heads, config.width // config.heads)
        self.keys = torch.empty(blocks + 1, *memory, dtype=dtype, device=device)
        self.values = torch.empty_like(self.keys)
        self.latents = torch.empty(blocks + 1, config.latent_channels, *config.latent_size, device=device)
        for part in (self.keys, self.values, self.latents):
            part[NOTHING] = 0
        self._holders = [0] * (blocks + 1)
        self._reserved: dict[int, int] = {}
        self._free = list(range(blocks, NOTHING, -1))  # the last one freed is the next one used: it is in the cache
        self._dropped: deque[tuple[int, ...]] = deque()  # of snapshots that are gone

    @property
    def block_bytes(self) -> int:
        """What one block takes."""
        parts = (self.keys, self.values, self.latents)
        return sum(part[NOTHING].numel() * part.element_size() for part in parts)

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return len(self._holders) - 1 - self.free

    @property
    def free(self) -> int:
        """Blocks that nobody holds; a thread of the caller's may ask, so that nothing is changed here."""
        return len(self._free) + sum(self._holders[block] == count for block, count in self._drops().items())

    @property
    def reserved(self) -> int:
        """Blocks that a snapshot holds."""
        return len(self._reserved) - sum(self._reserved[block] == count for block, count in self._drops().items())

    def would_reserve(self, blocks: Iterable[int]) -> int:
        """How many blocks more would be reserved."""
        self._settle()
        return len({block for block in blocks if block != NOTHING} - self._reserved.keys())

    def reserve(self, blocks: Iterable[int]) -> None:
        """Reserve blocks for a snapshot."""
        self._settle()
        blocks = [block for block in blocks if block != NOTHING]
        self.acquire(blocks)
        for block in blocks:
            self._reserved[block] = self._reserved.get(block, 0) + 1

    def unreserve(self, blocks: tuple[int, ...]) -> None:
        """The inverse of `reserve`, at some later time: a snapshot may be dropped in any thread, at any moment."""
        self._dropped.append(blocks)

    def _drops(self) -> Counter[int]:
        """How many of the holders of each block are snapshots that were dropped."""
        return Counter(block for blocks in list(self._dropped) for block in blocks if block != NOTHING)

    def _settle(self) -> None:
        """Take back the blocks of snapshots that were dropped."""
        while self._dropped:
            blocks = [block for block in self._dropped.popleft() if block != NOTHING]
            for block in blocks:
                self._reserved[block] -= 1
                if self._reserved[block] == 0:
                    del self._reserved[block]
            self.release(blocks)

    def allocate(self) -> int:
        """A free block, held once.

        Raises:
            EngineFull: there is none.
        """
        if not self._free:
            self._settle()
        if not self._free:
            self.make_room()
            self._settle()
        if not self._free:
            raise EngineFull(f"all {self.used} memory blocks are in use; close sessions or snapshots.")
        block = self._free.pop()
        self._holders[block] = 1
        return block

    def acquire(self, blocks: Iterable[int]) -> None:
        """Count one more holder of blocks."""
        for block in blocks:
            if block != NOTHING:
                self._holders[block] += 1

    def release(self, blocks: Iterable[int]) -> None:
        """Count one holder less; a block without one is free."""
        for block in blocks:
            if block == NOTHING:
                continue
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._free.append(block)

    @contextlib.contextmanager
    def change(self) -> Iterator[Change]:
        """Take blocks for sessions to be; if anything fails, they are given back."""
        taken = Change(self)
        try:
            yield taken
        except BaseException:
            taken.give_back()
            raise

    def write(self, block: int, keys: Tensor, values: Tensor, latents: Tensor) -> None:
        """Fill a block that was just allocated."""
        self.keys[block], self.values[block], self.latents[block] = keys, values, latents


class Change:
    """The blocks that a change of sessions has taken so far, each counted once for each session to be."""

    def __init__(self, pool: KVBlockPool) -> None:
        """Begin with none."""
        self.pool, self._taken = pool, []

    def allocate(self) -> int:
        """A free block; see `KVBlockPool.allocate`.

        Raises:
            EngineFull: there is none.
        """
        block = self.pool.allocate()
        self._taken.append(block)
        return block

    def acquire(self, blocks: Iterable[int]) -> None:
        """Count one more holder of blocks."""
        blocks = [block for block in blocks if block != NOTHING]
        self.pool.acquire(blocks)
        self._taken += blocks

    def release(self, blocks: Iterable[int]) -> None:
        """Give up blocks that were taken: those of a session that another one has followed."""
        blocks = [block for block in blocks if block != NOTHING]
        for block in blocks:
            self._taken.remove(block)
        self.pool.release(blocks)

    def give_back(self) -> None:
        """Give up all."""
        self.pool.release(self._taken)
        self._taken = []
