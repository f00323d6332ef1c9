"""DDPM with a learned variance (Nichol & Dhariwal 2021, arXiv:2102.09672), sampled by diffusers' schedulers.

Frames are noised along a cosine schedule of `TIMESTEPS` steps; the model predicts the frame, its noise or its velocity,
and how far the variance of a step is between the two that are possible. The loss is the paper's hybrid one: a squared
error, plus a little of the variational bound, through which the variance alone learns. The model's noise level of
timestep t is (t + 1) / TIMESTEPS; 0 is a context frame.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from worldsim.diffusion.noise import TRAIN_CORRUPT, TRAIN_IMAGE
from worldsim.diffusion.objective import Corrupted, Losses, Objective, ObjectiveConfig, batch_noise, condition
from worldsim.diffusion.sampler import SamplerConfig
from worldsim.diffusion.schedules import Sampling
from worldsim.errors import ConfigError
from worldsim.models.config import DiTConfig
from worldsim.models.dit import DiTOutput
from worldsim.types import SegmentBatch

TIMESTEPS = 1000
SCHEDULE: dict[str, Any] = {
    "num_train_timesteps": TIMESTEPS,
    "beta_schedule": "squaredcos_cap_v2",
    "clip_sample_range": 10.0,  # deviations of the latents
}
"""Of diffusers' schedulers; `DDPMScheduler` takes `variance_type="learned_range"` besides."""
DIFFUSERS = {"x": "sample", "v": "v_prediction", "eps": "epsilon"}  # their names for predictions
MOST_WEIGHT = 5.0  # of a frame's squared error, which else is its signal-to-noise ratio (min-SNR, arXiv:2303.09556)


