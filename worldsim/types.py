"""What passes between data, objectives and models, as tensors with names.

Legend: B segments, D futures of a segment, T frames, K history frames, A action history, C h w latent, U distinct
prompts, W text tokens, F = T r where a latent stands for r frames (else F = T).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Prompt:
    """A prompt, encoded: all that is known of it behind the border where text comes in (`models.text.PromptBook`).

    Prompts of the same states are equal, whatever their text: what is computed from states is stored under the prompt.

    Attributes:
        text: what was typed, for people and for files.
        states: of its text tokens, float32 (W, text_width); the empty prompt has none.
    """

    text: str
    states: Tensor

    @functools.cached_property
    def identity(self) -> str:
        """A hash of the states."""
        digest = hashlib.blake2b(repr(tuple(self.states.shape)).encode(), digest_size=16)
        digest.update(self.states.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def under(self, text: str) -> Prompt:
        """The same states under another text."""
        other = Prompt(text, self.states)
        other.__dict__["identity"] = self.identity  # which need not be computed again
        return other

    def __eq__(self, other: object) -> bool:
        """Whether the states are the same."""
        return isinstance(other, Prompt) and self.identity == other.identity

    def __hash__(self) -> int:
        """Hash the states."""
        return hash(self.identity)


@dataclass(frozen=True)
class TextContext:
    """Prompts as text tokens, and which of them is in force at each frame.

    Attributes:
        states: of the distinct prompts, (U, W, text_width); in training the first is the empty prompt.
        mask: which tokens exist, bool (U, W).
        index: the prompt in force at each frame, (B, T).
    """

    states: Tensor
    mask: Tensor
    index: Tensor

    @staticmethod
    def of(prompts: Sequence[Prompt], tokens: int, index: Tensor | None = None) -> TextContext:
        """Stack prompts, each filled up to W = `tokens`.

        Args:
            prompts: at least one.
            tokens: at least as many as the longest has.
            index: see above; None is (U, 1): each in force in a row of its own.
        """
        states = torch.zeros(len(prompts), tokens, prompts[0].states.shape[-1])
        mask = torch.zeros(len(prompts), tokens, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            states[row, : len(prompt.states)] = prompt.states
            mask[row, : len(prompt.states)] = True
        return TextContext(states, mask, torch.arange(len(prompts)).unsqueeze(1) if index is None else index)

    def to(self, device: torch.device | str) -> TextContext:
        """Copy all tensors to a device."""
        return TextContext(self.states.to(device), self.mask.to(device), self.index.to(device))

    def distinct(self) -> TextContext:
        """Drop the prompts that are in force nowhere."""
        found, index = torch.unique(self.index, return_inverse=True)
        return TextContext(self.states[found], self.mask[found], index)


@dataclass(frozen=True)
class SegmentBatch:
    """Segments of T frames, each after K frames of history, with all that a loss needs.

    Attributes:
        kind: "segments", or "images" for single frames that begin from nothing but their prompt.
        step: of the training run; with `keys` it is what noise comes from.
        keys: of each segment's noise, see `diffusion.noise.row_keys`, (B,).
        rows: which frames of the recording the segments show, (B, T); no loss needs them.
        target: the frames as recorded, (B, T, C, h, w).
        previous: the recorded frame before each, (B, T, C, h, w).
        previous_mask: whether there is one that the segment knows of, (B, T) of 0 or 1.
        seen: the history and the frames as the model sees them, recorded, with errors, or its own in each of D futures,
            (B, D, K + T, C, h, w).
        history_mask: which frames of the history exist, (B, T, K) of 0 or 1.
        actions: the last A flattened actions up to the one that led to the frame, oldest first, (B, T, A, action_size).
        action_mask: which of these exist, (B, T, A) of 0 or 1.
        text: the prompts in force.
        rewards: (B, F).
        terminated: whether the episode ended with the frame, (B, F) of 0 or 1.
        no_history: whether the segment begins from nothing but its prompt, bool (B,).
        inside: which frames are of the episode that the segment begins in, bool (B, T); others count for nothing.
        importance: weights of the frames for reward and termination, which undo uneven sampling, (B, F).
        can_terminate: whether the episode could end there, (B, F) of 0 or 1.
        terminal_segments: how many segments, of those that are no rollouts, were sampled around a termination.
        terminal_rate: share of the recording's frames that terminate an episode, ().
        rollouts: how many segments, the first ones, are self-rollouts.
        rollout_noise: what the last frames of these were sampled from, (rollouts, D, frames, C, h, w).
        place_weight: how much each place of their frames counts, (rollouts, T, h, w).
    """

    kind: Literal["segments", "images"]
    step: int
    keys: Tensor
    rows: Tensor
    target: Tensor
    previous: Tensor
    previous_mask: Tensor
    seen: Tensor
    history_mask: Tensor
    actions: Tensor
    action_mask: Tensor
    text: TextContext
    rewards: Tensor
    terminated: Tensor
    no_history: Tensor
    inside: Tensor
    importance: Tensor
    can_terminate: Tensor
    terminal_segments: int
    terminal_rate: Tensor
    rollouts: int = 0
    rollout_noise: Tensor | None = None
    place_weight: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.target.device

    def chances(self, generator: torch.Generator) -> Tensor:
        """Draw a number of 0 to 1 for each frame, (B, T); drawn where the generator is, the same for all devices."""
        return torch.rand(self.rows.shape, generator=generator, device=generator.device).to(self.device)

    @property
    def frames(self) -> int:
        """T."""
        return self.target.shape[1]

    @property
    def before(self) -> Tensor:
        """The frame before each frame, as the model sees it in each future, (B, D, T, C, h, w)."""
        return self.seen[:, :, -1 - self.frames : -1]

    def history(self, seen: Tensor) -> Tensor:
        """The K frames before each frame, (B, T, K, C, h, w), of one future (B, K + T, C, h, w) of `seen`."""
        return seen.unfold(1, self.history_mask.shape[2], 1)[:, :-1].movedim(-1, 2)

    def to(self, device: torch.device | str) -> SegmentBatch:
        """Copy all tensors to a device."""

        def moved(part: object) -> object:
            return part.to(device) if isinstance(part, Tensor | TextContext) else part

        return SegmentBatch(**{field.name: moved(getattr(self, field.name)) for field in dataclasses.fields(self)})  # type: ignore[arg-type]
