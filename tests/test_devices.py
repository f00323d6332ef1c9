"""Training and play on another device: every tensor is made on the device of its batch or model.

The device is a logical one (`logical_device`), so that mistakes show on a machine without a GPU.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from logical_device import WrongDevice, logical
from tiny import tiny_dynamics

from worldsim.data.episodes import Dataset
from worldsim.engine.simulator import Simulator
from worldsim.training.run import prepare
from worldsim.training.trainer import Trainer
from worldsim.world import World


def test_the_lint_sees_mistakes() -> None:
    with logical():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device.type == "cuda" and here.device.type == "cpu"
        assert (2 * there).device == there.new_zeros(2).device == there[:2].device == there.device
        for mistake in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: here[there.long()],
            lambda: torch.nn.functional.linear(there, here[None]),
            lambda: there.add_(here),
            lambda: there.numpy(),
            lambda: torch.zeros(3, device=torch.device("cuda")) + here,
        ):
            with pytest.raises(WrongDevice):
                mistake()
        assert (there + here.to(there)).device == (there + here.to("cuda")).device == there.device
        assert (there.cpu() + here).device == (there.to("cpu") + here).device == here.device
        assert (there * torch.tensor(2.0)).device == there.device  # a number, on any device
        layer = torch.nn.Linear(3, 3).to("cuda")
        layer(there).sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.device == there.device
        with pytest.raises(WrongDevice):
            layer(here)


@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize("objective", ["energy", "flow", "ddpm"])
def test_training(objective: str, dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """Steps with long segments, self-rollouts and errors, a sample grid, and going on from a checkpoint."""
    config = tiny_dynamics(
        dataset, autoencoder_run, tmp_path, steps=4, objective=objective, long_frames=8, long_every=2, error_prob=0.5
    )
    task, *_ = prepare(config)
    with logical() as marks:
        task.module.to("cuda")
        trainer = Trainer(task, config.trainer, tmp_path)
        for _ in range(3):
            trainer.train_step()
        trainer.draw()
        trainer.save()
        again = Trainer(task, config.trainer, tmp_path)
        assert again.step == 3
        again.train_step()
        assert all(map(marks.has, task.module.parameters())) and all(map(marks.has, again.ema.values()))


def test_play(world: World) -> None:
    with logical() as marks:
        world.dynamics.to("cuda")
        simulator = Simulator.of(world)
        state = simulator.begin([1, 2], [world.book.encode(text) for text in ("", "a cart")])
        state.guidance = [1.0, 2.0]
        outcome = simulator.step(state, None)
        outcome = simulator.step(state, torch.zeros(2, world.codec.size))
        assert marks.has(outcome.latents) and marks.has(outcome.keys)
        simulator.observe(state, outcome.latents, torch.zeros(2, world.codec.size))
