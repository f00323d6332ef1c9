"""Noise from a counter, never from a global generator: the same (seed, step, draw) is the same noise, anywhere.

Philox is counter-based (Salmon et al. 2011, doi:10.1145/2063384.2063405): a session needs no generator state.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SAMPLE, HISTORY, SHARED = 0, 1, 2  # draws: where sampling begins, what is mixed into the history, noise of all places


def keyed_noise(seeds: list[int], steps: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (B, *shape), row b from (seeds[b], steps[b], draw)."""
    rows = np.empty((len(seeds), *shape), np.float32)
    for row, (seed, step) in enumerate(zip(seeds, steps.tolist(), strict=True)):
        # Rows have a counter range of 2^64 blocks each; a draw uses some thousand.
        bits = np.random.Philox(key=seed % 2**128, counter=[0, draw, step, 0])
        np.random.Generator(bits).standard_normal(out=rows[row], dtype=np.float32)
    return torch.from_numpy(rows)
