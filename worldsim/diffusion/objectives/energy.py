"""The energy score: one pass from noise is a sample of the next frame.

A squared error teaches the mean of all possible next frames, a blur; diffusion gets from means to samples by many small
steps. A strictly proper scoring rule of two samples teaches them at once: the network takes noise in and its output is
scored by how near both samples are to what happened, less how near they are to each other. Ensembles of weather
models are trained in this way (Lang et al. 2024, arXiv:2412.15832; Alet et al. 2025, arXiv:2506.10772), and
diffusion models for few steps (De Bortoli et al. 2025, arXiv:2502.02483).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from worldsim.diffusion.noise import TRAIN_SAMPLE, TRAIN_SHARED, share_places, shared_channels
from worldsim.diffusion.objective import Corrupted, Losses, Objective, ObjectiveConfig, batch_noise, condition
from worldsim.diffusion.sampler import SamplerConfig
from worldsim.errors import ConfigError
from worldsim.models.dit import DiTOutput
from worldsim.types import SegmentBatch


@dataclass(frozen=True, kw_only=True)
class EnergyConfig(ObjectiveConfig):
    """The energy score."""

    objective: str = "energy"
    """energy: one pass samples a frame."""
    context_prob: float = 0.15
    """Share of frames that take the part of the past, seen and not sampled."""
    both_gradients: bool = False
    """Whether the gradient of the score goes through both samples. Through one it is the same on the average, as both
    are alike, for two thirds of the work."""
    second_sample_start: int = 0
    """Steps with one sample, which only learns to be near: half the work, to begin with."""
    spatially_shared_noise: float = 0.5
    """Share of the noise's channels that are the same at every place of a frame."""
    noise_scale: float = 1.0
    """Scale of the noise that the trained world samples frames from: below 1, likelier frames. Then strange ones are
    rare, but what is uncertain fades in long play, such as the far end of a road."""
    scales: tuple[int, ...] = (1, 2, 4)
    """Sides of the blocks of latents that the score compares as one vector each."""
    pixel_metric: bool = True
    """Whether the score weighs latents by what they change in the picture, see `training.latent_metric`."""
    saliency_weight: float = 0.0
    """Share of the score that goes to places by how far they are from what is mostly there, frame by frame: for small
    things that matter in a scene that hardly changes. What appears by chance then does so more often than it should."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if not 0 <= self.saliency_weight <= 1:
            raise ConfigError(f"saliency_weight is {self.saliency_weight}; allowed: 0 to 1.")
        if self.cache_sigma:
            raise ConfigError(f"cache_sigma is {self.cache_sigma}; allowed: None or 0, the level of context frames.")
        if not self.scales or min(self.scales) < 1:
            raise ConfigError(f"scales is {self.scales}; allowed: one or more sides of at least 1 latent.")

    def sampler(self) -> SamplerConfig:
        """One pass from pure noise."""
        return SamplerConfig(
            num_denoising_steps=1,
            history_sigma=self.history_sigma,
            spatially_shared_noise=self.spatially_shared_noise,
            cache_sigma=self.cache_sigma,
        )

    def world_sampler(self) -> SamplerConfig:
        """The same with `noise_scale`."""
        return dataclasses.replace(self.sampler(), noise_scale=self.noise_scale)

    def needs_metric(self) -> bool:
        """As `pixel_metric` says."""
        return self.pixel_metric

    def build(self, metric: Tensor | None, some_frames: Callable[[], Tensor]) -> Energy:
        """Make the objective; frames are read if `saliency_weight` says so."""
        return Energy(self, metric, some_frames().mean(dim=0) if self.saliency_weight else None)


class Energy(Objective):
    """The energy score of two samples of every frame, by one pass each, against what happened."""

    futures = 2

    def __init__(self, config: EnergyConfig, metric: Tensor | None, mean_frame: Tensor | None) -> None:
        """Keep what the score weighs by."""
        super().__init__(config)
        self.metric, self.mean_frame = metric, mean_frame

    def corrupt(self, batch: SegmentBatch, generator: torch.Generator) -> list[Corrupted]:
        """Pure noise twice, but for context frames; self-rollouts go on from another future each."""
        config, own = self.config, batch.rollouts
        is_context = batch.chances(generator) < config.context_prob
        is_context[:, 0] |= batch.no_history  # a first frame is sampled in many steps, see `corrupt_images`
        is_context[:own] = False
        x = torch.where(is_context[..., None, None, None, None], batch.target.unsqueeze(2), self.noise(batch))
        sigma, given = (~is_context).float(), condition(batch, batch.seen[:, 0], config, generator)
        first = Corrupted(x[:, :, 0], sigma, given, is_context)
        if batch.step < config.second_sample_start:
            return [first]
        if own:  # the same past with the same noise on it, but what the other future saw of it
            apart = batch.seen[:, 1] - batch.seen[:, 0]
            given = dataclasses.replace(given, previous=given.previous + apart[:, -1 - batch.frames : -1])
            if given.history is not None and given.history_sigma is not None:
                clean = (1 - given.history_sigma)[..., None, None, None, None]
                given.history = given.history + clean * batch.history(apart)
        return [first, Corrupted(x[:, :, 1], sigma, given, is_context, gradient=config.both_gradients)]

    def loss(self, batch: SegmentBatch, asked: list[Corrupted], answers: list[DiTOutput]) -> Losses:
        """The score of all frames but context frames.

        Self-rollouts are two futures of one past, played apart: there the score also compares how each frame differs
        from the one before it, as no score of single frames can tell whether one goes on from the other.
        """
        own, target, is_context, two = batch.rollouts, batch.target, asked[0].is_context, len(answers) == 2
        first, second = answers[0].sample, answers[-1].sample  # (B, T, C, h, w)
        weight = self.place_weight(batch)
        score = self.score(first, second, target, weight)  # (B, T)
        apart = {}
        if own:
            before = batch.before[:own].unbind(1)  # each (own, T, C, h, w)
            moved = first[:own] - before[0], second[:own] - before[int(two)]
            truth = target[:own] - batch.previous[:own]
            motion = self.score(*moved, truth, None if weight is None else weight[:own])
            score = torch.cat([(score[:own] + motion) / 2, score[own:]])
            apart = {"score_own": score[:own].mean(), "motion_own": motion.mean()}
        if two and not self.config.both_gradients:
            score = through_one_sample(score)
        counted = (~is_context & batch.inside).float()
        denoise = (score * counted).sum() / counted.sum()
        # What happened to the model's own frames is not known.
        reward, termination = answers[0].reward[own:], answers[0].termination[own:]
        heads, scalars = self.head_loss(reward, termination, batch, batch.inside[own:], own)
        sampled = (~is_context & batch.inside)[own:]
        scalars |= apart | {
            "score": score[own:][sampled].mean(),
            "error": (first - target)[own:][sampled].square().mean(),
            # Half of the error, where samples are the truth's.
            "spread": (first - second)[own:][sampled].square().mean() / 2,
        }
        return denoise + heads, scalars

    def noise(self, batch: SegmentBatch) -> Tensor:
        """What frames are sampled from, (B, T, D, C, h, w): some channels the same at every place."""
        shape = (self.futures, *batch.target.shape[1:])  # (D, T, C, h, w)
        count = shared_channels(shape[2], self.config.spatially_shared_noise)
        shared = batch_noise(batch, TRAIN_SHARED, (*shape[:2], count, 1, 1))
        noise = share_places(batch_noise(batch, TRAIN_SAMPLE, shape), shared)
        if batch.rollout_noise is not None:  # these were sampled before
            noise[: batch.rollouts, :, -batch.rollout_noise.shape[2] :] = batch.rollout_noise
        return noise.transpose(1, 2)

    def score(self, first: Tensor, second: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """The energy score (B, T) of two samples (B, T, C, h, w), with places weighed by (B, T, h, w)."""
        first, second, target = (measured(x, self.metric) for x in (first, second, target))
        return scaled_energy_score(first, second, target, self.config.scales, weight)

    def place_weight(self, batch: SegmentBatch) -> Tensor | None:
        """How much each place of each frame counts, (B, T, h, w): by its saliency, and by the batch."""
        weight = self.saliency(batch.target)
        if batch.place_weight is None:
            return weight
        shape = (*batch.rows.shape, *batch.target.shape[3:])
        weight = torch.ones(shape, device=batch.target.device) if weight is None else weight
        return torch.cat([weight[: batch.rollouts] * batch.place_weight, weight[batch.rollouts :]])

    def saliency(self, target: Tensor) -> Tensor | None:
        """How unlike the mean frame each place of frames (B, T, C, h, w) is, (B, T, h, w); 1 on average of a frame."""
        if self.mean_frame is None:
            return None
        unlike = measured(target - self.mean_frame.to(target.device), self.metric).square().sum(dim=2)
        unlike = unlike / unlike.mean(dim=(2, 3), keepdim=True).clamp(min=1e-6)
        return 1 - self.config.saliency_weight + self.config.saliency_weight * unlike


def measured(x: Tensor, metric: Tensor | None) -> Tensor:
    """Latents (..., C, h, w) in the axes of a metric (C, C) of their channels; without one as they are."""
    return x if metric is None else torch.einsum("cd,...dhw->...chw", metric.to(x.device), x)


def energy_score(first: Tensor, second: Tensor, target: Tensor, eps: float = 1e-4) -> Tensor:
    """The energy score of two samples against what happened, over vectors (..., E): (...,), smaller is better.

    A strictly proper scoring rule (Gneiting & Raftery 2007, doi:10.1198/016214506000001437): the mean is least when
    both are samples of the true distribution of the target, neither its mean (the last term) nor anything else (the
    first two). Estimated from two samples, as ensembles of weather models are trained.
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).float().square().sum(dim=-1) + eps).sqrt()

    return (distance(first, target) + distance(second, target) - distance(first, second)) / 2


