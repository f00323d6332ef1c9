"""What the dynamics are given, keep between passes, and say of each frame.

Legend: B batch, T frames, K history frames, A action history, C h w latent, P patches of a frame, D width, N frames in
the cache, L time layers, H heads, E head width, U distinct prompts, W words.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from worldsim.models.attention import Words


@dataclass
class Conditions:
    """What the frames are predicted from.

    Attributes:
        history: the previous K frames of each frame, oldest first, (B, T, K, C, h, w).
        newest: the last of them without any noise, the base of the output, (B, T, C, h, w).
        present: which of them exist, (B, T, K) of 0 or 1; where 0 the history is ignored.
        history_sigma: the noise level that was mixed into the history, (B, T).
        actions: the last A flattened actions up to the one that led to the frame, oldest first, (B, T, A, action_size).
        known: which of these actions exist, (B, T, A) of 0 or 1.
        text: states of the distinct prompts, (U, W, text_width).
        text_mask: which words exist, bool (U, W).
        prompt_index: which prompt is in force at each frame, (B, T).
    """

    history: Tensor
    newest: Tensor
    present: Tensor
    history_sigma: Tensor
    actions: Tensor
    known: Tensor
    text: Tensor
    text_mask: Tensor
    prompt_index: Tensor


@dataclass
class Prediction:
    """What the dynamics says of each frame.

    Attributes:
        latents: the clean latents, (B, T, C, h, w).
        reward: logits over the reward bins (see `heads`), (B, T, REWARD_BINS).
        ended: logit that the episode terminated at the frame, (B, T).
        written: with a cache, the frame's keys and values to push into it, each (B, L, P, H, E).
    """

    latents: Tensor
    reward: Tensor
    ended: Tensor
    written: tuple[Tensor, Tensor] | None = None


@dataclass
class Shared:
    """What all passes over the same frames have in common, whatever their noise: see `DiT.share`.

    Attributes:
        embedded: the embedding of the history, (B, T, P, D).
        condition: the embedding of the actions and of the history's noise level, (B, T, D).
        words: of each layer that looks at the prompt, those in force at each frame.
        place: cos and sin of the patches' places.
        seen: what the frames see along time, a `Window` of themselves or the `Past` of a frame alone.
        newest: the frame before each, (B, T, C, h, w).
        based: whether there is one, (B, T) of 0 or 1.
    """

    embedded: Tensor
    condition: Tensor
    words: list[Words | None]
    place: tuple[Tensor, Tensor]
    seen: Window | Past
    newest: Tensor
    based: Tensor


@dataclass
class Window:
    """Frames that see one another: cos and sin of their times, (T, 1, 1, 1, E), and which sees which, bool (T, T)."""

    turn: tuple[Tensor, Tensor]
    mask: Tensor


@dataclass
class Past:
    """Frames before a frame alone: keys, turned by their age, and values, (B, N, L, P, H, E); bias of scores (B, N)."""

    keys: Tensor
    values: Tensor
    bias: Tensor
