"""DDPM with a learned variance: the schedule, the bound, diffusers' schedulers, and a model that learns."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from tiny import tiny_dynamics
from torch import Tensor

from worldsim.data.episodes import Dataset
from worldsim.diffusion.objectives.ddpm import DDPM, DIFFUSERS, SCHEDULE, TIMESTEPS, DDPMConfig, alphas, denoise
from worldsim.diffusion.schedules import sample
from worldsim.engine.engine import Engine
from worldsim.engine.simulator import Simulator
from worldsim.errors import ConfigError
from worldsim.models.config import DiTConfig
from worldsim.models.dit import DiTOutput
from worldsim.training.run import prepare, train_dynamics
from worldsim.training.self_forcing import roll
from worldsim.world import World

KINDS = ("x", "v", "eps")


def test_the_schedule_is_that_of_diffusers() -> None:
    torch.testing.assert_close(alphas(), DDPMScheduler(**SCHEDULE).alphas_cumprod, rtol=1e-4, atol=1e-7)


def said(kind: str, target: Tensor, noisy: Tensor, alpha: Tensor) -> Tensor:
    """What a model that knows the frame says."""
    noise = (noisy - alpha.sqrt() * target) / (1 - alpha).sqrt()
    return {"x": target, "v": alpha.sqrt() * noise - (1 - alpha).sqrt() * target, "eps": noise}[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheduler", [DDIMScheduler, DDPMScheduler])
def test_schedulers_of_diffusers_find_what_a_perfect_model_knows(scheduler: Any, kind: str) -> None:
    target = torch.randn(2, 3, 4, 4)

    def predict(x: Tensor, sigma: float) -> Tensor:
        alpha = alphas()[round(sigma * TIMESTEPS) - 1].double()
        return torch.cat([said(kind, target.double(), x.double(), alpha).float(), torch.zeros_like(x)], dim=1)

    options: dict[str, Any] = SCHEDULE | {"clip_sample": False, "prediction_type": DIFFUSERS[kind]}
    found = scheduler(**options, **({"variance_type": "learned_range"} if scheduler is DDPMScheduler else {}))
    found.set_timesteps(50)
    found = sample(denoise(found, torch.randn(2, 3, 4, 4), torch.Generator().manual_seed(0)), predict)
    torch.testing.assert_close(found, target, rtol=0, atol=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_least_for_a_perfect_model(
    kind: str, dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    """The error is 0, and the bound where the variance is that of the posterior; only the variance learns from it."""
    config = tiny_dynamics(
        dataset, autoencoder_run, tmp_path, objective="ddpm", prediction=kind, rollout_segments=0, context_prob=0.0
    )
    task, *_ = prepare(config)
    objective, batch = task.objective, task.sampler.segments(0, torch.Generator().manual_seed(0))
    assert isinstance(objective, DDPM)
    (asked,) = objective.corrupt(batch, torch.Generator().manual_seed(1))
    asked = dataclasses.replace(asked, sigma=asked.sigma.clamp(min=0.02))  # the first steps have next to no variance
    alpha = alphas()[(asked.sigma * TIMESTEPS).round().long() - 1][..., None, None, None]
    asked = dataclasses.replace(
        asked, x=alpha.sqrt() * batch.target + (1 - alpha).sqrt() * torch.randn_like(batch.target)
    )
    right = said(kind, batch.target, asked.x, alpha).clone().requires_grad_()
    bounds = {}
    for value in (-1.0, -0.5, 1.0):
        log_var = torch.full_like(right, value, requires_grad=True)
        error, bound = objective._hybrid(batch.target, asked, DiTOutput(right, Tensor(), Tensor(), log_var))
        assert float(error.detach().max()) < 1e-4 and float(bound.detach().min()) > -1e-5
        bounds[value] = float(bound.detach().mean())
        bound.sum().backward()
        assert right.grad is None and log_var.grad is not None
    assert bounds[-1.0] < 1e-4 and bounds[-1.0] < bounds[-0.5] < bounds[1.0]
    wrong, _ = objective._hybrid(
        batch.target, asked, DiTOutput(right.detach() + 1, Tensor(), Tensor(), log_var.detach())
    )
    assert float(wrong.min()) >= 0.99


def test_it_trains_and_its_world_plays_with_the_bits_it_has_alone(
    dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    """Through self-rollouts, a checkpoint, the export, and the engine."""
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path / "run", steps=4, objective="ddpm")
    train_dynamics(config)
    world = World.from_pretrained(tmp_path / "run" / "world", dtype=torch.float32)
    assert world.dynamics.config.learned_variance and world.card.sampler["solver"] == "ddpm"
    frames = []
    for others in (0, 3):
        engine = Engine(world, threads=1)
        numbers = [engine.open(seed=seed, prompt="a cart") for seed in range(1 + others)]
        steps = [engine.step({n: turn % 2 for n in numbers})[numbers[0]].frame for turn in range(4)]
        frames.append(np.stack(steps))
        engine.close()
    assert np.array_equal(frames[0], frames[1]) and frames[0].std() > 0


def test_a_world_of_another_objective_is_refused(dataset: Dataset, world_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="train with the world's own objective"):
        prepare(tiny_dynamics(dataset, tmp_path, tmp_path, init_from=world_path, objective="ddpm"))
    with pytest.raises(ConfigError, match="prediction is 'y'; allowed"):
        DDPMConfig(prediction="y")  # type: ignore[arg-type]


@pytest.mark.slow
def test_300_steps_beat_copying(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """The next frame of held-out episodes, sampled by DDIM and by DDPM, is nearer than the frame before."""
    model = DiTConfig(width=64, heads=2, pattern="stst", text_layers=(0,), history=2, action_history=2, context=4)
    config = tiny_dynamics(
        dataset, autoencoder_run, tmp_path, steps=300, objective="ddpm", model=model, segments=8, image_samples=0,
        rollout_segments=0, event_segments=0, terminal_segments=0,
    )  # fmt: skip
    task, trainer, *_ = prepare(config)
    for _ in range(300):
        trainer.train_step()
    starts = task.val.sample_starts(64, 1, torch.Generator().manual_seed(0), 2)
    seen = task.val.latents[starts.unsqueeze(1) + torch.arange(-2, 0)].float()
    truth = task.val.latents[starts].float()
    copied = float((seen[:, -1] - truth).square().mean())
    simulator = Simulator(task.module.eval(), config.objective.world_sampler())
    prompts = [task.book.encode(text) for text in task.val.prompts]
    sampled = roll(simulator, task.val, prompts, starts, seen.unsqueeze(1), 1, 0).seen[:, 0, -1]
    assert float((sampled - truth).square().mean()) < copied

    state = simulator.begin(list(range(64)), [prompts[i] for i in task.val.prompt[starts].tolist()])
    state.history, state.step = seen, torch.full((64,), 2)
    steps = starts.unsqueeze(1) - torch.arange(1, -1, -1)
    state.actions, state.known = task.val.actions[steps], task.val.known[steps]
    inputs = simulator._encode(state, state.keys, state.prompts, [])
    scheduler = DDPMScheduler(
        **SCHEDULE,
        clip_sample=False,
        variance_type="learned_range",
        prediction_type="sample",
        timestep_spacing="trailing",
    )  # type: ignore[arg-type]
    scheduler.set_timesteps(50)
    with torch.no_grad():
        noise = simulator.noise(state)
        predict = lambda x, sigma: simulator._pass(x, sigma, inputs, [])[0]  # noqa: E731
        sampled = sample(denoise(scheduler, noise, torch.Generator().manual_seed(0)), predict)
    assert float((sampled - truth).square().mean()) < copied
