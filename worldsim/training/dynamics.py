"""Train the dynamics: the next latents from the last ones, the action and the prompt.

A batch is some segments of T frames, and one pass predicts all of them; `diffusion.objectives` say how they are
corrupted and scored. Once the model can sample, the past of some segments is its own (`training.self_forcing`).
Legend: T frames, C h w latent.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from worldsim.data.latents import LatentData
from worldsim.data.segments import SegmentSampler
from worldsim.engine.simulator import Simulator
from worldsim.models.dit import DiT
from worldsim.models.initialise import compile_blocks
from worldsim.models.text import PromptBook
from worldsim.training.configs import DynamicsTraining
from worldsim.training.self_forcing import SelfForcing, roll

GRID_FRAMES = 96


class DynamicsTask:
    """The loss of the dynamics on a recording's latents.

    Args:
        config: of the run.
        data: trains the model.
        val: is sampled on sample grids.
        book: of the prompts.
        metric: of the latents' channels, see `training.latent_metric`.
        decode: of a clip's latents to its frames, for sample grids.
    """

    def __init__(
        self,
        config: DynamicsTraining,
        data: LatentData,
        val: LatentData,
        book: PromptBook,
        metric: Tensor | None = None,
        decode: Any = None,
    ) -> None:
        """Build the model, the objective, and what samples batches."""
        self.config, self.data, self.val, self.book, self.decode = config, data, val, book, decode
        self.module: DiT = config.model.build()
        if config.compiles():
            compile_blocks(self.module)
        self.objective = config.objective.build(metric, data.some_frames)
        simulator = Simulator(self.module, config.objective.sampler(), frozen=False)
        self.sampler = SegmentSampler(config.batch, data, book, config.model, config.trainer.seed)
        futures = self.objective.futures
        self.forcing = SelfForcing(
            config.self_forcing, config.batch, self.sampler, simulator, futures, metric, config.trainer.steps
        )

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """One batch: recorded segments, the model's own once `rollout_start` steps are over, and single frames."""
        device = self.module.device
        batch = self.forcing.segments(step, generator).to(device)
        loss, scalars = self.objective(self.module, batch, generator)
        if self.config.batch.image_samples:
            images = self.sampler.images(step, generator).to(device)
            share = self.config.batch.image_samples / batch.rows.numel()
            loss = loss + share * self.objective(self.module, images, generator)[0]
        return loss, {name: float(value.detach()) for name, value in scalars.items()}

    @torch.no_grad()
    def sample_grid(self, module: nn.Module) -> np.ndarray | None:
        """Four held-out segments, the truth above the model's rollout under the recorded actions, every 8th frame."""
        if self.decode is None or not isinstance(module, DiT):
            return None
        history = max(module.config.history, 1)
        frames = min(GRID_FRAMES, int((self.val.last - self.val.first).max()) + 1 - history)
        generator = torch.Generator().manual_seed(0)
        starts = self.val.sample_starts(4, frames, generator, history)
        seen = self.val.latents[starts.unsqueeze(1) + torch.arange(-history, 0)].float()
        simulator = Simulator(module, self.config.objective.world_sampler())
        prompts = [self.book.encode(text) for text in self.val.prompts]
        sampled = roll(simulator, self.val, prompts, starts, seen.unsqueeze(1), frames, 0).seen[:, 0]
        shown = sorted({0, 1, 3, *range(7, frames, 8)} & set(range(frames)))
        truth = self.val.latents[starts.unsqueeze(1) + torch.arange(frames)].float()
        rows = []
        for latents in (part for pair in zip(truth, sampled[:, history:], strict=True) for part in pair):
            # Of a latent for several frames the last one is shown, which needs the latents before.
            stride = self.val.stride
            clip = self.decode(latents[shown]) if stride == 1 else self.decode(latents)[::stride][shown]
            rows.append(torch.cat(list(clip.cpu()), dim=1))
        return torch.cat(rows).numpy()

    def state(self) -> dict[str, Any]:
        """The buffer of rollouts and the errors they made."""
        return self.forcing.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.forcing.load_state(state)
