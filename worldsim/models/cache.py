"""What a session remembers between steps: a ring of the last frames' keys and values.

Its size is fixed, so that no step ever costs more than another; it is read while a frame denoises and written once,
by the pass over the finished frame. Keys are kept unrotated and turned by their age when read, so that frame 100,000
is computed with the same small angles as frame 10.
Legend: B sessions, L time layers, P patches of a frame, H heads, N frames remembered, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class FrameCache:
    """A ring of frames per session and time layer.

    Attributes:
        keys: (L, B, P, H, N, E).
        values: (L, B, P, H, N, E).
        written: (B,) how many frames each session has written so far; frame i lies in slot i % N.
    """

    keys: Tensor
    values: Tensor
    written: Tensor

    @staticmethod
    def empty(
        layers: int, batch: int, patches: int, heads: int, frames: int, width: int, dtype: torch.dtype = torch.float32
    ) -> FrameCache:
        """A cache in which nothing is written yet."""
        shape = (layers, batch, patches, heads, frames, width)
        zeros = torch.zeros(2, *shape, dtype=dtype)
        return FrameCache(zeros[0], zeros[1], torch.zeros(batch, dtype=torch.long))

    @property
    def frames(self) -> int:
        """How many frames are remembered."""
        return self.keys.shape[4]

    def ages(self) -> Tensor:
        """How many frames before the next one each slot was written, (B, N); more than N means never."""
        slots = torch.arange(self.frames)
        last = self.written.unsqueeze(-1) - 1
        newest = last - (last - slots) % self.frames  # the latest frame that went into each slot; < 0: none did
        return torch.where(newest < 0, self.frames + 1, self.written.unsqueeze(-1) - newest)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Put one frame's keys and values (B, P, H, 1, E) of a layer where `advance` will count it."""
        slot = self.written % self.frames
        rows = torch.arange(len(slot))
        self.keys[layer][rows, :, :, slot] = keys[..., 0, :].to(self.keys.dtype)
        self.values[layer][rows, :, :, slot] = values[..., 0, :].to(self.values.dtype)

    def advance(self) -> None:
        """Count the frame that all layers have written."""
        self.written = self.written + 1

    def select(self, rows: Tensor) -> FrameCache:
        """A copy of some sessions' rows."""
        return FrameCache(self.keys[:, rows], self.values[:, rows], self.written[rows])
