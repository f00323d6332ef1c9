"""Small pieces of the transformer.

Legend: B batch, T frames, P patches of a frame, D width.
"""

from __future__ import annotations

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


class NarrowLinear(Linear):
    """A linear with few columns; `engine.batch_invariance` computes it otherwise."""


class FrameLinear(Linear):
    """A linear of one vector a frame; `engine.batch_invariance` computes it otherwise."""


class SmallMLP(nn.Sequential):
    """A small network of one vector a frame; `engine.batch_invariance` computes it otherwise."""


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
    """Two linears around a squared ReLU (So et al. 2021, arXiv:2109.08668), far cheaper on a CPU than a GELU."""

    def __init__(self, width: int, ratio: float) -> None:
        """A hidden layer of `ratio` times `width`."""
        super().__init__()
        self.up = Linear(width, int(width * ratio))
        self.down = Linear(int(width * ratio), width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        if torch.is_grad_enabled():
            return self.down(SquaredReLU.apply(self.up(x)))
        return self.down(self.up(x).relu_().square_())


def norm(x: Tensor) -> Tensor:
    """Layer norm of (..., D) without learned scales, as adaLN brings them."""
    return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """adaLN: x (B, T, P, D) with shift and scale (B, T, 1, D) (Peebles & Xie 2022, arXiv:2212.09748)."""
    return torch.addcmul(shift, x, 1 + scale)
