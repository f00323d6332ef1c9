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


def time_mask(mask: Mask, frames: int, context: int, device: torch.device) -> Tensor | None:
    """The mask of frames among themselves; None lets all see all.

    Raises:
        ConfigError: a name or a shape that is no mask.
    """
    if isinstance(mask, Tensor):
        if mask.shape != (frames, frames) or mask.dtype != torch.bool:
            raise ConfigError(f"the mask is {mask.dtype} {tuple(mask.shape)}; allowed: bool ({frames}, {frames}).")
        return mask.to(device)
    if mask == "full":
        return None
    if mask != "causal":
        raise ConfigError(f"the mask is {mask!r}; allowed: 'causal', 'full', or a bool tensor ({frames}, {frames}).")
    times = torch.arange(frames, device=device)
    ages = times.unsqueeze(1) - times  # a frame remembers as many in a segment as it does in play
    return (ages >= 0) & (ages <= context)


def cached_mask(mask: Mask, frames: int, cached: int, context: int, device: torch.device) -> Tensor | None:
    """The mask (T, N + T) of frames that follow `cached` ones; None where all see all."""
    own = time_mask(mask, frames, context, device)
    if frames == 1 or own is None:  # one frame sees itself and all that the cache has
        return None
    past = torch.ones(frames, cached, dtype=torch.bool, device=device)
    if isinstance(mask, str):
        ages = torch.arange(frames, device=device).unsqueeze(1) + torch.arange(cached, 0, -1, device=device)
        past = ages <= context
    return torch.cat([past, own], dim=1)