def through_one_sample(score: Tensor) -> Tensor:
    """A score with twice its gradient, for scores of which only one sample has any.

    Both are made alike and the score is symmetric in them, so that each has half of the gradient on the average.
    """
    return 2 * score - score.detach()


def scaled_energy_score(
    first: Tensor, second: Tensor, target: Tensor, scales: tuple[int, ...], weight: Tensor | None = None
) -> Tensor:
    """The energy score of latents (..., C, h, w), averaged over blocks of several sizes: (...,).

    Small blocks say most of each place, larger ones whether places agree with one another. `weight` (..., h, w) says
    how much each place counts, about 1.
    """
    scores = []
    for side in scales:
        both = _blocks(first, side), _blocks(second, side)  # (..., blocks, C side side)
        score = energy_score(*both, _blocks(target, side))
        if weight is not None:
            score = score * _blocks(weight.unsqueeze(-3), side).mean(dim=-1)
        scores.append(score.mean(dim=-1) / side)
    return torch.stack(scores).mean(dim=0)


def _blocks(x: Tensor, side: int) -> Tensor:
    """Latents (..., C, h, w) as blocks (..., n, C side side); what is missing at the edges is zero."""
    x = nn.functional.pad(x, (0, -x.shape[-1] % side, 0, -x.shape[-2] % side))
    parts = x.unflatten(-1, (-1, side)).unflatten(-3, (-1, side))  # (..., C, h', side, w', side)
    return parts.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)
