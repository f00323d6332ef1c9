"""When a world says that an episode is over: one rule for environments and measures."""

from __future__ import annotations

from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:  # an environment of a remote engine needs no torch
    from torch import Tensor

THRESHOLD = 0.5  # of the learned probability


@overload
def has_ended(probability: float) -> bool: ...
@overload
def has_ended(probability: Tensor) -> Tensor: ...
def has_ended(probability: float | Tensor) -> bool | Tensor:
    """Whether a learned probability of the end, 0..1, or each of a tensor of them, ends the episode."""
    return probability > THRESHOLD
