"""Which frames see which, as bool tensors (T, T): row by row what a frame sees."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from worldsim.errors import ConfigError

Mask = Literal["causal", "full"] | Tensor


def block_causal(frames: int, block: int, device: torch.device | str | None = None) -> Tensor:
    """Frames see those of their own block of `block` frames, and those before it."""
    at = torch.arange(frames, device=device) // block
    return at <= at.unsqueeze(1)


def documents(ids: Tensor) -> Tensor:
    """Frames see those of the same clip, by the clips' ids (T,): several clips in one row."""
    return ids == ids.unsqueeze(1)


def time_mask(mask: Mask, frames: int, context: int, device: torch.device, cached: int | None = None) -> Tensor | None:
    """Which of `cached` frames and of one another some frames see, bool (T, N + T); None lets all see all.

    Raises:
        ConfigError: a name or a shape that is no mask.
    """
    if isinstance(mask, Tensor):
        if mask.shape != (frames, frames) or mask.dtype != torch.bool:
            raise ConfigError(f"the mask is {mask.dtype} {tuple(mask.shape)}; allowed: bool ({frames}, {frames}).")
        past = torch.ones(frames, cached or 0, dtype=torch.bool, device=device)
        return torch.cat([past, mask.to(device)], dim=1)
    if mask not in ("causal", "full"):
        raise ConfigError(f"the mask is {mask!r}; allowed: 'causal', 'full', or a bool tensor ({frames}, {frames}).")
    if mask == "full" or (cached is not None and frames == 1):  # one frame sees itself and all that the cache has
        return None
    times = torch.arange(frames, device=device)
    ages = times.unsqueeze(1) - torch.arange(-(cached or 0), frames, device=device)
    return (ages >= 0) & (ages <= context)  # a frame remembers as many in a segment as it does in play
