"""Batches of segments of a recording, with everything that a loss needs of them.

Legend: B segments, D futures, T frames, K history frames, A action history, C h w latent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim.data.coverage import cluster, odds
from worldsim.data.latents import LatentData
from worldsim.diffusion.noise import row_keys
from worldsim.errors import ConfigError
from worldsim.models.config import DiTConfig
from worldsim.models.text import PromptBook
from worldsim.types import SegmentBatch, TextContext


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Which segments make a batch."""

    segments: int = 6
    frames: int = 8
    """Frames of a segment. In play a world remembers `context` of them, at most one less, as no frame of a segment sees
    more. For a longer memory give both; it is taken from here also where a world is gone on from."""
    long_frames: int = 0
    """Frames of the segments of every `long_every`-th step, all recorded, and as many in all as in other steps: a
    longer context (give `context` too) for fewer short segments (0: no such steps; Dreamer 4, arXiv:2509.24527)."""
    long_every: int = 6
    no_history: float = 0.15
    """Share of segments that begin from nothing but the prompt."""
    terminal_segments: int = 1
    """Segments in which an episode ends, as few others show it (at most those that are no self-rollouts)."""
    event_segments: int = 1
    """Segments in which an event begins, where a recording has any (at most those that are left). With its words in the
    prompt none gets likelier; without them (`prompt_dropout`) a little."""
    image_samples: int = 8
    """Single frames from nothing but the prompt, beside the segments."""
    start_frames: int = 32
    """These frames, and segments that begin from nothing, are of the first so many frames of episodes, as play begins
    there: later ones may show what no session should begin with, such as a car off the road (0: of all frames)."""
    evenness: float = 0.0
    """How evenly segments are sampled over clusters of frames and actions (`data.coverage`): 0 as recorded, 1 even."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.frames < 2:
            raise ConfigError(f"frames is {self.frames}; a segment has at least 2, or nothing in it has a past.")
        if self.long_frames and not self.frames < self.long_frames <= self.frames * self.segments:
            raise ConfigError(
                f"long_frames is {self.long_frames}; allowed: 0, or more than frames ({self.frames}) and at most the "
                f"{self.frames * self.segments} of a batch."
            )
        if self.long_every < 1:
            raise ConfigError(f"long_every is {self.long_every}; it must be at least 1.")
        for name in ("terminal_segments", "event_segments", "image_samples", "start_frames"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0.")
        if not 0 <= self.evenness <= 1:
            raise ConfigError(f"evenness is {self.evenness}; allowed: 0 to 1.")

    def longest(self) -> int:
        """Frames of the longest segments."""
        return max(self.frames, self.long_frames)

    def is_long(self, step: int) -> bool:
        """Whether a step has long segments."""
        return bool(self.long_frames) and step % self.long_every == self.long_every - 1


class SegmentSampler:
    """Samples batches of a recording.

    Args:
        config: which segments.
        data: the recording.
        book: where its prompts are encoded.
        model: whose history and action history the batches have.
        seed: of the run; with a step it gives the keys of the batch's noise.

    Attributes:
        prompts: the recording's, encoded, in the order of `data.prompts`.
    """

    def __init__(self, config: BatchConfig, data: LatentData, book: PromptBook, model: DiTConfig, seed: int) -> None:
        """Find the clusters, and the frames that play could start from."""
        self.config, self.data, self.model, self.seed = config, data, model, seed
        self.prompts = [book.encode(text) for text in data.prompts]
        self._prompts = TextContext.of(self.prompts, model.text_tokens)
        age = torch.arange(len(data.first)) - data.first
        self.early = torch.nonzero(age < (config.start_frames or len(age)))[:, 0]
        self.odds = odds(cluster(data.latents, data.actions), config.evenness) if config.evenness else None
        self.terminal_rate = data.terminated.sum() / (data.stride * data.mortal.sum()).clamp(min=1)
        self.ends = data.any_frame(data.terminated)

    def segments(
        self, step: int, generator: torch.Generator, rollouts: Tensor | None = None, futures: int = 1
    ) -> SegmentBatch:
        """Sample the segments of one step, as recorded.

        Args:
            step: of the run.
            generator: of what is sampled.
            rollouts: the rows at which self-rollout segments begin, which come first, (R,).
            futures: D, how often each segment is there.
        """
        config, data = self.config, self.data
        own, count, frames = 0 if rollouts is None else len(rollouts), config.segments, config.frames
        if config.is_long(step):
            count, frames = count * frames // config.long_frames, config.long_frames
        starts = data.sample_starts(count, frames, generator, odds=self.odds)
        sampled = torch.ones(count) if self.odds is None else self.odds[starts]
        no_history = torch.rand(count, generator=generator) < config.no_history
        early = self._early(count, frames, generator)
        last = count  # of those that are chosen by chance
        for happened, most in ((self.ends, config.terminal_segments), (data.event_onset, config.event_segments)):
            around = data.sample_around(happened, min(most, last - own), frames, generator)
            starts[last - len(around) : last] = around
            sampled[last - len(around) : last] = 1.0  # these were not sampled so
            last -= len(around)
        no_history[:own] = no_history[last:] = False
        starts = torch.where(no_history, early, starts)
        if rollouts is not None:
            starts[:own] = rollouts
        return self._batch("segments", step, starts, frames, no_history, sampled, own, futures)

    def images(self, step: int, generator: torch.Generator) -> SegmentBatch:
        """Sample single frames without history, from their prompt alone: the start of a session without a clip."""
        starts = self._early(self.config.image_samples, 1, generator)
        nothing = torch.ones(len(starts), dtype=torch.bool)
        return self._batch("images", step, starts, 1, nothing, torch.ones(len(starts)), 0, 1)

    def _early(self, count: int, frames: int, generator: torch.Generator) -> Tensor:
        """Sample rows (count,) that play could start from, each followed by `frames` frames of the recording."""
        chosen = torch.randint(len(self.early), (count,), generator=generator)
        return self.early[chosen].clamp(max=len(self.data.first) - frames)

    def _batch(
        self, kind, step: int, starts: Tensor, frames: int, no_history: Tensor, sampled: Tensor, own: int, futures: int
    ) -> SegmentBatch:
        """Make the segments of `frames` frames that start at rows `starts` (B,)."""
        data, history = self.data, self.model.history
        wide = starts.unsqueeze(1) + torch.arange(-max(history, 1), frames)  # (B, K + T); at least the frame before
        recorded = data.latents[wide.clamp(min=0)].float()
        rows = wide[:, -frames:]
        birth = torch.where(no_history, starts, data.first[starts])[:, None, None]  # the first frame that is known of
        ages = torch.arange(history, 0, -1)
        steps = rows.unsqueeze(-1) - torch.arange(self.model.action_history - 1, -1, -1)  # (B, T, A)
        inside = rows <= data.last[starts].unsqueeze(1)
        counted = inside.repeat_interleave(data.stride, dim=1)
        return SegmentBatch(
            kind=kind,
            step=step,
            keys=row_keys(self.seed, len(starts)),
            rows=rows,
            target=recorded[:, -frames:],
            previous=recorded[:, -frames - 1 : -1],
            previous_mask=(rows > birth[..., 0]).float(),
            seen=recorded.unsqueeze(1).repeat(1, futures, *[1] * (recorded.dim() - 1)),
            history_mask=(rows.unsqueeze(-1) - ages >= birth).float(),
            actions=data.actions[steps.clamp(min=0)],
            action_mask=(steps > birth).float(),  # the action of the first frame is not known
            text=self._text(data.prompt[rows]),
            rewards=data.rewards[rows].flatten(1),
            terminated=data.terminated[rows].flatten(1),
            no_history=no_history,
            inside=inside,
            importance=data.known[rows].flatten(1) * counted / sampled.unsqueeze(1),
            can_terminate=data.mortal[rows].repeat_interleave(data.stride, dim=1),
            terminal_segments=min(self.config.terminal_segments, len(starts) - own),
            terminal_rate=self.terminal_rate,
            rollouts=own,
        )

    def _text(self, prompt: Tensor) -> TextContext:
        """Look up the text tokens of the prompts in force (B, T); the empty prompt is first, for prompt dropout."""
        found, index = torch.unique(
            torch.cat([torch.zeros(1, dtype=torch.long), prompt.flatten()]), return_inverse=True
        )
        return TextContext(self._prompts.states[found], self._prompts.mask[found], index[1:].view(prompt.shape))
