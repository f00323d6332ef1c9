"""Reward and termination of a frame, read from the tokens of its pass.

Reward is a distribution over fixed bins, two-hot on a symmetric logarithm (Hafner et al. 2023, arXiv:2301.04104): a
regression would predict the mean of rare large rewards with a loss that drowns the small ones.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from worldsim.models.layers import SmallMLP

REWARD_BINS = 41
LIMIT = 6.0  # the outermost bins, symlog(x) = 6 or |x| = 402


class Heads(nn.Module):
    """Two small MLPs on the mean and the maximum of a frame's tokens.

    Args:
        width: D of the tokens.
        frames: how many frames a frame of tokens stands for.
    """

    def __init__(self, width: int, frames: int = 1) -> None:
        """Build the MLPs."""
        super().__init__()
        self.frames = frames
        self.reward = SmallMLP(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, frames * REWARD_BINS))
        self.termination = SmallMLP(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, frames))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, P, D) to logits of rewards (B, T frames, REWARD_BINS) and of termination (B, T frames)."""
        pooled = torch.cat([features.mean(dim=2), features.amax(dim=2)], dim=-1)  # (B, T, 2 D)
        reward = self.reward(pooled).unflatten(-1, (self.frames, REWARD_BINS)).flatten(1, 2)
        return reward, self.termination(pooled).flatten(1, 2)


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