@dataclass(frozen=True, kw_only=True)
class DDPMConfig(ObjectiveConfig):
    """DDPM with a learned variance."""

    objective: str = "ddpm"
    """ddpm: the noise, along a cosine schedule; many passes a frame."""
    context_prob: float = 0.3
    """Share of frames that take the part of the past, seen and not sampled."""
    cache_sigma: float | None = 0.0
    """Noise level at which finished frames are passed through the model once more, for reward and cache."""
    num_denoising_steps: int = 4
    """Of a frame, by DDIM (arXiv:2010.02502), in self-rollouts and later in the world."""
    variance_weight: float = 1e-3
    """Of the variational bound."""
    prediction: Literal["x", "v", "eps"] = "x"
    """What the model predicts: the frame, which can begin as a change of the one before; the velocity
    (arXiv:2202.00512); or the noise, as in the paper, which takes far longer to be better than copying."""
    last_prob: float = 0.25
    """Share of frames at the last timestep, where sampling begins; the others are of any."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        if self.cache_sigma:
            raise ConfigError(f"cache_sigma is {self.cache_sigma}; allowed: None or 0, the level of context frames.")

    def sampler(self) -> SamplerConfig:
        """Some DDIM steps."""
        return SamplerConfig(
            solver="ddpm",
            prediction=self.prediction,
            num_denoising_steps=self.num_denoising_steps,
            history_sigma=self.history_sigma,
            cache_sigma=self.cache_sigma,
        )

    def build(self, metric: Tensor | None, some_frames: Callable[[], Tensor]) -> DDPM:
        """Make the objective; it needs neither."""
        return DDPM(self)

    def shape(self, model: DiTConfig) -> DiTConfig:
        """A model that predicts the variance too; only a frame has the frame before as its base."""
        base = model.newest_base and self.prediction == "x"
        return dataclasses.replace(model, output=self.prediction, learned_variance=True, newest_base=base)

    @staticmethod
    def output(prediction: str) -> tuple[str, bool]:
        """The prediction that the sampler names, with a variance."""
        return prediction, True

    @staticmethod
    def solve(noise: Tensor, sampler: SamplerConfig, first: bool) -> Sampling:
        """DDIM without noise of its own, by diffusers: rows do not depend on one another."""
        steps = sampler.first_frame_steps if first else sampler.num_denoising_steps
        return denoise(_ddim(DIFFUSERS[sampler.prediction], steps), noise)


class DDPM(Objective):
    """The hybrid loss."""

    def corrupt(self, batch: SegmentBatch, generator: torch.Generator) -> list[Corrupted]:
        """Frames at timesteps of their own; context frames are as they are seen."""
        is_context = batch.chances(generator) < self.config.context_prob
        return [self._corrupted(batch, generator, is_context, TRAIN_CORRUPT)]

    def corrupt_images(self, batch: SegmentBatch, generator: torch.Generator) -> Corrupted:
        """The same without context frames."""
        return self._corrupted(batch, generator, torch.zeros_like(batch.inside), TRAIN_IMAGE)

    def _corrupted(self, batch: SegmentBatch, generator: torch.Generator, is_context: Tensor, draw: int) -> Corrupted:
        timestep = torch.randint(TIMESTEPS, batch.rows.shape, generator=generator).to(batch.device)
        last = batch.chances(generator) < self.config.last_prob
        timestep = torch.where(last, TIMESTEPS - 1, timestep)
        given = condition(batch, batch.seen[:, 0], self.config, generator)
        signal = _like(alphas().to(batch.device)[timestep], batch.target)
        noisy = signal.sqrt() * batch.target + (1 - signal).sqrt() * batch_noise(batch, draw, batch.target.shape[1:])
        x = torch.where(_like(is_context, batch.target), batch.seen[:, 0, -batch.frames :], noisy)
        return Corrupted(x, torch.where(is_context, 0.0, (timestep + 1) / TIMESTEPS), given, is_context)

    def loss(self, batch: SegmentBatch, asked: list[Corrupted], answers: list[DiTOutput]) -> Losses:
        """Of all frames but context frames; reward and termination of context frames."""
        (one,), (answer,) = asked, answers
        counted = (batch.inside & ~one.is_context).float()
        simple, bound = self._hybrid(batch.target, one, answer)
        denoise = ((simple + self.config.variance_weight * bound) * counted).sum() / counted.sum().clamp(min=1)
        heads, scalars = self.head_loss(answer.reward, answer.termination, batch, one.is_context)
        mean = {"error": simple, "bound": bound}
        return denoise + heads, scalars | {k: (v * counted).sum() / counted.sum().clamp(min=1) for k, v in mean.items()}

    def image_loss(self, batch: SegmentBatch, asked: Corrupted, answer: DiTOutput) -> Losses:
        """The same of single frames."""
        simple, bound = self._hybrid(batch.target, asked, answer)
        return (simple + self.config.variance_weight * bound).mean(), {}

    def _hybrid(self, target: Tensor, asked: Corrupted, answer: DiTOutput) -> tuple[Tensor, Tensor]:
        """The squared error, and the bound in nats a number, each (B, T)."""
        if answer.log_var is None:
            raise ValueError("the ddpm objective needs a model with learned_variance")
        timestep = (asked.sigma * TIMESTEPS).round().long().clamp(min=1) - 1  # context frames, which do not count, too
        table = alphas().to(target.device)
        now, before = table[timestep], torch.cat([torch.ones_like(table[:1]), table])[timestep]
        now, before = _like(now, target), _like(before, target)
        signal, scale = now.sqrt(), (1 - now).sqrt()
        noise, said = (asked.x - signal * target) / scale, answer.sample
        wanted = {"x": target, "v": signal * noise - scale * target, "eps": noise}[self.config.prediction]
        weight = (now / (1 - now)).clamp(1, MOST_WEIGHT) if self.config.prediction == "x" else torch.ones_like(now)
        simple = (weight * (said - wanted).square()).mean(dim=(2, 3, 4))
        guessed = {"x": (asked.x - signal * said) / scale, "v": scale * asked.x + signal * said, "eps": said}
        step = now / before  # what one step keeps
        low = ((1 - before) / (1 - now) * (1 - step)).clamp(min=1e-5).log()  # the variance of q(x_t-1 | x_t, x_0)
        log_var = low + (answer.log_var + 1) / 2 * ((1 - step).log() - low)
        # Both means have the same x_t in them: they differ by that of the noise, through which no gradient goes here.
        apart = (1 - step) / (step * (1 - now)).sqrt() * (guessed[self.config.prediction].detach() - noise)
        bound = (log_var - low + (low.exp() + apart.square()) / log_var.exp() - 1) / 2
        return simple, bound.mean(dim=(2, 3, 4))


def denoise(scheduler: Any, noise: Tensor, generator: torch.Generator | None = None) -> Sampling:
    """Sample by a scheduler of diffusers whose timesteps are set; it is sent prediction and variance (B, 2 C, h, w).

    Args:
        scheduler: such as `DDPMScheduler`, which takes both, or `DDIMScheduler`, which takes no variance.
        noise: where to begin, (B, C, h, w).
        generator: of the noise that the scheduler adds.
    """
    x, channels = noise, noise.shape[1]
    both = str(scheduler.config.get("variance_type", "")).startswith("learned")
    extra: dict[str, Any] = {"generator": generator} if generator is not None else {}
    if type(scheduler).__name__ == "DDIMScheduler":  # goes on with the noise that belongs to what was clipped
        extra["use_clipped_model_output"] = True
    for timestep in scheduler.timesteps:
        both_said = yield x, (int(timestep) + 1) / TIMESTEPS
        said, variance = both_said.split(channels, dim=1)
        # Nothing keeps a model between the two variances that are possible, and beyond them frames explode.
        out = torch.cat([said, variance.clamp(-1, 1)], dim=1) if both else said
        x = scheduler.step(out, timestep, x, **extra).prev_sample
    return x


@functools.lru_cache(maxsize=16)
def _ddim(kind: str, steps: int) -> Any:
    """A scheduler, which has tables of all timesteps and, with its steps set, does not change any more."""
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    # At the first timesteps hardly any signal is left: an error of the noise is thousands of times as large in it.
    options: dict[str, Any] = SCHEDULE | {"prediction_type": kind, "clip_sample": kind == "epsilon"}
    scheduler = DDIMScheduler(**options, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    return scheduler


@functools.cache
def alphas() -> Tensor:
    """The squared share of signal that is left at each timestep, a cosine (equation 17 of the paper), (TIMESTEPS,)."""

    def bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    kept = [1 - min(1 - bar((t + 1) / TIMESTEPS) / bar(t / TIMESTEPS), 0.999) for t in range(TIMESTEPS)]
    return torch.tensor(kept, dtype=torch.float64).cumprod(dim=0).float()


def _like(x: Tensor, target: Tensor) -> Tensor:
    return x.reshape(*x.shape, *[1] * (target.ndim - x.ndim)).to(target.device)
