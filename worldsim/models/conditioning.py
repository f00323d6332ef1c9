"""What the dynamics are conditioned on: noise level, actions, history, text, and inputs that few worlds have.

Legend: B batch, T frames, K history frames, A action history, C h w latent, P patches of a frame, D width, U distinct
prompts, W text tokens, M memory tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from worldsim.models.attention import TextKV
from worldsim.models.layers import Linear, SmallMLP
from worldsim.models.patch import patchify
from worldsim.types import TextContext

if TYPE_CHECKING:
    from worldsim.models.dit import DiT


@dataclass
class ContextInputs:
    """What frames are predicted from, besides themselves.

    Attributes:
        actions: the last A flattened actions up to the one that led to the frame, oldest first, (B, T, A, action_size).
        action_mask: which of these exist, (B, T, A) of 0 or 1.
        text: the prompts in force; or what `text_kv` made of one prompt for each row, with T = 1.
        previous: the frame before each without any noise, the base of the output, (B, T, C, h, w).
        previous_mask: whether there is one, (B, T) of 0 or 1.
        history: the previous K frames of each frame, oldest first, (B, T, K, C, h, w), where the model has such.
        history_mask: which of them exist, (B, T, K) of 0 or 1; where 0 the history is ignored.
        history_sigma: the noise level that was mixed into the history, (B, T), or (1, T) for all rows alike.
        camera: (B, T, camera_size), where the model has such.
        image: the embedding of a picture of what is wanted, (B, T, image_width), where the model has such.
        memory: tokens of old frames, (B, M, memory_width), where the model has such.
    """

    actions: Tensor
    action_mask: Tensor
    text: TextContext | list[TextKV | None]
    previous: Tensor
    previous_mask: Tensor
    history: Tensor | None = None
    history_mask: Tensor | None = None
    history_sigma: Tensor | None = None
    camera: Tensor | None = None
    image: Tensor | None = None
    memory: Tensor | None = None


@dataclass
class Context:
    """The conditions of frames as `DiT.encode_context` encodes them; whatever the noise level, they are the same.

    Attributes:
        frame: what modulates each frame, (B, T, D).
        text: of each layer that looks at the prompt, its keys and values at each frame, (B T, ...).
        previous: the frame before each, (B, T, C, h, w).
        previous_mask: whether there is one, (B, T) of 0 or 1.
        tokens: what the history adds to each token, (B, T, P, D).
        memory: keys and values of the memory tokens, of each layer that reads them.
    """

    frame: Tensor
    text: list[TextKV | None]
    previous: Tensor
    previous_mask: Tensor
    tokens: Tensor | None = None
    memory: list[TextKV | None] | None = None


class SigmaEmbedder(nn.Module):
    """A noise level in 0..1 as a vector: sinusoids through a small MLP (Ho et al. 2020, arXiv:2006.11239)."""

    def __init__(self, width: int, bands: int = 32) -> None:
        """`bands` sinusoids from half a period to some hundred periods over 0..1."""
        super().__init__()
        self.bands = bands
        self.mlp = nn.Sequential(nn.Linear(2 * bands, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma: Tensor) -> Tensor:
        """Noise levels (...,) to vectors (..., D)."""
        # Not a buffer, which would be rounded with the weights: the fastest waves have hundreds of periods.
        frequencies = torch.exp(torch.linspace(0, math.log(200), self.bands, device=sigma.device)) * math.pi
        angles = sigma.float().unsqueeze(-1) * frequencies
        waves = torch.cat([angles.cos(), angles.sin()], dim=-1)
        return self.mlp(waves.to(next(self.mlp.parameters()).dtype))


class ActionEmbedder(nn.Module):
    """The last actions as a vector."""

    def __init__(self, history: int, size: int, width: int) -> None:
        """`history` actions of `size` numbers each, and whether each exists."""
        super().__init__()
        self.mlp = SmallMLP(nn.Linear(history * (size + 1), width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, actions: Tensor, mask: Tensor) -> Tensor:
        """Actions (B, T, A, action_size) and their mask (B, T, A) to (B, T, D)."""
        mask = mask.unsqueeze(-1)
        flat = torch.cat([actions * mask, mask.expand_as(actions[..., :1])], dim=-1).flatten(-2)
        return self.mlp(flat.to(next(self.mlp.parameters()).dtype))


class HistoryEmbedder(nn.Module):
    """The previous frames at each patch's own place, as extra channels: local evidence for local change.

    As in DIAMOND (Alonso et al. 2024, arXiv:2405.12399), lightly noised; attention along time remembers further back.
    """

    def __init__(self, frames: int, channels: int, patch: tuple[int, int, int], width: int) -> None:
        """`frames` frames of `channels` channels, in patches."""
        super().__init__()
        self.patch = (1, *patch[1:])
        self.tokens = Linear(frames * channels * patch[1] * patch[2] + frames, width, bias=False)
        self.sigma = SigmaEmbedder(width)

    def forward(self, history: Tensor, mask: Tensor) -> Tensor:
        """The history (B, T, K, C, h, w) where it exists, (B, T, K), to (B, T, P, D)."""
        known = patchify((history * mask[..., None, None, None]).flatten(2, 3), self.patch)  # (B, T, P, K C ph pw)
        exists = mask.unsqueeze(2).expand(*known.shape[:3], -1)
        return self.tokens(torch.cat([known, exists], dim=-1).to(self.tokens.weight.dtype))


def at_frames(projected: TextKV, index: Tensor) -> TextKV:
    """Of U prompts, the one in force at each frame, `index` (B, T): (B T, ...)."""
    return TextKV(*(part[index.flatten()] for part in projected))


def every_frame(projected: TextKV, frames: int) -> TextKV:
    """Of B sequences, each in force at all of a row's frames: (B T, ...)."""
    return TextKV(*(part.repeat_interleave(frames, dim=0) for part in projected))


def text_kv(dit: DiT, states: Tensor, mask: Tensor, reader: str = "text") -> list[TextKV | None]:
    """Each layer's keys and values of token sequences; they depend on nothing else and can be kept.

    Args:
        dit: the model.
        states: of U prompts, (U, W, text_width), or memory tokens.
        mask: which tokens exist, bool (U, W).
        reader: "text" or "memory".
    """
    readers = [getattr(block, reader) for block in dit.blocks]
    return [None if one is None else one.project(states.to(dit.dtype), mask) for one in readers]


def optional(size: int, width: int) -> Linear | None:
    """An embedder of an extra input of `size` numbers or None where the model has none."""
    return Linear(size, width, bias=False) if size else None
