"""What an objective is: how a batch is corrupted, what the model's answer costs, and how its frames are sampled.

An objective is one file in `objectives` with a config; `objectives.OBJECTIVES` names them all.
Legend: B segments, T frames, K history frames, C h w latent.
"""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldsim.diffusion.noise import TRAIN_HISTORY, TRAIN_IMAGE, normal
from worldsim.diffusion.sampler import SamplerConfig
from worldsim.diffusion.schedules import Sampling, add_noise, euler, get_schedule, sample_sigmas
from worldsim.errors import ConfigError
from worldsim.models.conditioning import ContextInputs
from worldsim.models.config import DiTConfig
from worldsim.models.dit import DiT, DiTOutput
from worldsim.models.heads import reward_loss
from worldsim.models.masks import Mask
from worldsim.types import SegmentBatch, TextContext

Losses = tuple[Tensor, dict[str, Tensor]]


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(ABC):
    """What all objectives have in common."""

    objective: str
    context_prob: float
    history_noise: float = 0.2
    """Largest noise level mixed into the history."""
    history_sigma: float = 0.02
    """The one in play, and in the model's own rollouts. At .1 a car-racing world loses its roads twice as often."""
    prompt_dropout: float = 0.1
    cache_sigma: float | None = None
    """Noise level at which finished frames are passed through the model once more, for reward and cache (default: none;
    both come from the last denoising pass)."""
    head_weight: float = 0.1
    """Of the loss of the reward."""
    termination_weight: float = 1.0
    """Of the loss of the termination."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("context_prob", "history_noise", "prompt_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 0 to 1.")
        if not 0 <= self.history_sigma <= self.history_noise:
            raise ConfigError(
                f"history_sigma is {self.history_sigma}; allowed: 0 to history_noise, {self.history_noise}, as no "
                "other noise is seen in training."
            )
        self.sampler()  # which checks its own ranges

    @abstractmethod
    def sampler(self) -> SamplerConfig:
        """How frames are sampled in self-rollouts."""

    def world_sampler(self) -> SamplerConfig:
        """How frames are sampled in the world."""
        return self.sampler()

    def shape(self, model: DiTConfig) -> DiTConfig:
        """The model's shape with the output that this objective trains."""
        return dataclasses.replace(model, output="x", learned_variance=False)

    @staticmethod
    def output(prediction: str) -> tuple[str, bool]:
        """What the solver takes from a model: its `output`, and whether it has a learned variance."""
        return "x", False

    @staticmethod
    def solve(noise: Tensor, sampler: SamplerConfig, first: bool) -> Sampling:
        """Sample frames from noise (B, C, h, w): Euler steps on the straight path, equal ones for first frames."""
        levels = get_schedule(sampler.num_denoising_steps, sampler.shift)
        return euler(noise, get_schedule(sampler.first_frame_steps) if first else levels)

    def needs_metric(self) -> bool:
        """Whether `build` needs the metric of the latents' channels."""
        return False

    @abstractmethod
    def build(self, metric: Tensor | None, some_frames: Callable[[], Tensor]) -> Objective:
        """Make the objective.

        Args:
            metric: of the latents' channels, (C, C), see `training.latent_metric`; None counts them alike.
            some_frames: reads frames that stand for the recording, (N, C, h, w), where the objective needs any.
        """


@dataclass
class Corrupted:
    """What the model is asked: frames at their noise levels, and what they are predicted from.

    Attributes:
        x: latents at their noise levels, (B, T, C, h, w).
        sigma: these, (B, T).
        given: history, actions, text.
        is_context: which frames take the part of the past, bool (B, T).
        gradient: whether the answer needs one.
        mask: which frames see which.
    """

    x: Tensor
    sigma: Tensor
    given: ContextInputs
    is_context: Tensor
    gradient: bool = True
    mask: Mask = "causal"


