"""Attention among the patches of a frame, along time at one place, and to tokens of a prompt.

Legend: B batch, T frames, P patches of a frame, D width, H heads, E head width, N frames in the cache, W text tokens.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim.models.layers import Linear, RMSNorm
from worldsim.models.rope import Rotation, rotate

SPACE, TIME = "s", "t"


class TextKV(NamedTuple):
    """Keys, values (U, H, W, E) and mask (U, 1, 1, W) of U prompts, in one layer."""

    keys: Tensor
    values: Tensor
    mask: Tensor


class LayerCache(NamedTuple):
    """Frames before some new ones: keys, rotated by their age, and values, (B, N, P, H, E); bias of scores (B, N)."""

    keys: Tensor
    values: Tensor
    bias: Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention over (..., N, E); `mask` is bool and says which keys are seen.

    With so few keys, training through torch's flash attention takes two to three times as long as plain products on a
    CPU (tests/benchmarks/kernels.py).
    """
    if not (torch.is_grad_enabled() and query.device.type == "cpu"):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1).to(value.dtype) @ value


class Attention(nn.Module):
    """Self-attention along one axis, with RMS-normalised queries and keys (arXiv:2302.05442).

    Args:
        width: D, a multiple of `heads`.
        heads: H.
        along: "s", among the patches of each frame, or "t", along time at each place.
    """

    def __init__(self, width: int, heads: int, along: Literal["s", "t"]) -> None:
        """Build the projections."""
        super().__init__()
        self.heads, self.along = heads, along
        self.qkv = Linear(width, 3 * width, bias=False)
        self.norm = RMSNorm(2, 1, width // heads)  # of queries, of keys
        self.out = Linear(width, width)

    def forward(
        self, x: Tensor, rotation: Rotation, mask: Tensor | None = None, past: LayerCache | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """X (B, T, P, D) to (B, T, P, D).

        Args:
            x: tokens.
            rotation: of their positions along this axis, each (S, 1, 1, E).
            mask: which of them each sees, bool (S, S), or with a past (S, N + S); None is all.
            past: along time, frames before these.

        Returns:
            The tokens; their keys as if at time 0 and their values, for a cache, each (B, T, P, H, E).
        """
        if past is not None:
            return self._after(x, rotation, mask, past)
        if self.along == TIME:
            x = x.transpose(1, 2)  # (B, P, T, D)
        both, value = self._project(x)
        query, key = (part.flatten(0, 1).transpose(1, 2) for part in rotate(both, *rotation).unbind(3))  # (., H, S, E)
        out = attend(query, key, value.flatten(0, 1).transpose(1, 2), mask)
        out = self.out(out.transpose(1, 2).flatten(2).unflatten(0, x.shape[:2]))
        plain = both[:, :, :, 1]
        if self.along == TIME:
            return out.transpose(1, 2), plain.transpose(1, 2), value.transpose(1, 2)
        return out, plain, value

    def _after(
        self, x: Tensor, rotation: Rotation, mask: Tensor | None, past: LayerCache
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Frames that follow others, written out: operators are slow for one query, on a CPU three times as slow."""
        (both, value), frames = self._project(x), x.shape[1]
        key = both[:, :, :, 1]  # (B, T, P, H, E)
        if frames > 1:  # a frame alone is at time 0
            cos, sin = (part.unsqueeze(1) for part in rotation)  # (T, 1, 1, 1, E)
            query, turned = rotate(both, cos, sin).unbind(3)
        else:
            query, turned = both[:, :, :, 0], key
        scale = query.shape[-1] ** -0.5
        old = (query.unsqueeze(2) * past.keys.unsqueeze(1)).sum(dim=-1).float()  # (B, T, N, P, H)
        new = (query.unsqueeze(2) * turned.unsqueeze(1)).sum(dim=-1).float()  # (B, T, T, P, H)
        scores = torch.cat([old * scale + past.bias[:, None, :, None, None], new * scale], dim=2)
        if mask is not None:
            scores = scores.masked_fill(~mask[..., None, None], float("-inf"))
        weights = scores.softmax(dim=2).to(value.dtype).unsqueeze(-1)  # (B, T, N + T, P, H, 1)
        count = past.keys.shape[1]
        out = (weights[:, :, :count] * past.values.unsqueeze(1)).sum(dim=2)
        if frames > 1:
            out = out + (weights[:, :, count:] * value.unsqueeze(1)).sum(dim=2)
        else:
            out = out + weights[:, :, -1] * value
        return self.out(out.flatten(3)), key, value

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of x (B, X, S, D): queries and keys (B, X, S, 2, H, E), values (B, X, S, H, E)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        return self.norm(qkv[..., :2, :, :]), qkv[..., 2, :, :]


class CrossAttention(nn.Module):
    """Attention from patches to text tokens, or to others. A learned null token is always there to look at."""

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        """`text_width` is the width of the tokens."""
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width, bias=False)
        self.key_value = Linear(text_width, 2 * width, bias=False)
        self.null = nn.Parameter(torch.randn(text_width) * 0.02)
        self.out = Linear(width, width)
        self.query_norm = RMSNorm(width // heads)
        self.key_norm = RMSNorm(width // heads)

    def project(self, states: Tensor, mask: Tensor) -> TextKV:
        """Keys, values and mask, with the null token, of U sequences (U, W, text_width) with bool mask (U, W)."""
        null = self.null.to(states.dtype).expand(len(states), 1, -1)
        parts = self.key_value(torch.cat([null, states], dim=1)).unflatten(-1, (2, self.heads, -1))
        key, value = (part.transpose(1, 2) for part in parts.unbind(2))
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)[:, None, None]
        return TextKV(self.key_norm(key), value, mask)

    def forward(self, x: Tensor, text: TextKV) -> Tensor:
        """X (B, T, P, D) to (B, T, P, D); `text` is of what is in force at each frame, (B T, ...)."""
        lead = x.shape[:2]
        query = self.query_norm(self.query(x).flatten(0, 1).unflatten(-1, (self.heads, -1)))  # (B T, P, H, E)
        out = attend(query.transpose(1, 2), *text)
        return self.out(out.transpose(1, 2).flatten(2).unflatten(0, lead))
