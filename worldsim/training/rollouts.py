"""The model's own futures, as training material.

A model that only ever saw recorded frames does not know how to go on from its own, slightly wrong ones, and drifts.
Here it plays short segments under the recorded actions; training then shows it these frames as the past, with the
recorded frame as the target (self-forcing in its simplest form; compare Huang et al. 2025, arXiv:2506.08009).

A score of samples needs every segment twice, played apart from the same recorded frames: two futures of one past. Two
samples after *one* own past would be told to be what happened after another, and learn to jump.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldsim.data.latents import LatentData
from worldsim.diffusion.sampler import SamplerConfig
from worldsim.engine.simulator import Simulator
from worldsim.training.trainer import seed_of

MOVING_DEEP = 2  # segments of a rollout where something moves
RESTING_DEEP = 256  # frames of one at rest
BANK = 64  # segments whose errors are kept


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


def roll(simulator: Simulator, data: LatentData, starts: Tensor, seen: Tensor, frames: int, seed: int) -> Rollouts:
    """Let the model play `frames` frames from `starts` under the recorded actions.

    Args:
        simulator: of the model in training.
        data: the recording.
        starts: index of the first frame to draw, (R,).
        seen: the K frames before it, recorded or the model's own, (R, D, K, C, h, w).
        frames: how many to draw.
        seed: of the noise.
    """
    segments, samples, history = seen.shape[:3]
    rows = segments * samples
    begin = starts.repeat_interleave(samples)  # (R D,)
    texts = [data.prompts[i] for i in data.prompt[begin].tolist()]
    state = simulator.begin([seed_of(seed, row) for row in range(rows)], texts, (seen.shape[-2], seen.shape[-1]))
    state.history = seen.flatten(0, 1).clone()
    state.step = torch.full((rows,), history)  # all of the history is there
    index = begin.unsqueeze(1) - torch.arange(state.actions.shape[1], 0, -1)
    state.actions, state.known = data.actions[index].clone(), data.known[index].clone()
    drawn, noise = [], []
    for frame in range(frames):
        now = begin + frame
        state.prompts = [data.prompts[i] for i in data.prompt[now].tolist()]
        noise.append(simulator.noise(state))
        drawn.append(simulator.step(state, data.actions[now]).latents)
    played, noises = (torch.stack(part, dim=1).unflatten(0, (segments, samples)) for part in (drawn, noise))
    return Rollouts(starts, torch.cat([seen, played], dim=2), noises)


class RolloutBuffer:
    """A buffer of rollouts that is made anew once every segment was used `reuse` times.

    Where something moves, a rollout goes on from its own last frames once, so that the model also meets frames up to
    two segments deep into its own play; deeper ones have lost the recorded course, and their targets would teach blur.
    While the picture stands still the recorded frames stay true at any age: there rollouts go on until something
    changes. Not beyond: what has appeared by chance would be missing in the model's own past, and be taught to appear
    at every frame.
    """

    def __init__(
        self,
        size: int,
        frames: int,
        reuse: int,
        sampler: SamplerConfig,
        lead: int = 0,
        samples: int = 1,
        rest_share: float = 0.0,
    ) -> None:
        """A pool of rollouts.

        Args:
            size: how many.
            frames: of each that the model samples.
            reuse: how often each is used.
            sampler: how frames are drawn.
            lead: recorded frames before those.
            samples: how often each is played.
            rest_share: share of them that begin at rest, where the recording has rests.
        """
        self.size, self.frames, self.reuse, self.sampler, self.lead = size, frames, reuse, sampler, lead
        self.samples, self.rest_share = samples, rest_share
        self.kept: Rollouts | None = None
        self.depth = torch.arange(size) % MOVING_DEEP  # segments that each has gone on for, staggered
        self.uses = 0

    def take(self, rows: int, simulator: Simulator, data: LatentData, step: int, seed: int) -> Rollouts:
        """The next `rows` segments."""
        if self.kept is None or self.uses + rows > self.size * self.reuse:
            self._fill(simulator, data, seed_of(seed, step, 1))
        assert self.kept is not None
        places = (torch.arange(rows) + self.uses) % self.size
        self.uses += rows
        return Rollouts(self.kept.starts[places], self.kept.seen[places], self.kept.noise[places])

    def _fill(self, simulator: Simulator, data: LatentData, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        history = simulator.dynamics.config.history
        starts = data.sample_starts(self.size, MOVING_DEEP * self.frames, generator, history + self.lead)
        slots = torch.arange(self.size)
        # Spread over the slots, so that no batch has only these.
        resting = ((slots + 1) * self.rest_share).floor() > (slots * self.rest_share).floor()
        rests = data.sample_rests(int(resting.sum()), self.frames, generator)
        resting &= torch.tensor(len(rests) > 0)
        starts[resting] = rests
        seen = data.latents[starts.unsqueeze(1) + torch.arange(-history, 0)].float()
        seen = seen.unsqueeze(1).repeat(1, self.samples, *[1] * (seen.dim() - 1))  # (R, D, K, C, h, w)
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
        self.kept = roll(simulator, data, starts, seen, self.frames, seed)
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
