"""Reward as a distribution over fixed bins, two-hot on a symmetric logarithm (Hafner et al. 2023, arXiv:2301.04104).

A regression would predict the mean of rare large rewards with a loss that drowns the small ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldsim.models.dit import REWARD_BINS

LIMIT = 6.0  # the outermost bins, symlog(x) = 6 or |x| = 402


def _symlog(x: Tensor) -> Tensor:
    return x.sign() * x.abs().log1p()


def reward_targets(reward: Tensor) -> Tensor:
    """Rewards (...) as two-hot probabilities (..., REWARD_BINS)."""
    place = (_symlog(reward.float()).clamp(-LIMIT, LIMIT) + LIMIT) / (2 * LIMIT) * (REWARD_BINS - 1)
    low = place.floor().clamp(max=REWARD_BINS - 2)
    part = (place - low).unsqueeze(-1)
    bins = torch.arange(REWARD_BINS, device=reward.device)
    return (bins == low.unsqueeze(-1)) * (1 - part) + (bins == low.unsqueeze(-1) + 1) * part


def reward_mean(logits: Tensor) -> Tensor:
    """The expected reward (...) under logits (..., REWARD_BINS)."""
    place = torch.linspace(-LIMIT, LIMIT, REWARD_BINS, device=logits.device)
    values = place.sign() * place.abs().expm1()
    return (logits.float().softmax(dim=-1) * values).sum(dim=-1)


def reward_loss(logits: Tensor, reward: Tensor) -> Tensor:
    """Cross-entropy of each reward, (...)."""
    return -(reward_targets(reward) * logits.float().log_softmax(dim=-1)).sum(dim=-1)
