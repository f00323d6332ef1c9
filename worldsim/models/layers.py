"""Small pieces of the transformer.

Legend: B batch, T frames, P patches of a frame, D width, H heads, E head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LevelEmbedding(nn.Module):
    """A noise level in 0..1 as a vector: sinusoids through a small MLP (Ho et al. 2020, arXiv:2006.11239)."""

    frequencies: Tensor

    def __init__(self, width: int, bands: int = 32) -> None:
        """`bands` sinusoids from half a period to some hundred periods over 0..1."""
        super().__init__()
        self.register_buffer("frequencies", torch.exp(torch.linspace(0, math.log(200), bands)) * math.pi, False)
        self.mlp = nn.Sequential(nn.Linear(2 * bands, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma: Tensor) -> Tensor:
        """Levels (...,) to vectors (..., D)."""
        angles = sigma.float().unsqueeze(-1) * self.frequencies.float()
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))


class RMSNorm(nn.Module):
    """Root-mean-square normalisation in the dtype of its input, so that autocast keeps the fused kernel."""

    def __init__(self, width: int) -> None:
        """One learned scale per channel."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width)."""
        return nn.functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), 1e-6)


class MLP(nn.Module):
    """Two linears around a squared ReLU (So et al. 2021, arXiv:2109.08668), far cheaper on a CPU than a GELU."""

    def __init__(self, width: int, ratio: float) -> None:
        """A hidden layer of `ratio` times `width`."""
        super().__init__()
        self.up = nn.Linear(width, int(width * ratio))
        self.down = nn.Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return self.down(nn.functional.relu(self.up(x)).square())


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: x (B, T, P, D) with shift and scale (B, T, 1, D) (Peebles & Xie 2022, arXiv:2212.09748)."""
    return torch.addcmul(shift, x, 1 + scale)


def rope(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosine and sine of rotary angles (Su et al. 2021, arXiv:2104.09864).

    Args:
        positions: real coordinates (..., axes).
        width: head width E; each axis rotates E / axes of it.
        theta: slowest period.

    Returns:
        cos and sin, each (..., E / 2).
    """
    axes = positions.shape[-1]
    bands = width // (2 * axes)
    frequencies = theta ** (-torch.arange(bands, dtype=torch.float32, device=positions.device) / bands)
    angles = (positions.float().unsqueeze(-1) * frequencies).flatten(-2)  # (..., axes * bands)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs of x (..., E) by angles whose cos and sin (..., E / 2) broadcast against it."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype), sin.to(x.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
