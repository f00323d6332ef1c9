"""What a session remembers between steps: the keys and values of its last frames.

Its size is fixed, so that no step ever costs more than another. Keys are kept unturned and turned by their age when
read, so that frame 100,000 is computed with the same small angles as frame 10. Frames lie in the order of their age,
which is thus the same for all sessions; a frame's part never changes, so that sessions can share it
(`engine.kv_blocks`).
Legend: B sessions, N frames remembered, L time layers, P patches of a frame, H heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class KVCache:
    """The last frames of some sessions, oldest first.

    Attributes:
        keys: (B, N, L, P, H, E).
        values: (B, N, L, P, H, E).
        count: how many frames of each session are known, the last ones, (B,); more than N means all.
    """

    keys: Tensor
    values: Tensor
    count: Tensor

    @staticmethod
    def empty(
        layers: int, batch: int, patches: int, heads: int, frames: int, width: int, dtype: torch.dtype = torch.float32
    ) -> KVCache:
        """A cache that knows nothing yet."""
        zeros = torch.zeros(2, batch, frames, layers, patches, heads, width, dtype=dtype)
        return KVCache(zeros[0], zeros[1], torch.zeros(batch, dtype=torch.long))

    @property
    def frames(self) -> int:
        """How many frames are remembered."""
        return self.keys.shape[1]

    def append(self, keys: Tensor, values: Tensor) -> KVCache:
        """The cache after one more frame, whose keys and values are (B, L, P, H, E); the oldest one leaves."""
        parts = zip((self.keys, self.values), (keys, values), strict=True)
        grown = [torch.cat([old[:, 1:], new.unsqueeze(1).to(old.dtype)], dim=1) for old, new in parts]
        return KVCache(grown[0], grown[1], self.count + 1)
