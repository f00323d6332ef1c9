"""Modules whose rows do not depend on how many there are, and the copy of a model that has them.

Libraries choose kernels by the number of rows, and another kernel may add up in another order: in one of some hundred
thousand numbers the last bit then differs. So it does where an activation meets the last numbers of a tensor, which
are fewer than a vector register holds. In training that does not matter, so that the model has plain modules and an
engine swaps them on its own copy.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from worldsim.models.dit import DiT
from worldsim.models.layers import MLP, FrameLinear, Linear, NarrowLinear, SmallMLP, product

PADDED_ROWS = 64  # that a small network always computes
MORE_ROWS = 3  # that a wide linear of one vector a frame computes besides its own
NARROW = 128  # columns below which a product's kernel changes with its rows
VECTORS = 64  # numbers that activations are computed in whole groups of: two registers of the widest

Model = TypeVar("Model", bound=nn.Module)


class DoubleLinear(Linear):
    """A linear in double precision, where the order of a sum is far below what is kept."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  -- the name it has in torch
        """(..., in) to (..., out)."""
        bias = None if self.bias is None else self.bias.double()
        return product(input.double(), self.weight.double(), bias).to(input.dtype)


class PaddedLinear(Linear):
    """A linear with some rows of zeros after its own, as products of one to three rows have kernels of their own."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  -- the name it has in torch
        """(..., in) to (..., out)."""
        rows = input.reshape(-1, input.shape[-1])
        out = product(nn.functional.pad(rows, (0, 0, 0, MORE_ROWS)), self.weight, self.bias)[: rows.shape[0]]
        return out.view(*input.shape[:-1], out.shape[-1])


class PaddedMLP(SmallMLP):
    """A small network that always computes as many rows, those that are missing as zeros."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  -- the name it has in torch
        """(..., in) to (..., out)."""
        rows = input.reshape(-1, input.shape[-1])
        count = rows.shape[0]  # not len, which an exporter would take for a constant
        if count > PADDED_ROWS:
            return super().forward(input)
        out = super().forward(pad_rows(rows))[:count]
        return out.view(*input.shape[:-1], out.shape[-1])


class SplitMLP(MLP):
    """An MLP that adds up its long sum in parts.

    Some kernels choose the order of a long sum by the number of rows; short sums are the same for one session and for
    many.

    Attributes:
        split_k: in how many parts.
    """

    split_k = 1

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        ups = zip(self.up.weight.chunk(self.split_k), self.up.bias.chunk(self.split_k), strict=True)
        hidden = [product(x, weight, bias).relu_().square_() for weight, bias in ups]
        first, *others = zip(hidden, self.down.weight.chunk(self.split_k, dim=1), strict=True)
        out = product(*first, self.down.bias)
        for part, weight in others:
            out = out + product(part, weight)
        return out


class _WholeVectors(nn.Module):
    """An activation that computes all of its numbers by the same code."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  -- the name it has in torch
        """(B, ...) to the same."""
        return whole_vectors(super().forward, input)


# Those with an exponential; a ReLU is exact in any code.
ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.SiLU, nn.GELU, nn.Sigmoid, nn.Tanh, nn.ELU, nn.Mish, nn.Softplus)
_WHOLE: dict[type[nn.Module], type[nn.Module]] = {
    kind: type(f"Whole{kind.__name__}", (_WholeVectors, kind), {}) for kind in ACTIVATIONS
}


def whole_vectors(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an activation to rows (B, ...) of which each fills whole groups of numbers, with zeros after its own.

    Kernels compute the numbers beyond the last group one by one, with another exponential.
    """
    count = x.shape[1:].numel()
    if count % VECTORS == 0:
        return function(x)
    # Rows as they lie in memory, so that the result lies alike.
    last = x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    rows = x.movedim(1, -1) if last else x
    shape = rows.shape
    out = function(nn.functional.pad(rows.flatten(1), (0, -count % VECTORS)))[:, :count].contiguous().view(shape)
    return out.movedim(-1, 1) if last else out


def pad_rows(rows: Tensor) -> Tensor:
    """Rows (n, in) with zeros up to `PADDED_ROWS`."""
    return nn.functional.pad(rows, (0, 0, 0, PADDED_ROWS - rows.shape[0]))


def batch_invariant(model: Model) -> Model:
    """A copy of a dynamics model or an autoencoder with the modules above, without gradients; it shares no weights."""
    found = copy.deepcopy(model).requires_grad_(False)
    for module in found.modules():
        kind = _kind(module)
        if kind is not None:
            module.__class__ = kind  # the same weights, computed in another way
    return found


def set_split_k(dynamics: DiT, parts: int) -> None:
    """Let a copy add up its long sums in so many parts."""
    for module in dynamics.modules():
        if isinstance(module, SplitMLP):
            module.split_k = parts


def _kind(module: nn.Module) -> type[nn.Module] | None:
    if isinstance(module, NarrowLinear):
        return DoubleLinear
    if isinstance(module, FrameLinear):  # bfloat16 has one kernel for few rows
        return PaddedLinear if module.weight.dtype == torch.float32 else None
    if isinstance(module, SmallMLP):
        return PaddedMLP
    if isinstance(module, MLP):
        return SplitMLP
    if type(module) is Linear and module.out_features < NARROW:
        return DoubleLinear
    return _WHOLE.get(type(module))
