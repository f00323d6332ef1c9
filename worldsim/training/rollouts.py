"""The model's own futures, as training material.

A model that only ever saw recorded frames does not know how to go on from its own, slightly wrong ones, and drifts.
Here it plays short stretches under the recorded actions; training then shows it these frames as the past, with the
recorded frame as the target (self-forcing in its simplest form; compare Huang et al. 2025, arXiv:2506.08009).

A score of draws needs every stretch twice, played apart from the same recorded frames: two futures of one past. Two
draws after *one* own past would be told to be what happened after another, and learn to jump.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldsim.data.latents import LatentData
from worldsim.engine.simulator import SamplerConfig, Simulator
from worldsim.training.trainer import seed_of


@dataclass
class Rollouts:
    """Windows of the model's own frames, each played D times.

    Attributes:
        starts: where in the data each window begins, (R,).
        seen: the K frames before the window and the model's T frames of it, (R, D, K + T, C, h, w).
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
    windows, draws, history = seen.shape[:3]
    rows = windows * draws
    begin = starts.repeat_interleave(draws)  # (R D,)
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
    played, noises = (torch.stack(part, dim=1).unflatten(0, (windows, draws)) for part in (drawn, noise))
    return Rollouts(starts, torch.cat([seen, played], dim=2), noises)


class RolloutPool:
    """A pool of rollouts that is made anew once every window was used `reuse` times.

    Half of the windows continue the model's own previous window, so that it also meets frames up to two windows deep
    into its own play; deeper ones have lost the recorded course, and their targets would teach blur.
    """

    def __init__(
        self, size: int, frames: int, reuse: int, sampler: SamplerConfig, lead: int = 0, draws: int = 1
    ) -> None:
        """A pool of `size` windows of `frames` frames, each played `draws` times, `lead` recorded frames before."""
        self.size, self.frames, self.reuse, self.sampler, self.lead = size, frames, reuse, sampler, lead
        self.draws = draws
        self.pool: Rollouts | None = None
        self.uses = 0

    def take(self, rows: int, simulator: Simulator, data: LatentData, step: int, seed: int) -> Rollouts:
        """The next `rows` windows."""
        if self.pool is None or self.uses + rows > self.size * self.reuse:
            self._fill(simulator, data, seed_of(seed, step, 1))
        assert self.pool is not None
        places = (torch.arange(rows) + self.uses) % self.size
        self.uses += rows
        return Rollouts(self.pool.starts[places], self.pool.seen[places], self.pool.noise[places])

    def _fill(self, simulator: Simulator, data: LatentData, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        history = simulator.dynamics.config.history
        starts = data.sample_starts(self.size, 2 * self.frames, generator, history + self.lead)
        seen = data.latents[starts.unsqueeze(1) + torch.arange(-history, 0)].float()
        seen = seen.unsqueeze(1).repeat(1, self.draws, *[1] * (seen.dim() - 1))  # (R, D, K, C, h, w)
        half = self.size // 2
        if self.pool is not None:
            # The first half goes on from where the second half of the last pool ended.
            starts[:half] = self.pool.starts[-half:] + self.frames
            seen[:half] = self.pool.seen[-half:, :, -history:]
        module, training = simulator.dynamics, simulator.dynamics.training
        module.eval()
        self.pool = roll(simulator, data, starts, seen, self.frames, seed)
        module.train(training)
        self.uses = 0

    def state(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"pool": None if self.pool is None else vars(self.pool), "uses": self.uses}

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.uses = state["uses"]
        self.pool = None if state["pool"] is None else Rollouts(**state["pool"])
