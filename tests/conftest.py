"""Fixtures: quiet SDL, one thread, tiny real worlds made from a tiny real recording."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

from worldsim.data.episodes import Dataset
from worldsim.data.record import RecordConfig, record
from worldsim.models.autoencoder import AutoencoderConfig
from worldsim.models.dit import DiTConfig
from worldsim.training.autoencoder import AutoencoderTraining, train_autoencoder
from worldsim.training.dynamics import DynamicsTraining, train_dynamics
from worldsim.training.trainer import TrainerConfig
from worldsim.world import World

SEED = 7


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    yield


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A real recording: 400 frames of CartPole at 32 x 32."""
    out = tmp_path_factory.mktemp("data") / "cartpole"
    return record(
        RecordConfig(game="CartPole-v1", out=out, frames=400, workers=1, frame_size=(32, 32), prompt="a cart")
    )


def tiny_autoencoder(dataset: Dataset, out: Path, steps: int = 5) -> AutoencoderTraining:
    """A config that trains a tiny autoencoder for a few steps."""
    return AutoencoderTraining(
        data=dataset.path,
        out=out,
        model=AutoencoderConfig(widths=(16,), encoder_blocks=(1,), decoder_blocks=(1,), latent_channels=4),
        trainer=TrainerConfig(steps=steps, log_every=2),
        batch=4,
    )


def tiny_dynamics(
    dataset: Dataset, autoencoder: Path, out: Path, steps: int = 6, **changes: object
) -> DynamicsTraining:
    """A config that trains tiny dynamics for a few steps, half of them on its own rollouts."""
    settings: dict = {
        "model": DiTConfig(width=32, heads=2, pattern="st", text_layers=(0,), history=2, action_history=2, context=4),
        "trainer": TrainerConfig(steps=steps, log_every=2, warmup=2),
        "windows": 3,
        "frames": 4,
        "own": 2,
        "own_after": steps // 2,
        "own_pool": 2,
    }
    return DynamicsTraining(data=dataset.path, autoencoder=autoencoder, out=out, **(settings | changes))


@pytest.fixture(scope="session")
def autoencoder_run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny trained autoencoder."""
    out = tmp_path_factory.mktemp("autoencoder")
    train_autoencoder(tiny_autoencoder(dataset, out))
    return out


@pytest.fixture(scope="session")
def world_path(dataset: Dataset, autoencoder_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny trained world."""
    out = tmp_path_factory.mktemp("dynamics")
    train_dynamics(tiny_dynamics(dataset, autoencoder_run, out))
    return out / "world"


@pytest.fixture
def world(world_path: Path) -> World:
    """A tiny trained world in float32."""
    return World.from_pretrained(world_path, dtype=torch.float32)