class Objective(ABC):
    """The loss of a batch.

    Attributes:
        config: its settings.
        futures: how often each self-rollout is played.
    """

    futures = 1

    def __init__(self, config: Any) -> None:
        """Keep the settings."""
        self.config = config

    def __call__(self, module: DiT, batch: SegmentBatch, generator: torch.Generator) -> Losses:
        """The loss of a batch, and scalars for the log.

        Args:
            module: the model in training.
            batch: segments, or images.
            generator: of all choices; noise comes from the batch's keys.
        """
        images = batch.kind == "images"
        asked = [self.corrupt_images(batch, generator)] if images else self.corrupt(batch, generator)
        answers = []
        for one in asked:
            with contextlib.nullcontext() if one.gradient else torch.no_grad():
                answers.append(module(one.x, one.sigma, module.encode_context(one.given), mask=one.mask))
        return self.image_loss(batch, asked[0], answers[0]) if images else self.loss(batch, asked, answers)

    @abstractmethod
    def corrupt(self, batch: SegmentBatch, generator: torch.Generator) -> list[Corrupted]:
        """What the model is asked about segments, once or more often."""

    @abstractmethod
    def loss(self, batch: SegmentBatch, asked: list[Corrupted], answers: list[DiTOutput]) -> Losses:
        """What the model's answers cost."""

    def corrupt_images(self, batch: SegmentBatch, generator: torch.Generator) -> Corrupted:
        """Single frames at random noise levels: first frames take many steps of flow matching."""
        sigma = sample_sigmas(tuple(batch.rows.shape), generator).to(batch.device)
        noise = batch_noise(batch, TRAIN_IMAGE, batch.target.shape[1:])
        given = condition(batch, batch.seen[:, 0], self.config, generator)
        return Corrupted(add_noise(batch.target, noise, sigma), sigma, given, torch.zeros_like(sigma, dtype=torch.bool))

    def image_loss(self, batch: SegmentBatch, asked: Corrupted, answer: DiTOutput) -> Losses:
        """The squared error of the clean latents, weighted as that of the velocity."""
        error = (answer.sample - batch.target).square().mean(dim=(2, 3, 4))  # (B, 1)
        return (error * flow_weight(asked.sigma)).mean(), {}

    def head_loss(
        self, reward: Tensor, termination: Tensor, batch: SegmentBatch, shown: Tensor, first: int = 0
    ) -> Losses:
        """The loss of reward and termination over the segments from `first` on.

        Frames that end an episode count less by as much as segments show more of them than there are: so the
        probability of an end, and of the reward that comes with it, stays that of the recording. It is so wherever in a
        segment a frame is, as the model can tell that; in play every frame is like the last of one.

        Args:
            reward: logits (B', F, REWARD_BINS), with F = T r where a latent stands for r frames.
            termination: logits (B', F).
            batch: of B segments.
            shown: which frames the heads may judge, (B', T).
            first: B - B'.
        """
        config, over = self.config, batch.terminated[first:]
        shown = shown.repeat_interleave(over.shape[1] // shown.shape[1], dim=1)
        share = batch.terminal_segments / max(over.numel(), 1)
        undo = (batch.terminal_rate / share).clamp(max=1) if share else torch.ones_like(batch.terminal_rate)
        weight = shown * batch.importance[first:] * torch.where(over > 0, undo, 1.0)
        rewards = (reward_loss(reward, batch.rewards[first:]) * weight).sum() / weight.sum().clamp(min=1)
        weight = weight * batch.can_terminate[first:]
        ends = nn.functional.binary_cross_entropy_with_logits(
            termination.float(), over, weight=weight, reduction="sum"
        ) / weight.sum().clamp(min=1)
        loss = config.head_weight * rewards + config.termination_weight * ends
        return loss, {"reward": rewards, "termination": ends}


def condition(batch: SegmentBatch, seen: Tensor, config: ObjectiveConfig, generator: torch.Generator) -> ContextInputs:
    """What frames are predicted from: their history as `seen` (B, K + T, ...) with noise, actions, prompts or none."""
    sigma = config.history_noise * batch.chances(generator)
    blank = (torch.rand(len(seen), 1, generator=generator) < config.prompt_dropout).to(batch.device)
    # Only the prompts that are left: their keys and values are computed at every step.
    text = TextContext(batch.text.states, batch.text.mask, batch.text.index.masked_fill(blank, 0)).distinct()
    given = ContextInputs(
        actions=batch.actions,
        action_mask=batch.action_mask,
        text=text,
        previous=seen[:, -1 - batch.frames : -1],
        previous_mask=batch.previous_mask,
    )
    if batch.history_mask.shape[2]:
        past = batch.history(seen)  # (B, T, K, C, h, w)
        given.history = add_noise(past, batch_noise(batch, TRAIN_HISTORY, past.shape[1:]), sigma)
        given.history_mask, given.history_sigma = batch.history_mask, sigma
    return given


def batch_noise(batch: SegmentBatch, draw: int, shape: tuple[int, ...]) -> Tensor:
    """Noise (B, *shape) for one purpose; that of a row is the same in any batch."""
    return normal(batch.keys, torch.full_like(batch.keys, batch.step), draw, shape)


def flow_weight(sigma: Tensor) -> Tensor:
    """Weight of the squared error of x at each level: that of the velocity error, bounded near zero noise."""
    return 1 / (sigma.square() + 0.05)
