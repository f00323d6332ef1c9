"""The three kinds of attention: among the patches of a frame, along time at one place, and to the words of a prompt.

Legend: B batch, T frames, P patches of a frame, D width, H heads, E head width, N frames in the cache, W words.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from worldsim.models.cache import FrameCache
from worldsim.models.layers import RMSNorm, rope, rotate

TIME_THETA = 100.0  # slowest period of time positions, in frames; caches are tens of frames long


class SelfAttention(nn.Module):
    """Projections shared by space and time attention, with RMS-normalised queries and keys (arXiv:2302.05442)."""

    def __init__(self, width: int, heads: int) -> None:
        """`width` must be a multiple of `heads`."""
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width)
        self.query_norm = RMSNorm(width // heads)
        self.key_norm = RMSNorm(width // heads)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of x (B, T, P, D), each (B, T, P, H, E)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        return self.query_norm(query), self.key_norm(key), value


class SpaceAttention(SelfAttention):
    """Attention among the patches of each frame."""

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
        """X (B, T, P, D) to (B, T, P, D); `turn` is the cos and sin of the patches' places, each (P, E / 2)."""
        batch, frames = x.shape[:2]
        query, key, value = (part.flatten(0, 1).transpose(1, 2) for part in self.project(x))  # (B T, H, P, E)
        out = scaled_dot_product_attention(rotate(query, *turn), rotate(key, *turn), value)
        return self.out(out.transpose(1, 2).flatten(2).unflatten(0, (batch, frames)))


class TimeAttention(SelfAttention):
    """Attention along time, each place of the frame for itself; causal or in both directions."""

    def forward(
        self, x: Tensor, cache: FrameCache | None, layer: int, *, causal: bool = True, write: bool = False
    ) -> Tensor:
        """X (B, T, P, D) to (B, T, P, D).

        Args:
            x: the frames.
            cache: earlier frames, which every frame of x may see, or None.
            layer: which time layer of the cache this is.
            causal: whether a frame sees only itself and earlier ones.
            write: put the (single) frame of x into the cache.
        """
        batch, frames, patches = x.shape[:3]
        query, key, value = (part.permute(0, 2, 3, 1, 4) for part in self.project(x))  # (B, P, H, T, E)
        unturned = key
        width = query.shape[-1]
        times = torch.arange(frames, device=x.device)
        turn = rope(times.unsqueeze(-1), width, TIME_THETA)  # (T, E / 2)
        query, key = rotate(query, *turn), rotate(key, *turn)
        seen = times.unsqueeze(1) >= times if causal else torch.ones(frames, frames, dtype=torch.bool, device=x.device)
        mask = seen  # (T, T)
        if cache is not None:
            ages = cache.ages().to(x.device)  # (B, N)
            cos, sin = rope(-ages.unsqueeze(-1), width, TIME_THETA)  # (B, N, E / 2)
            old = rotate(cache.keys[layer].to(key.dtype), cos[:, None, None], sin[:, None, None])
            key = torch.cat([old, key], dim=3)  # (B, P, H, N + T, E)
            own = value
            value = torch.cat([cache.values[layer].to(value.dtype), value], dim=3)
            if write:  # only now: the frame that leaves the ring is still seen by this one
                cache.write(layer, unturned[:, :, :, 0], own[:, :, :, 0])
            known = (ages <= cache.frames).unsqueeze(1).expand(-1, frames, -1)  # (B, T, N)
            mask = torch.cat([known, seen.expand(batch, -1, -1)], dim=-1)  # (B, T, N + T)
            mask = mask[:, None, None].expand(-1, patches, 1, -1, -1).flatten(0, 1)  # (B P, 1, T, N + T)
        out = scaled_dot_product_attention(query.flatten(0, 1), key.flatten(0, 1), value.flatten(0, 1), attn_mask=mask)
        return self.out(out.unflatten(0, (batch, patches)).permute(0, 3, 1, 2, 4).flatten(3))  # (B, T, P, D)


class TextAttention(nn.Module):
    """Cross-attention from patches to the words of a prompt. A learned null word is always there to look at."""

    def __init__(self, width: int, heads: int, text_width: int) -> None:
        """`text_width` is the width of the text encoder's states."""
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(text_width, 2 * width, bias=False)
        self.null = nn.Parameter(torch.randn(text_width) * 0.02)
        self.out = nn.Linear(width, width)
        self.query_norm = RMSNorm(width // heads)
        self.key_norm = RMSNorm(width // heads)

    def words(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values (U, H, W + 1, E) and mask (U, 1, 1, W + 1) of U prompts' states (U, W, text_width)."""
        null = self.null.to(states.dtype).expand(len(states), 1, -1)
        parts = self.key_value(torch.cat([null, states], dim=1)).unflatten(-1, (2, self.heads, -1))
        key, value = (part.transpose(1, 2) for part in parts.unbind(2))
        mask = torch.cat([torch.ones_like(mask[:, :1]), mask], dim=1)[:, None, None]
        return self.key_norm(key), value, mask

    def forward(self, x: Tensor, words: tuple[Tensor, Tensor, Tensor], index: Tensor) -> Tensor:
        """X (B, T, P, D) to (B, T, P, D); `index` (B, T) says which of the prompts is in force at each frame."""
        lead = x.shape[:2]
        query = self.query_norm(self.query(x).flatten(0, 1).unflatten(-1, (self.heads, -1)))  # (B T, P, H, E)
        key, value, mask = (part[index.flatten()] for part in words)
        out = scaled_dot_product_attention(query.transpose(1, 2), key, value, attn_mask=mask)
        return self.out(out.transpose(1, 2).flatten(2).unflatten(0, lead))
