"""Fixtures: quiet SDL, one thread, tiny real worlds made from a tiny real recording."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("SDL_AUDIODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

from hosting import HostProcess, hosting
from tiny import tiny_autoencoder, tiny_dynamics

from worldsim.data.episodes import Dataset
from worldsim.data.record import RecordConfig, record
from worldsim.training.autoencoder import train_autoencoder
from worldsim.training.run import train_dynamics
from worldsim.world import World

if TYPE_CHECKING:
    from worldsim.agents.training import AgentConfig

SEED = 7
WORKERS = 4  # at most: each holds its own tiny worlds and loads its own torch
SLOW = 600.0  # seconds that a slow test may take


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker for each core when all tests are run; none for a file or a test by name, which would wait for it."""
    if config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return 0
    return min(os.cpu_count() or 1, WORKERS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every slow test has a limit of its own or this one."""
    for item in items:
        if item.get_closest_marker("slow") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What was tuned on this machine must not decide a test."""
    before = os.environ.get("WORLDSIM_CACHE")
    os.environ["WORLDSIM_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    os.environ.pop("WORLDSIM_CACHE")
    if before is not None:
        os.environ["WORLDSIM_CACHE"] = before


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    yield


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A real recording: 400 frames of CartPole at 40 x 40."""
    out = tmp_path_factory.mktemp("data") / "cartpole"
    return record(
        RecordConfig(game="CartPole-v1", out=out, frames=400, workers=1, frame_size=(40, 40), prompt="a cart")
    )


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
    model = out / "world" / "dynamics" / "model.safetensors"
    weights = load_file(model)
    weights["heads.termination.2.bias"] -= (
        20  # it was hardly trained: without this, every other step would end an episode
    )
    save_file(weights, model)
    return out / "world"


@pytest.fixture
def world(world_path: Path) -> World:
    """A tiny trained world in float32."""
    return World.from_pretrained(world_path, dtype=torch.float32)


@pytest.fixture
def dummy_screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pygame without a screen, and without one left over."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")
    yield
    if "pygame" in sys.modules:
        sys.modules["pygame"].quit()


@pytest.fixture(scope="session")
def host(world_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A running host of the tiny world, for all tests that leave it as it is: the command, from nothing."""
    with hosting([world_path], tmp_path_factory.mktemp("host"), afresh=True) as process:
        yield process


@pytest.fixture(scope="session")
def dreamer(world_path: Path, tmp_path_factory: pytest.TempPathFactory) -> AgentConfig:
    """An agent that has learned a little in the tiny world, and its config."""
    pytest.importorskip("stable_baselines3")
    from small_agents import small

    from worldsim.agents.training import train_agent

    torch.set_num_threads(1)
    config = small(world=str(world_path), out=tmp_path_factory.mktemp("agent"), steps=32)
    train_agent(config)
    return config


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks that learn little, in no time, and a power that is tested elsewhere."""
    from worldsim.evaluation import following, realism, recovery

    monkeypatch.setattr(realism, "STEPS", 40)
    monkeypatch.setattr(following, "STEPS", 20)
    monkeypatch.setattr(recovery, "AFTER", (1, 4))
    monkeypatch.setattr(realism, "power", lambda: {"rotten": 0.97, "melted": 0.9})
