"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in space and in time.

Legend: T frames, P patches of a frame, E head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

SPACE_THETA = 100.0  # slowest period of patch positions, in latents
TIME_THETA = 100.0  # the same of times, in frames; caches are tens of frames long

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine of the angles of some positions."""


def rope(positions: Tensor, width: int, theta: float) -> Rotation:
    """Cosine and sine of rotary angles.

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


def space_rotation(size: tuple[int, int], patch: tuple[int, int], width: int, device: torch.device) -> Rotation:
    """The rotation of the patches of a frame of latents (h, w), each (P, 1, 1, E) for `Attention`."""
    return _kept(_space, size, patch, width, device)


def time_rotation(first: int, last: int, width: int, device: torch.device) -> Rotation:
    """The rotation of frames at times `first` to `last` - 1, each (T, 1, 1, E) for `Attention`."""
    return _kept(_time, first, last, width, device)


def _space(size: tuple[int, int], patch: tuple[int, int], width: int, device: torch.device) -> Rotation:
    rows = torch.arange(size[0] // patch[0], device=device) * patch[0]
    columns = torch.arange(size[1] // patch[1], device=device) * patch[1]
    cos, sin = rope(torch.cartesian_prod(rows, columns).float(), width, SPACE_THETA)  # (P, E)
    return cos[:, None, None], sin[:, None, None]


def _time(first: int, last: int, width: int, device: torch.device) -> Rotation:
    cos, sin = rope(torch.arange(first, last, device=device).unsqueeze(-1), width, TIME_THETA)  # (T, E)
    return cos[:, None, None], sin[:, None, None]


@functools.lru_cache(maxsize=256)
def _filled(call: Callable[..., Rotation], *args: object) -> Rotation:
    with torch.inference_mode(False):  # training could not use what was made in that mode
        return call(*args)


def _kept(call: Callable[..., Rotation], *args: object) -> Rotation:
    """The same from a table, but where a graph is traced, whose tensors are not real."""
    traced = torch.compiler.is_compiling() or torch.compiler.is_exporting()
    return call(*args) if traced or _get_current_dispatch_mode() is not None else _filled(call, *args)
