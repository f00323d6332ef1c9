"""Noise from a counter, never from a global generator: the same (seed, step, draw) is the same noise, anywhere.

Philox is counter-based (Salmon et al. 2011, doi:10.1145/2063384.2063405): a session needs no generator state.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

# Draws: where sampling begins, what is mixed into the history, noise of all places, whether an episode ends.
SAMPLE, HISTORY, SHARED, END = 0, 1, 2, 3
NEVER = 0.001  # a learned probability below is as good as none: it would end a thousand good steps by chance


def keyed_noise(seeds: list[int], steps: Tensor, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise (B, *shape), row b from (seeds[b], steps[b], draw)."""
    rows = np.empty((len(seeds), *shape), np.float32)
    for row, (seed, step) in enumerate(zip(seeds, steps.tolist(), strict=True)):
        # Rows have a counter range of 2^64 blocks each; a draw uses some thousand.
        bits = np.random.Philox(key=seed % 2**128, counter=[0, draw, step, 0])
        np.random.Generator(bits).standard_normal(out=rows[row], dtype=np.float32)
    return torch.from_numpy(rows)


def draw_end(probability: float, seed: int, step: int) -> bool:
    """Whether an episode ends with the frame of `step`, with this probability (below `NEVER`: it does not).

    The end of many games cannot be seen coming, such as that of a player who slowly loses health: there the probability
    stays far below a half at every step, and only a draw ends an episode as often as in the game.
    """
    if probability < NEVER:
        return False
    bits = np.random.Philox(key=seed % 2**128, counter=[0, END, step, 0])
    return bool(np.random.Generator(bits).random() < probability)
