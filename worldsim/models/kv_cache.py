"""What a session remembers between steps: the keys and values of its last frames.

Its size is fixed, so that no step ever costs more than another. Keys are kept unrotated and rotated by their age when
read, so that frame 100,000 is computed with the same small angles as frame 10. Frames lie in the order of their age,
which is thus the same for all sessions; a frame's part never changes, so that sessions can share it
(`engine.kv_blocks`).
Legend: B sessions, N frames remembered, T new frames, L time layers, P patches of a frame, H heads, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from worldsim.models.attention import TIME, LayerCache
from worldsim.models.config import DiTConfig
from worldsim.models.rope import rotate, time_rotation


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
        config: DiTConfig,
        batch: int,
        latent_size: tuple[int, int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> KVCache:
        """The cache of `batch` sessions of a model that have seen nothing."""
        layers, patches = config.pattern.count(TIME), config.patches(latent_size)
        shape = (batch, config.context, layers, patches, config.heads, config.width // config.heads)
        keys, values = torch.zeros(2, *shape, dtype=dtype, device=device)
        return KVCache(keys, values, torch.zeros(batch, dtype=torch.long, device=device))

    @property
    def frames(self) -> int:
        """How many frames are remembered."""
        return self.keys.shape[1]

    def append(self, keys: Tensor, values: Tensor) -> KVCache:
        """The cache after T more frames, whose keys and values are (B, T, L, P, H, E); the oldest ones leave."""
        grown = [
            torch.cat([old, new.to(old.dtype)], dim=1)[:, new.shape[1] :]
            for old, new in ((self.keys, keys), (self.values, values))
        ]
        return KVCache(grown[0], grown[1], self.count + keys.shape[1])

    def rotated(self) -> RotatedCache:
        """What new frames see of it: keys rotated by their age, and a bias that hides what is not known."""
        ages = torch.arange(self.frames, 0, -1, device=self.keys.device)
        rotation = time_rotation(-self.frames, 0, self.keys.shape[-1], self.keys.device)
        cos, sin = (part.unsqueeze(1) for part in rotation)  # (N, 1, 1, 1, E)
        bias = torch.where(ages <= self.count.unsqueeze(-1), 0.0, float("-inf"))
        return RotatedCache(rotate(self.keys, cos, sin), self.values, bias)


class RotatedCache(NamedTuple):
    """A cache as new frames see it, which all passes over them share.

    Attributes:
        keys: rotated by their age, (B, N, L, P, H, E).
        values: (B, N, L, P, H, E).
        bias: of scores, 0 or -inf where a frame is not known, (B, N).
    """

    keys: Tensor
    values: Tensor
    bias: Tensor

    def layers(self) -> list[LayerCache]:
        """What each time layer sees."""
        return [LayerCache(self.keys[:, :, i], self.values[:, :, i], self.bias) for i in range(self.keys.shape[2])]
