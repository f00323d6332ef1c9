"""The three kinds of attention: among the patches of a frame, along time at one place, and to the words of a prompt.

Legend: B batch, T frames, P patches of a frame, D width, H heads, E head width, N frames in the cache, W words.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim.models.layers import Linear, RMSNorm, rotate

Words = tuple[Tensor, Tensor, Tensor]
"""Keys, values and mask of prompts, in one layer."""


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


class SelfAttention(nn.Module):
    """Projections shared by space and time attention, with RMS-normalised queries and keys (arXiv:2302.05442)."""

    def __init__(self, width: int, heads: int) -> None:
        """`width` must be a multiple of `heads`."""
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width, bias=False)
        self.norm = RMSNorm(2, 1, width // heads)  # of queries, of keys
        self.out = Linear(width, width)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of x (B, T, P, D): queries and keys (B, T, P, 2, H, E), values (B, T, P, H, E)."""
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        return self.norm(qkv[..., :2, :, :]), qkv[..., 2, :, :]


class SpaceAttention(SelfAttention):
    """Attention among the patches of each frame."""

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """X (B, T, P, D) to (B, T, P, D); `turn` is the cos and sin of the patches' places, each (P, 1, 1, E)."""
        batch, frames = x.shape[:2]
        both, value = self.project(x)
        query, key = (part.flatten(0, 1).transpose(1, 2) for part in rotate(both, *turn).unbind(3))  # (B T, H, P, E)
        out = attend(query, key, value.flatten(0, 1).transpose(1, 2))
        return self.out(out.transpose(1, 2).flatten(2).unflatten(0, (batch, frames)))


class TimeAttention(SelfAttention):
    """Attention along time, each place of the frame for itself: `forward` over a window, `step` for a frame alone."""

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """X (B, T, P, D) to (B, T, P, D).

        Args:
            x: the frames.
            turn: cos and sin of the frames' times, each (T, 1, 1, 1, E).
            mask: which frames each frame sees, bool (T, T).
        """
        batch, _, patches = x.shape[:3]
        both, value = self.project(x)
        query, key = (part.permute(0, 2, 3, 1, 4).flatten(0, 1) for part in rotate(both, *turn).unbind(3))
        out = attend(query, key, value.permute(0, 2, 3, 1, 4).flatten(0, 1), mask)  # (B P, H, T, E)
        return self.out(out.unflatten(0, (batch, patches)).permute(0, 3, 1, 2, 4).flatten(3))  # (B, T, P, D)

    def step(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One frame x (B, 1, P, D), which sees the frames before it and itself.

        Written out, as attention operators are slow for one query: on a CPU this takes a third of the time.

        Args:
            x: the frame.
            keys: of the frames before it, turned by their age, (B, N, P, H, E).
            values: of these, (B, N, P, H, E).
            bias: added to their scores, 0 or -inf, (B, N).

        Returns:
            The frame (B, 1, P, D), and its own key, as if at time 0, and value, each (B, P, H, E).
        """
        both, value = (part.squeeze(1) for part in self.project(x))
        query, key = both.unbind(2)  # (B, P, H, E)
        past = (query.unsqueeze(1) * keys).sum(dim=-1).float()  # (B, N, P, H)
        own = (query * key).sum(dim=-1).float().unsqueeze(1)
        scores = torch.cat([past * query.shape[-1] ** -0.5 + bias[..., None, None], own * query.shape[-1] ** -0.5], 1)
        weights = scores.softmax(dim=1).to(value.dtype).unsqueeze(-1)  # (B, N + 1, P, H, 1)
        out = (weights[:, :-1] * values).sum(dim=1) + weights[:, -1] * value
        return self.out(out.flatten(2).unsqueeze(1)), key, value


class TextAttention(nn.Module):
    """Cross-attention from patches to the words of a prompt. A learned null word is always there to look at."""

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        """`text_width` is the width of the text encoder's states."""
        super().__init__()
        self.heads = heads
        self.query = Linear(width, width, bias=False)
        self.key_value = Linear(text_width, 2 * width, bias=False)
        self.null = nn.Parameter(torch.randn(text_width) * 0.02)
        self.out = Linear(width, width)
        self.query_norm = RMSNorm(width // heads)
        self.key_norm = RMSNorm(width // heads)

    def words(self, states: Tensor, mask: Tensor) -> Words:
        """Keys, values (U, H, W + 1, E) and mask (U, 1, 1, W + 1) of U prompts' states (U, W, text_width)."""
        null = self.null.to(states.dtype).expand(len(states), 1, -1)
        parts = self.key_value(torch.cat([null, states], dim=1)).unflatten(-1, (2, self.heads, -1))
        key, value = (part.transpose(1, 2) for part in parts.unbind(2))
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)[:, None, None]
        return self.key_norm(key), value, mask

    def forward(self, x: Tensor, words: Words) -> Tensor:
        """X (B, T, P, D) to (B, T, P, D); `words` are those in force at each frame, (B T, ...)."""
        lead = x.shape[:2]
        query = self.query_norm(self.query(x).flatten(0, 1).unflatten(-1, (self.heads, -1)))  # (B T, P, H, E)
        out = attend(query.transpose(1, 2), *words)
        return self.out(out.transpose(1, 2).flatten(2).unflatten(0, lead))
