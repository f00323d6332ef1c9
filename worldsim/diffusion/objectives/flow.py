"""Flow matching: the clean latents of every frame from its past and from itself at some noise level.

Every frame has a noise level of its own (diffusion forcing, Chen et al. 2024, arXiv:2407.01392) on the straight path
from data to noise (Lipman et al. 2022, arXiv:2210.02747).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim.diffusion.noise import TRAIN_CORRUPT
from worldsim.diffusion.objective import (
    Corrupted,
    Losses,
    Objective,
    ObjectiveConfig,
    batch_noise,
    condition,
    flow_weight,
)
from worldsim.diffusion.sampler import SamplerConfig
from worldsim.diffusion.schedules import add_noise, get_schedule, sample_sigmas
from worldsim.errors import ConfigError
from worldsim.models.dit import DiTOutput
from worldsim.types import SegmentBatch


@dataclass(frozen=True, kw_only=True)
class FlowConfig(ObjectiveConfig):
    """Flow matching."""

    objective: str = "flow"
    """flow: flow matching, some passes a frame."""
    context_prob: float = 0.3
    """Share of frames that take the part of the past, seen and not sampled."""
    num_denoising_steps: int = 2
    """Of a frame, in self-rollouts and later in the world."""
    clip_prob: float = 0.0
    """Share of steps whose segments are clips of offline video (see `worldsim.video`): frames see one another in both
    directions and have neither history nor actions; context frames are any of them, without noise."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not 0 <= self.clip_prob <= 1:
            raise ConfigError(f"clip_prob is {self.clip_prob}; allowed: 0 to 1.")

    def sampler(self) -> SamplerConfig:
        """Some Euler steps."""
        return SamplerConfig(
            num_denoising_steps=self.num_denoising_steps,
            history_sigma=self.history_sigma,
            cache_sigma=self.cache_sigma,
        )

    def build(self, metric: Tensor | None, some_frames: Callable[[], Tensor]) -> Flow:
        """Make the objective; it needs neither."""
        return Flow(self)


class Flow(Objective):
    """The squared error of the clean latents, weighted as that of the velocity."""

    def corrupt(self, batch: SegmentBatch, generator: torch.Generator) -> list[Corrupted]:
        """Frames at noise levels of their own; context frames are a little noisy, as the cache sees them."""
        if self.config.clip_prob and torch.rand((), generator=generator) < self.config.clip_prob:
            return [self._clips(batch, generator)]
        seen = batch.seen[:, 0]
        is_context = batch.chances(generator) < self.config.context_prob
        sigma = sample_sigmas(tuple(batch.rows.shape), generator).to(batch.device)
        sigma = torch.where(is_context, self.context_sigma * batch.chances(generator), sigma)
        clean = torch.where(is_context[..., None, None, None], seen[:, -batch.frames :], batch.target)
        given = condition(batch, seen, self.config, generator)
        noisy = add_noise(clean, batch_noise(batch, TRAIN_CORRUPT, batch.target.shape[1:]), sigma)
        return [Corrupted(noisy, sigma, given, is_context)]

    def _clips(self, batch: SegmentBatch, generator: torch.Generator) -> Corrupted:
        """Clips of recorded frames, all that are not given at one noise level."""
        is_context = batch.chances(generator) < self.config.context_prob
        sigma = sample_sigmas((len(batch.rows), 1), generator).to(batch.device)
        sigma = torch.where(is_context, 0.0, sigma.expand(batch.rows.shape))
        given = condition(batch, batch.seen[:, 0], self.config, generator)
        for name in ("action_mask", "previous_mask", "history_mask", "history_sigma"):
            if (part := getattr(given, name)) is not None:
                setattr(given, name, torch.zeros_like(part))
        noisy = add_noise(batch.target, batch_noise(batch, TRAIN_CORRUPT, batch.target.shape[1:]), sigma)
        return Corrupted(noisy, sigma, given, is_context, mask="full")

    def loss(self, batch: SegmentBatch, asked: list[Corrupted], answers: list[DiTOutput]) -> Losses:
        """The error of all frames but the model's own; reward and termination of context frames."""
        sigma, is_context, (answer,) = asked[0].sigma, asked[0].is_context, answers
        clips = asked[0].mask == "full"
        own = 0 if clips else batch.rollouts
        counted = batch.inside.float()
        counted[:own] *= ~is_context[:own]  # the model's own frames are no targets
        if clips:
            # All frames see all others: a segment that goes on into another episode is no clip.
            counted = counted * ~is_context * batch.inside.all(dim=1, keepdim=True)
        error = (answer.sample - batch.target).square().mean(dim=(2, 3, 4))  # (B, T)
        denoise = (error * flow_weight(sigma) * counted).sum() / counted.sum().clamp(min=1)
        if clips:  # nothing is done in a clip, and nothing follows from it
            return denoise, {"clips": denoise}
        heads, scalars = self.head_loss(answer.reward, answer.termination, batch, is_context)
        at_one = ((sigma == 1) * batch.inside * (~batch.no_history).unsqueeze(1)).float()
        scalars |= {"at_one": (error * at_one).sum() / at_one.sum().clamp(min=1)}
        if own:
            scalars["at_one_own"] = (error * at_one)[:own].sum() / at_one[:own].sum().clamp(min=1)
        return denoise + heads, scalars

    @property
    def context_sigma(self) -> float:
        """How noisy the cache sees the past, at most."""
        if self.config.cache_sigma is not None:
            return max(0.1, self.config.cache_sigma)
        sampler = self.config.sampler()
        return min(1.0, 1.2 * get_schedule(sampler.num_denoising_steps, sampler.shift)[-2])
