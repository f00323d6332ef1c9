"""Tiny real trainings: seconds on one core, every part in place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from worldsim.baselines.unet.model import UNetConfig
from worldsim.baselines.unet.training import BaselineTraining
from worldsim.data.episodes import Dataset
from worldsim.data.segments import BatchConfig
from worldsim.diffusion.objectives import OBJECTIVES
from worldsim.models.autoencoder import AutoencoderConfig
from worldsim.models.dit import DiTConfig
from worldsim.training.autoencoder import AutoencoderTraining
from worldsim.training.configs import DynamicsTraining
from worldsim.training.self_forcing import SelfForcingConfig
from worldsim.training.trainer import TrainerConfig

UNET = UNetConfig(widths=(8, 16), layers=1, groups=4, embedding=16, action_size=2)


def tiny_autoencoder(dataset: Dataset, out: Path, steps: int = 5) -> AutoencoderTraining:
    """A config that trains a tiny autoencoder for a few steps."""
    return AutoencoderTraining(
        data=dataset.path,
        out=out,
        model=AutoencoderConfig(widths=(16,), encoder_blocks=(1,), decoder_blocks=(1,), latent_channels=4),
        trainer=TrainerConfig(steps=steps, log_every=2, matmul="highest"),
        batch=4,
    )


def tiny_dynamics(dataset: Dataset, autoencoder: Path, out: Path, steps: int = 6, **changes: Any) -> DynamicsTraining:
    """A config that trains tiny dynamics for a few steps, half of them on its own rollouts.

    `changes` are fields of any branch of the config, as options of the command line are.
    """
    settings: dict = {
        "model": DiTConfig(width=32, heads=2, pattern="st", text_layers=(0,), history=2, action_history=2, context=4),
        "trainer": TrainerConfig(steps=steps, log_every=2, warmup=2, matmul="highest"),
        "segments": 3,
        "image_samples": 2,
        "frames": 5,
        "rollout_segments": 2,
        "rollout_start": steps // 2,
        "rollout_buffer": 2,
        "compile": False,
    } | changes
    branches = {
        "batch": BatchConfig,
        "self_forcing": SelfForcingConfig,
        "objective": OBJECTIVES[settings.pop("objective", "energy")],
    }
    for branch, kind in branches.items():
        names = {field.name for field in dataclasses.fields(kind)} & settings.keys()
        settings[branch] = kind(**{name: settings.pop(name) for name in names})
    return DynamicsTraining(data=dataset.path, autoencoder=autoencoder, out=out, **settings)


def changed(config: DynamicsTraining, **changes: Any) -> DynamicsTraining:
    """The same with other fields, of any branch."""
    for branch in ("batch", "self_forcing", "objective"):
        part = getattr(config, branch)
        names = {field.name for field in dataclasses.fields(part)} & changes.keys()
        changed = dataclasses.replace(part, **{name: changes.pop(name) for name in names})
        config = dataclasses.replace(config, **{branch: changed})
    return dataclasses.replace(config, **changes)


def tiny_baseline(dataset: Dataset, out: Path, steps: int = 4) -> BaselineTraining:
    """A config that trains a tiny U-Net for a few steps."""
    trainer = TrainerConfig(steps=steps, log_every=2, warmup=2)
    return BaselineTraining(data=dataset.path, out=out, model=UNET, trainer=trainer, batch=4)


# Ways for a session to begin.
OPENINGS: list[Any] = [
    {"seed": 1},
    {"seed": 2, "prompt": "a cart"},
    {"seed": 3, "prompt": "", "guidance": 2.5},
    {"seed": 2**70, "start": 0, "prompt": "a cart"},
]
