"""Train the dynamics: the next latents from the last ones, the action and the prompt.

A batch is some segments of T frames, and one pass predicts all of them. With the flow objective every frame has a noise
level of its own (diffusion forcing, Chen et al. 2024, arXiv:2407.01392); with the energy objective a frame is drawn
from pure noise in one pass (see `diffusion.energy`). Some frames are `given`: seen, as those of a clip are in play.
In some segments an episode ends, and once the model can draw, the past of some is what it drew itself (`rollouts`).
Legend: B segments, T frames, K history frames, A action history, C h w latent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldsim.data.coverage import cluster, odds
from worldsim.data.latents import LatentData
from worldsim.diffusion.energy import scaled_energy_score, share_places, shared_channels, through_one_draw
from worldsim.diffusion.flow import add_noise, get_schedule, loss_weight, sample_sigmas
from worldsim.diffusion.noise import (
    TRAIN_CORRUPT,
    TRAIN_HISTORY,
    TRAIN_IMAGE,
    TRAIN_SAMPLE,
    TRAIN_SHARED,
    normal,
    row_keys,
)
from worldsim.diffusion.sampler import SamplerConfig
from worldsim.engine.simulator import Simulator
from worldsim.models.conditions import Conditions
from worldsim.models.dit import DiT
from worldsim.models.heads import reward_loss
from worldsim.models.text import PromptBook
from worldsim.training.configs import DynamicsTraining
from worldsim.training.rollouts import ErrorBank, RolloutBuffer, roll

GRID_FRAMES = 96
TYPICAL_FRAMES = 4000  # that say what is mostly there


@dataclass
class SegmentBatch:
    """A batch of segments of T frames, each after K frames of history.

    Attributes:
        rows: which frames of the recording they are, (B, T).
        birth: the first frame that each segment knows of, (B,).
        fresh: whether that is its own first frame, (B,).
        seen: the history and the frames as they were seen: recorded, or the model's own in each of D futures,
            (B, D, K + T, C, h, w).
        noise: what the frames of each future are drawn from, for energy, (B, D, T, C, h, w).
        target: the frames as recorded, after the one before them, (B, 1 + T, C, h, w).
        inside: which frames are of the episode that the segment begins in, bool (B, T); others count for nothing.
        own: how many segments, the first ones, are the model's own.
        odds: how often a segment like this is sampled, of how often it was recorded, (B,).
    """

    rows: Tensor
    birth: Tensor
    fresh: Tensor
    seen: Tensor
    noise: Tensor
    target: Tensor
    inside: Tensor
    own: int
    odds: Tensor

    @property
    def before(self) -> Tensor:
        """The frame before each frame, as it was seen in each future, (B, D, T, C, h, w)."""
        return self.seen[:, :, -1 - self.rows.shape[1] : -1]


class DynamicsTask:
    """The loss of the dynamics on a recording's latents."""

    def __init__(self, config: DynamicsTraining, data: LatentData, val: LatentData, book: PromptBook) -> None:
        """Build the model; `data` trains it, `val` is drawn on sample grids."""
        self.config, self.data, self.val, self.book = config, data, val, book
        self.module: DiT = config.model.build()
        if config.compiles():
            self.module.compile_blocks()
        self.text, self.text_mask = book.batch(data.prompts)
        self.sampler = SamplerConfig(
            num_denoising_steps=config.denoising_steps(),
            history_sigma=config.history_sigma,
            spatially_shared_noise=config.spatially_shared_noise if config.objective == "energy" else 0.0,
            clean_pass=config.clean_pass,
        )
        last = get_schedule(self.sampler.num_denoising_steps, self.sampler.shift)[-2]
        # How noisy the cache sees the past, at most.
        self.past_sigma = 0.1 if config.clean_pass else min(1.0, 1.2 * last)
        self.shown = dataclasses.replace(
            self.sampler, noise_scale=config.noise_scale if config.objective == "energy" else 1.0
        )
        self.simulator = Simulator(self.module, book, self.sampler, frozen=False)
        drawn = config.drawn_per_rollout()
        self.samples = 2 if config.objective == "energy" else 1
        lead = config.frames - drawn
        self.rollouts = RolloutBuffer(
            config.rollout_buffer, drawn, config.rollout_reuse, self.sampler, lead, self.samples, config.rollout_rests
        )
        self.end_share = data.terminated.sum() / data.mortal.sum().clamp(min=1)
        self.errors = ErrorBank()
        age = torch.arange(len(data.first)) - data.first
        self.early = torch.nonzero(age < (config.start_frames or len(age)))[:, 0]  # rows that play could begin with
        self.odds = odds(cluster(data.latents, data.actions), config.evenness) if config.evenness else None
        self.metric: Tensor | None = None  # of the latents' channels, (C, C); None counts them alike
        self.mean_frame: Tensor | None = None  # what is mostly at each place, (C, h, w)
        if config.saliency_weight:
            self.mean_frame = self._some_frames().mean(dim=0)
        self.decode: Any = None  # of latents to frames, for sample grids; set by who has an autoencoder

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """One batch: recorded segments, and the model's own once `rollout_start` steps are over."""
        config = self.config
        segments = self._segments(step, generator)
        objective = self._energy if config.objective == "energy" else self._flow
        loss, scalars = objective(segments, generator, step)
        if config.image_samples:
            loss = loss + config.image_samples / segments.rows.numel() * self._image_loss(step, generator)
        return loss, {name: float(value.detach()) for name, value in scalars.items()}

    def _segments(self, step: int, generator: torch.Generator) -> SegmentBatch:
        config, history = self.config, self.config.model.history
        own = config.rollout_segments if step >= config.rollout_start else 0
        count, frames = config.segments, config.frames
        if config.long_frames and step % config.long_every == config.long_every - 1:
            own, count, frames = 0, count * frames // config.long_frames, config.long_frames
        starts = self.data.sample_starts(count, frames, generator, odds=self.odds)
        odds = torch.ones(count) if self.odds is None else self.odds[starts]
        fresh = torch.rand(count, generator=generator) < config.no_history
        early = self._beginnings(count, frames, generator)
        last = count  # of those that are chosen by chance
        for happened, most in (
            (self.data.terminated, config.terminal_segments),
            (self.data.told, config.event_segments),
        ):
            around = self.data.sample_around(happened, min(most, last - own), frames, generator)
            starts[last - len(around) : last] = around
            odds[last - len(around) : last] = 1.0  # these were not sampled so
            last -= len(around)
        fresh[:own] = fresh[last:] = False
        starts = torch.where(fresh, early, starts)
        lead = self.rollouts.lead  # recorded frames of an own segment, before those drawn
        rollouts = self.rollouts.take(own, self.simulator, self.data, step, config.trainer.seed) if own else None
        if rollouts is not None:
            starts[:own] = rollouts.starts - lead
        rows = starts.unsqueeze(1) + torch.arange(-history, frames)  # (B, K + T)
        recorded = self.data.latents[rows.clamp(min=0)].float()
        seen = recorded.unsqueeze(1).repeat(1, self.samples, *[1] * (recorded.dim() - 1))
        noise = self._noise(seen[:, :, history:].shape, step)
        if rollouts is not None:
            seen[:own, :, lead:] = rollouts.seen
            noise[:own, :, lead:] = rollouts.noise
            if config.error_prob:
                self.errors.add((seen - recorded.unsqueeze(1))[:own, 0])
        if config.error_prob and frames == config.frames:  # of which errors are known
            errors = self.errors.some(seen[own:, 0], config.error_prob, generator)
            seen[own:] += config.error_scale * errors.unsqueeze(1)
        birth = torch.where(fresh, starts, self.data.first[starts])
        inside = rows[:, history:] <= self.data.last[starts].unsqueeze(1)
        return SegmentBatch(rows[:, history:], birth, fresh, seen, noise, recorded[:, history - 1 :], inside, own, odds)

    def _beginnings(self, count: int, frames: int, generator: torch.Generator) -> Tensor:
        """Rows (count,) that play could begin with, each with `frames` frames of the recording from there on."""
        chosen = torch.randint(len(self.early), (count,), generator=generator)
        return self.early[chosen].clamp(max=len(self.data.first) - frames)

    def _noise(self, shape: torch.Size, step: int) -> Tensor:
        """Noise (B, D, T, C, h, w) to draw frames from, some of its channels the same at every place."""
        count = shared_channels(shape[3], self.sampler.spatially_shared_noise)
        shared = self._normal(TRAIN_SHARED, step, (*shape[:3], count, 1, 1))
        return share_places(self._normal(TRAIN_SAMPLE, step, shape), shared)

    def _normal(self, draw: int, step: int, shape: tuple[int, ...]) -> Tensor:
        """Noise of a shape (B, ...) for one purpose at one step; that of a row is the same in any batch."""
        keys = row_keys(self.config.trainer.seed, shape[0])
        return normal(keys, torch.full_like(keys, step), draw, shape[1:])

    def _energy(
        self, segments: SegmentBatch, generator: torch.Generator, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Two draws of every frame by one pass each; their energy score against what happened.

        The model's own segments are two futures of one past, played apart: there the score also compares how each frame
        differs from the one before it, as no score of single frames can tell whether one goes on from the other.
        """
        module, config, own = self.module, self.config, segments.own
        two = step >= config.second_sample_start
        last, target = segments.target[:, :-1], segments.target[:, 1:]
        given = torch.rand(segments.rows.shape, generator=generator) < config.context_share()
        given[:, 0] |= segments.fresh  # a first frame is drawn in many steps, see `_image_loss`
        given[:own] = False
        noisy = torch.where(given[..., None, None, None, None], target.unsqueeze(2), segments.noise.transpose(1, 2))
        conditions = self._conditions(segments.rows, segments.birth, segments.seen[:, 0], step, generator)
        shared = module.share(conditions)
        modulation = module.modulate(module.level((~given).float()), shared.condition)
        latents, features, _ = module.denoise(noisy[:, :, 0], modulation, shared)
        first = second = latents.float()  # (B, T, C, h, w)
        if two:
            with contextlib.nullcontext() if config.both_gradients else torch.no_grad():
                if own:
                    other = self._history(segments.seen[:, 1] - segments.seen[:, 0])  # (B, T, K, C, h, w)
                    clean = (1 - conditions.history_sigma)[..., None, None, None, None]
                    embedded = module.embed_history(conditions.history + clean * other, conditions.present)
                    shared = dataclasses.replace(shared, embedded=embedded, newest=shared.newest + other[:, :, -1])
                second = module.denoise(noisy[:, :, 1], modulation, shared)[0].float()
        places = self._trusted(self._saliency(target), segments)
        score = self._score(first, second, target, places)  # (B, T)
        apart = {}
        if own:
            before = segments.before[:own].unbind(1)  # each (own, T, C, h, w)
            moved = first[:own] - before[0], second[:own] - before[int(two)]
            motion = self._score(*moved, target[:own] - last[:own], None if places is None else places[:own])
            score = torch.cat([(score[:own] + motion) / 2, score[own:]])
            apart = {"score_own": score[:own].mean(), "motion_own": motion.mean()}
        if two and not config.both_gradients:
            score = through_one_draw(score)
        counted = (~given & segments.inside).float()
        denoise = (score * counted).sum() / counted.sum()
        rows = segments.rows[own:]  # what happened to the model's own frames is not known
        judged = self.data.known[rows] * segments.inside[own:] / segments.odds[own:].unsqueeze(1)
        heads, scalars = self._heads(*module.judge(features[own:]), rows, judged)
        drawn = (~given & segments.inside)[own:]
        scalars |= apart | {
            "score": score[own:][drawn].mean(),
            "error": (first - target)[own:][drawn].square().mean(),
            "spread": (first - second)[own:][drawn].square().mean() / 2,  # half of `error`, where draws are the truth's
        }
        return denoise + heads, scalars

    def _score(self, first: Tensor, second: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """The energy score (B, T) of two draws (B, T, C, h, w), with places weighed by (B, T, h, w)."""
        first, second, target = (self._measured(x) for x in (first, second, target))
        return scaled_energy_score(first, second, target, self.config.scales, weight)

    def _measured(self, x: Tensor) -> Tensor:
        """Latents (..., C, h, w) in the axes of what they change in the picture."""
        return x if self.metric is None else torch.einsum("cd,...dhw->...chw", self.metric, x)

    def _saliency(self, target: Tensor) -> Tensor | None:
        """How much each place of frames (B, T, C, h, w) counts, (B, T, h, w); one on the average of each frame."""
        if self.mean_frame is None:
            return None
        unlike = self._measured(target - self.mean_frame).square().sum(dim=2)
        unlike = unlike / unlike.mean(dim=(2, 3), keepdim=True).clamp(min=1e-6)
        return 1 - self.config.saliency_weight + self.config.saliency_weight * unlike

    def _some_frames(self) -> Tensor:
        """Some thousand recorded frames at equal distances, (N, C, h, w)."""
        return self.data.latents[:: max(1, len(self.data.latents) // TYPICAL_FRAMES)].float()

    @functools.cached_property
    def unrelated(self) -> Tensor:
        """Squared distance of two recorded frames that have nothing to do with each other, at a place, ()."""
        return 2 * self._measured(self._some_frames()).float().var(dim=0).sum(dim=0).mean().clamp(min=1e-6)

    def _trusted(self, weight: Tensor | None, segments: SegmentBatch) -> Tensor | None:
        """The weight of places (B, T, h, w), less of it where the model's own past is not what was recorded.

        There the recorded next frame is not what follows: a road that the own past has lost would be taught to appear
        at once, at any frame.
        """
        trust, own = self.config.rollout_trust, segments.own
        if not (trust and own):
            return weight
        apart = self._measured(segments.before[:own] - segments.target[:own, None, :-1]).float()  # (own, D, T, C, h, w)
        apart = apart.square().sum(dim=3).amax(dim=1)  # (own, T, h, w)
        apart = nn.functional.avg_pool2d(apart, 3, stride=1, padding=1, count_include_pad=False)  # things move
        weight = torch.ones(*segments.rows.shape, *apart.shape[2:]) if weight is None else weight
        return torch.cat([weight[:own] / (1 + (apart / (trust * self.unrelated)).square()), weight[own:]])

    def _flow(self, segments: SegmentBatch, generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The clean latents of every frame from its past and from itself at some noise level (flow matching)."""
        config, own, shape = self.config, segments.own, segments.rows.shape
        seen, target = segments.seen[:, 0], segments.target[:, 1:]
        # The part of each frame: past (a little noisy, as seen) or future (noisy, as recorded).
        given = torch.rand(shape, generator=generator) < config.context_share()
        sigma = sample_sigmas(tuple(shape), generator)
        sigma = torch.where(given, self.past_sigma * torch.rand(shape, generator=generator), sigma)
        noise = self._normal(TRAIN_CORRUPT, step, target.shape)
        clean = torch.where(given[..., None, None, None], seen[:, config.model.history :], target)
        counted = segments.inside.float()
        counted[:own] -= given[:own].float()  # the model's own frames are no targets

        conditions = self._conditions(segments.rows, segments.birth, seen, step, generator)
        predicted = self.module(add_noise(clean, noise, sigma), sigma, conditions)
        error = (predicted.latents.float() - target).square().mean(dim=(2, 3, 4))  # (B, T)
        denoise = (error * loss_weight(sigma) * counted).sum() / counted.sum()
        judged = given * self.data.known[segments.rows] * segments.inside / segments.odds.unsqueeze(1)
        heads, scalars = self._heads(predicted.reward, predicted.ended, segments.rows, judged)
        at_one = ((sigma == 1) * segments.inside * (~segments.fresh).unsqueeze(1)).float()
        scalars |= {"at_one": (error * at_one).sum() / at_one.sum().clamp(min=1)}
        if own:
            scalars["at_one_own"] = (error * at_one)[:own].sum() / at_one[:own].sum().clamp(min=1)
        return denoise + heads, scalars

    def _heads(self, reward: Tensor, ended: Tensor, rows: Tensor, judged: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of reward and end over the frames `rows`, weighted by `judged`, both (B, T).

        Frames that end an episode count less by as much as segments show more of them than there are: so the
        probability of an end, and of the reward that comes with it, stays that of the recording. It is so wherever in a
        segment a frame is, as the model can tell that; in play every frame is like the last of one.
        """
        config, over = self.config, self.data.terminated[rows]
        shown = min(config.terminal_segments, len(rows)) / max(rows.numel(), 1)
        weight = judged * torch.where(over > 0, (self.end_share / shown).clamp(max=1) if shown else 1.0, 1.0)
        rewards = (reward_loss(reward, self.data.rewards[rows]) * weight).sum() / weight.sum().clamp(min=1)
        weight = weight * self.data.mortal[rows]
        ends = nn.functional.binary_cross_entropy_with_logits(ended.float(), over, weight=weight, reduction="sum")
        ends = ends / weight.sum().clamp(min=1)
        return config.head_weight * rewards + config.termination_weight * ends, {"reward": rewards, "ended": ends}

    def _image_loss(self, step: int, generator: torch.Generator) -> Tensor:
        """The loss of single frames drawn from nothing but their prompt: how a session without a clip begins."""
        rows = self._beginnings(self.config.image_samples, 1, generator).unsqueeze(1)  # (S, 1)
        target = self.data.latents[rows].float()
        sigma = sample_sigmas(tuple(rows.shape), generator)
        noisy = add_noise(target, self._normal(TRAIN_IMAGE, step, target.shape), sigma)
        nothing = torch.zeros(len(rows), self.config.model.history + 1, *target.shape[2:])
        predicted = self.module(noisy, sigma, self._conditions(rows, rows[:, 0], nothing, step, generator))
        error = (predicted.latents.float() - target).square().mean(dim=(2, 3, 4))  # (S, 1)
        return (error * loss_weight(sigma)).mean()

    def _conditions(
        self, rows: Tensor, birth: Tensor, seen: Tensor, step: int, generator: torch.Generator
    ) -> Conditions:
        """What is known of frames `rows` (B, T): `seen` (B, K + T, ...) holds the past from frame rows[:, 0] - K on."""
        model = self.config.model
        shape = rows.shape
        past = self._history(seen)  # (B, T, K, C, h, w)
        sigma = self.config.history_noise * torch.rand(shape, generator=generator)
        history = add_noise(past, self._normal(TRAIN_HISTORY, step, past.shape), sigma)
        birth = birth[:, None, None]
        ages = torch.arange(model.history, 0, -1)
        present = (rows.unsqueeze(-1) - ages >= birth).float()  # (B, T, K)
        steps = rows.unsqueeze(-1) - torch.arange(model.action_history - 1, -1, -1)  # (B, T, A)
        known = (steps > birth).float()  # the action of the first frame is not known
        prompt = self.data.prompt[rows]
        blank = torch.rand(shape[0], 1, generator=generator) < self.config.prompt_dropout
        # Only the prompts of this batch: their keys and values are computed at every step.
        distinct, index = torch.unique(prompt.masked_fill(blank, 0), return_inverse=True)
        return Conditions(
            history=history,
            newest=past[:, :, -1],
            present=present,
            history_sigma=sigma,
            actions=self.data.actions[steps.clamp(min=0)],
            known=known,
            text=self.text[distinct],
            text_mask=self.text_mask[distinct],
            prompt_index=index,
        )

    def _history(self, seen: Tensor) -> Tensor:
        """The K frames before each frame, (B, T, K, C, h, w), of frames (B, K + T, C, h, w)."""
        return seen.unfold(1, self.config.model.history, 1)[:, :-1].movedim(-1, 2)

    @torch.no_grad()
    def sample_grid(self, module: nn.Module) -> np.ndarray | None:
        """Four held-out segments, the truth above the model's own play under the recorded actions, every 8th frame."""
        if self.decode is None:
            return None
        assert isinstance(module, DiT)
        history = module.config.history
        frames = min(GRID_FRAMES, int((self.val.last - self.val.first).max()) + 1 - history)
        generator = torch.Generator().manual_seed(0)
        starts = self.val.sample_starts(4, frames, generator, history)
        seen = self.val.latents[starts.unsqueeze(1) + torch.arange(-history, 0)].float()
        simulator = Simulator(module, self.book, self.shown)
        drawn = roll(simulator, self.val, starts, seen.unsqueeze(1), frames, 0).seen[:, 0]
        shown = sorted({0, 1, 3, *range(7, frames, 8)} & set(range(frames)))
        truth = self.val.latents[(starts.unsqueeze(1) + torch.arange(frames))[:, shown]].float()
        rows = []
        for real, own in zip(truth, drawn[:, history:][:, shown], strict=True):
            rows += [torch.cat(list(self.decode(real)), dim=1), torch.cat(list(self.decode(own)), dim=1)]
        return torch.cat(rows).numpy()

    def state(self) -> dict[str, Any]:
        """The pool of rollouts and the errors they made."""
        return self.rollouts.state() | {"errors": self.errors.kept}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.rollouts.load_state(state)
        self.errors.kept = state.get("errors")
