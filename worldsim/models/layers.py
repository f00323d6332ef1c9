"""Small pieces of the transformer.

Legend: B batch, T frames, P patches of a frame, D width, H heads, E head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Linear(nn.Linear):
    """A linear that sees its rows as one long list, whatever axes they have: compilers know only that well."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  -- the name it has in torch
        """(..., in) to (..., out)."""
        return product(input, self.weight, self.bias)


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The rows of x (..., in) times weight (out, in), plus bias (out,): (..., out)."""
    return nn.functional.linear(x.reshape(-1, x.shape[-1]), weight, bias).view(*x.shape[:-1], len(weight))


class OutLinear(Linear):
    """A small linear whose rows do not depend on how many there are: the last step before numbers that must be equal.

    Few columns make a kernel that changes with the number of rows, and with it the order of the sum and, in one of some
    hundred thousand numbers, the last bit. In double precision that is far below what is kept. In training it does not
    matter.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  -- the name it has in torch
        """(..., in) to (..., out)."""
        if torch.is_grad_enabled():
            return super().forward(input)
        bias = None if self.bias is None else self.bias.double()
        return product(input.double(), self.weight.double(), bias).to(input.dtype)


FIXED_ROWS = 64  # that `in_fixed_rows` fills up to


def in_fixed_rows(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Run a small network over rows x (..., in) among always as many rows, the others zero.

    One vector a session makes products of few rows, for which kernels change with their number, and with the kernel, in
    one of some hundred thousand numbers, the last bit (`engine.batch_invariance`). In training it does not matter.
    """
    rows = x.reshape(-1, x.shape[-1])
    count = rows.shape[0]  # not len, which an exporter would take for a constant
    if torch.is_grad_enabled() or count > FIXED_ROWS:
        return call(x)
    out = call(nn.functional.pad(rows, (0, 0, 0, FIXED_ROWS - count)))[:count]
    return out.view(*x.shape[:-1], out.shape[-1])


class SigmaEmbedder(nn.Module):
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
    """Root-mean-square normalisation of the last axis, with learned scales of any shape that broadcasts.

    Written out, as torch's own takes one scale for queries and keys alike, and a fifth longer to train on a CPU.
    """

    def __init__(self, *shape: int) -> None:
        """`shape` is that of the scales; its last number is the width of what is normalised."""
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*shape))

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) to (..., width), in the dtype of the input also under autocast."""
        if not torch.is_grad_enabled():  # in one precision, which compiles to one loop
            wide = x.float()
            scale = wide.square().mean(dim=-1, keepdim=True).clamp(min=1e-12).rsqrt()
            return (wide * scale * self.weight.float()).to(x.dtype)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-6).to(x.dtype)
        return x / norm * (self.weight * x.shape[-1] ** 0.5).to(x.dtype)


class SquaredReLU(torch.autograd.Function):
    """max(x, 0)^2, with a backward pass of two operators where torch's own takes six."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Keep the positive part; it is zero where the slope is."""
        positive = x.relu()
        ctx.save_for_backward(positive)
        return positive * positive

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """2 max(x, 0) times the gradient."""
        (positive,) = ctx.saved_tensors
        return (grads[0] * positive).mul_(2)


class MLP(nn.Module):
    """Two linears around a squared ReLU (So et al. 2021, arXiv:2109.08668), far cheaper on a CPU than a GELU.

    Attributes:
        parts: in how many parts the second product is summed up. Some kernels choose the order of a long sum by the
            number of rows; short sums are the same for one session and for many (`engine.batch_invariance` finds out).
    """

    def __init__(self, width: int, ratio: float) -> None:
        """A hidden layer of `ratio` times `width`."""
        super().__init__()
        self.parts = 1
        self.up = Linear(width, int(width * ratio))
        self.down = Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        if torch.is_grad_enabled():
            return self.down(SquaredReLU.apply(self.up(x)))
        ups = zip(self.up.weight.chunk(self.parts), self.up.bias.chunk(self.parts), strict=True)
        hidden = [product(x, weight, bias).relu_().square_() for weight, bias in ups]
        first, *others = zip(hidden, self.down.weight.chunk(self.parts, dim=1), strict=True)
        out = product(*first, self.down.bias)
        for part, weight in others:
            out = out + product(part, weight)
        return out


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
        cos and sin for `rotate`, each (..., E); the sin of the first half is negative.
    """
    axes = positions.shape[-1]
    bands = width // (2 * axes)
    frequencies = theta ** (-torch.arange(bands, dtype=torch.float32, device=positions.device) / bands)
    angles = (positions.float().unsqueeze(-1) * frequencies).flatten(-2)  # (..., axes * bands)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + E / 2) of x (..., E) by angles from `rope`, which must broadcast against it."""
    if not torch.is_grad_enabled():  # in halves: compiled, a roll is slow
        (a, b), (cos_a, cos_b), (sin_a, sin_b) = (part.chunk(2, -1) for part in (x, cos.to(x.dtype), sin.to(x.dtype)))
        return torch.cat([a * cos_a + b * sin_a, b * cos_b + a * sin_b], dim=-1)
    return torch.addcmul(x * cos.to(x.dtype), x.roll(x.shape[-1] // 2, -1), sin.to(x.dtype))
