"""Self-forcing: train on the model's own rollouts.

A model that only ever saw recorded frames does not know how to go on from its own, slightly wrong ones, and drifts.
Here it rolls out short segments under the recorded actions; training then shows it these frames as the past, with the
recorded frame as the target (the simplest form of it; compare Huang et al. 2025, arXiv:2506.08009).

A score of samples needs every segment twice, played apart from the same recorded frames: two futures of one past. Two
samples after *one* own past would be told to be what happened after another, and learn to jump.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldsim.data.latents import LatentData
from worldsim.data.segments import BatchConfig, SegmentSampler
from worldsim.diffusion.objectives.energy import measured
from worldsim.engine.simulator import Simulator
from worldsim.errors import ConfigError
from worldsim.models.config import DiTConfig
from worldsim.training.trainer import seed_of
from worldsim.types import Prompt, SegmentBatch

MOVING_DEEP = 2  # segments of a rollout where something moves
RESTING_DEEP = 256  # frames of one at rest
BANK = 64  # segments whose errors are kept


@dataclass(frozen=True, kw_only=True)
class SelfForcingConfig:
    """Which segments of a batch have a past that the model sampled."""

    rollout_segments: int = 3
    """Self-rollout segments of a batch (self-forcing): their past is what the model sampled. With flow, more of them
    hold longer and blur the next frame."""
    rollout_start: int = 700
    """Steps before that begins."""
    rollout_length: int = 8
    """Frames of such a segment, the last ones, that the model samples."""
    rollout_buffer: int = 16
    rollout_reuse: int = 1
    rollout_rests: float = 0.25
    """Share of these segments in which nothing moves, where the recording has such: up to 256 frames deep."""
    rollout_trust: float = 0.15
    """How far the model's own past may be from the recorded one, as a share of how far unrelated frames are, until what
    happened next counts half, place by place, in self-rollouts: what went another way is not to jump back (0: all of it
    counts)."""
    error_prob: float = 0.0
    """Share of the recorded segments whose past has errors that the model made in rollouts of other segments."""
    error_scale: float = 0.5
    """Scale of these errors: part of each is honest chance."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.rollout_segments < 0:
            raise ConfigError(f"rollout_segments is {self.rollout_segments}; it must be at least 0.")
        for name in ("rollout_rests", "rollout_trust", "error_prob", "error_scale"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 0 to 1.")


@dataclass
class Rollouts:
    """Segments of the model's own frames, each played D times.

    Attributes:
        starts: where in the data each segment begins, (R,).
        seen: the K frames before the segment and the model's T frames of it, (R, D, K + T, C, h, w).
        noise: what the T frames were drawn from, (R, D, T, C, h, w).
    """

    starts: Tensor
    seen: Tensor
    noise: Tensor


def roll(
    simulator: Simulator, data: LatentData, prompts: list[Prompt], starts: Tensor, seen: Tensor, frames: int, seed: int
) -> Rollouts:
    """Let the model play `frames` frames from `starts` under the recorded actions.

    Args:
        simulator: of the model in training.
        data: the recording.
        prompts: those of `data.prompts`, encoded.
        starts: index of the first frame to draw, (R,).
        seen: the K frames before it, recorded or the model's own, (R, D, K, C, h, w).
        frames: how many to draw.
        seed: of the noise.
    """
    segments, futures, history = seen.shape[:3]
    rows = segments * futures
    begin = starts.repeat_interleave(futures)  # (R D,)
    begun = [prompts[i] for i in data.prompt[begin].tolist()]
    state = simulator.begin([seed_of(seed, row) for row in range(rows)], begun, (seen.shape[-2], seen.shape[-1]))
    device = simulator.device
    state.history = seen.flatten(0, 1).clone().to(device)
    state.step = torch.full((rows,), history)  # all of the history is there
    index = begin.unsqueeze(1) - torch.arange(state.actions.shape[1], 0, -1)
    state.actions, state.known = data.actions[index].to(device), data.any_frame(data.known)[index].to(device)
    drawn, noise = [], []
    for frame in range(frames):
        now = begin + frame
        state.prompts = [prompts[i] for i in data.prompt[now].tolist()]
        noise.append(simulator.noise(state).to(seen.device))
        drawn.append(simulator.step(state, data.actions[now]).latents.to(seen.device))
    played, noises = (torch.stack(part, dim=1).unflatten(0, (segments, futures)) for part in (drawn, noise))
    return Rollouts(starts, torch.cat([seen, played], dim=2), noises)


class RolloutBuffer:
    """A buffer of rollouts that is made anew once every segment was used `rollout_reuse` times.

    Where something moves, a rollout goes on from its own last frames once, so that the model also meets frames up to
    two segments deep into its own play; deeper ones have lost the recorded course, and their targets would teach blur.
    While the picture stands still the recorded frames stay true at any age: there rollouts go on until something
    changes. Not beyond: what has appeared by chance would be missing in the model's own past, and be taught to appear
    at every frame.

    Args:
        config: how many, and how often each is used.
        frames: of each that the model samples.
        lead: recorded frames before those.
        futures: how often each is played.
    """

    def __init__(self, config: SelfForcingConfig, frames: int, lead: int = 0, futures: int = 1) -> None:
        """Begin with none."""
        self.size, self.reuse, self.rest_share = config.rollout_buffer, config.rollout_reuse, config.rollout_rests
        self.frames, self.lead, self.futures = frames, lead, futures
        self.kept: Rollouts | None = None
        self.depth = torch.arange(self.size) % MOVING_DEEP  # segments that each has gone on for, staggered
        self.uses = 0

    def before(self, model: DiTConfig) -> int:
        """How many recorded frames come before those that a rollout begins with."""
        return max(model.history, 1) + self.lead

    def take(
        self, rows: int, simulator: Simulator, data: LatentData, prompts: list[Prompt], step: int, seed: int
    ) -> Rollouts:
        """The next `rows` segments."""
        if self.kept is None or self.uses + rows > self.size * self.reuse:
            self._fill(simulator, data, prompts, seed_of(seed, step, 1))
        assert self.kept is not None
        places = (torch.arange(rows) + self.uses) % self.size
        self.uses += rows
        return Rollouts(self.kept.starts[places], self.kept.seen[places], self.kept.noise[places])

    def _fill(self, simulator: Simulator, data: LatentData, prompts: list[Prompt], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        history, before = max(simulator.dynamics.config.history, 1), self.before(simulator.dynamics.config)
        starts = data.sample_starts(self.size, MOVING_DEEP * self.frames, generator, before)
        slots = torch.arange(self.size)
        # Spread over the slots, so that no batch has only these.
        resting = ((slots + 1) * self.rest_share).floor() > (slots * self.rest_share).floor()
        rests = data.sample_rests(int(resting.sum()), self.frames, generator, before)
        resting &= torch.tensor(len(rests) > 0)
        starts[resting] = rests
        seen = data.latents[starts.unsqueeze(1) + torch.arange(-history, 0)].float()
        seen = seen.unsqueeze(1).repeat(1, self.futures, *[1] * (seen.dim() - 1))  # (R, D, K, C, h, w)
        if self.kept is not None:
            following = self.kept.starts + self.frames
            on = torch.where(
                resting,
                data.rests(following, self.frames) & (self.depth + 1 < RESTING_DEEP // self.frames),
                self.depth + 1 < MOVING_DEEP,
            )
            starts[on] = following[on]
            seen[on] = self.kept.seen[on][:, :, -history:]
            self.depth = torch.where(on, self.depth + 1, 0)
        module, training = simulator.dynamics, simulator.dynamics.training
        module.eval()
        self.kept = roll(simulator, data, prompts, starts, seen, self.frames, seed)
        module.train(training)
        self.uses = 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"pool": None if self.kept is None else vars(self.kept), "uses": self.uses, "depth": self.depth}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.uses, self.depth = state["uses"], state["depth"]
        self.kept = None if state["pool"] is None else Rollouts(**state["pool"])


class ErrorBank:
    """Errors that the model made in its last rollouts, to be put on other recorded pasts.

    A segment whose past has such errors is nearly as good as a rollout and costs nothing: the model learns to go on
    from faulty frames, and what was wrong in them need not stay wrong (Stable Video Infinity, arXiv:2510.09212).
    """

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.kept: Tensor | None = None

    def add(self, errors: Tensor) -> None:
        """Keep the errors of segments (R, K + T, C, h, w); the oldest ones go."""
        kept = errors if self.kept is None else torch.cat([self.kept, errors])
        self.kept = kept[-BANK:]

    def some(self, frames: Tensor, share: float, generator: torch.Generator) -> Tensor:
        """Errors for segments `frames` (B, K + T, C, h, w), each those of one kept; none for 1 - `share` of them."""
        chosen = torch.rand(len(frames), generator=generator) < share
        if self.kept is None:
            return torch.zeros_like(frames)
        which = torch.randint(len(self.kept), (len(frames),), generator=generator)
        return self.kept[which].to(frames) * chosen.view(-1, 1, 1, 1, 1)


class SelfForcing:
    """Puts the model's own rollouts, and errors that it made in some, into batches of segments.

    Args:
        config: how many and how long.
        batch: the segments.
        sampler: of these segments.
        simulator: of the model in training.
        futures: how often each segment is played.
        metric: see `training.latent_metric`; None counts channels alike.
        steps: of the run; None is not known.

    Raises:
        DataError: rollouts would begin in the run, and no episode is long enough.
    """

    def __init__(
        self,
        config: SelfForcingConfig,
        batch: BatchConfig,
        sampler: SegmentSampler,
        simulator: Simulator,
        futures: int,
        metric: Tensor | None,
        steps: int | None = None,
    ) -> None:
        """Begin without rollouts."""
        self.config, self.batch, self.sampler, self.simulator = config, batch, sampler, simulator
        self.futures, self.metric = futures, metric
        length = min(config.rollout_length, batch.frames)
        self.rollouts = RolloutBuffer(config, length, batch.frames - length, futures)
        if config.rollout_segments and (steps is None or steps > config.rollout_start):  # said now, not at that step
            sampler.data.check_length(MOVING_DEEP * length, self.rollouts.before(simulator.dynamics.config))
        self.errors = ErrorBank()

    def segments(self, step: int, generator: torch.Generator) -> SegmentBatch:
        """Sample a batch, the first segments of it self-rollouts once `rollout_start` steps are over."""
        config, data = self.config, self.sampler.data
        own = 0 if step < config.rollout_start or self.batch.is_long(step) else config.rollout_segments
        prompts, seed = self.sampler.prompts, self.sampler.seed
        taken = self.rollouts.take(own, self.simulator, data, prompts, step, seed) if own else None
        begin = None if taken is None else taken.starts - self.rollouts.lead
        batch = self.sampler.segments(step, generator, begin, self.futures)
        seen = batch.seen
        if taken is not None:
            recorded = seen[:own, 0].clone()
            seen[:own, :, self.rollouts.lead :] = taken.seen
            if config.error_prob:
                self.errors.add(seen[:own, 0] - recorded)
            batch = dataclasses.replace(batch, rollout_noise=taken.noise, place_weight=self.place_weight(batch))
        if config.error_prob and batch.frames == self.batch.frames:  # of which errors are known
            errors = self.errors.some(seen[own:, 0], config.error_prob, generator)
            seen[own:] += config.error_scale * errors.unsqueeze(1)
        return batch

    def place_weight(self, batch: SegmentBatch) -> Tensor | None:
        """How much each place of self-rollouts counts, (rollouts, T, h, w): less where their past went another way.

        There the recorded next frame is not what follows: a road that the own past has lost would be taught to appear
        at once, at any frame.
        """
        trust, own = self.config.rollout_trust, batch.rollouts
        if not trust:
            return None
        apart = measured(batch.before[:own] - batch.previous[:own, None], self.metric).float()  # (own, D, T, C, h, w)
        apart = apart.square().sum(dim=3).amax(dim=1)  # (own, T, h, w)
        apart = nn.functional.avg_pool2d(apart, 3, stride=1, padding=1, count_include_pad=False)  # things move
        return 1 / (1 + (apart / (trust * self.unrelated)).square())

    @functools.cached_property
    def unrelated(self) -> Tensor:
        """Squared distance of two recorded frames that have nothing to do with each other, at a place, ()."""
        some = measured(self.sampler.data.some_frames(), self.metric).float()
        return 2 * some.var(dim=0).sum(dim=0).mean().clamp(min=1e-6)

    def state(self) -> dict[str, Any]:
        """The buffer of rollouts and the errors they made."""
        return self.rollouts.state() | {"errors": self.errors.kept}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.rollouts.load_state(state)
        self.errors.kept = state.get("errors")
