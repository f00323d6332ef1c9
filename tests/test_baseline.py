"""The U-Net baseline: EDM's identities, conditions that matter, exact resume, free runs that follow their seed."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import UNET, tiny_baseline
from torch import Tensor

from worldsim.baselines.unet import edm
from worldsim.baselines.unet.evaluation import BaselineEval, UNetRunner, compare, table
from worldsim.baselines.unet.model import UNetConfig, UNetDynamics, to_frames, to_pixels
from worldsim.baselines.unet.training import (
    PixelData,
    load_baseline,
    prepare_baseline,
    train_baseline,
)
from worldsim.data.episodes import Dataset
from worldsim.errors import ConfigError, DataError
from worldsim.evaluation.rollout import Segments, context_of, cut, recorded
from worldsim.world import World


@pytest.fixture(scope="module")
def run(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a tiny trained U-Net."""
    out = tmp_path_factory.mktemp("unet")
    train_baseline(tiny_baseline(dataset, out, steps=12))
    return out


def segments(dataset: Dataset, world: World, frames: int = 4) -> Segments:
    episodes = dataset.read("train")
    return cut(episodes, dataset.action_space, 3, context_of(world), frames, np.random.default_rng(1))


def lively(config: UNetConfig = UNET) -> UNetDynamics:
    """A model in which nothing is left of the zeros that it begins with."""
    model = config.build()
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


# The preconditioning.


def test_almost_clean_frames_pass_and_noise_does_not() -> None:
    low, high = edm.scales(torch.tensor([1e-5])), edm.scales(torch.tensor([1e5]))
    assert low.skip == pytest.approx(1, abs=1e-6) and low.out == pytest.approx(0, abs=1e-4)
    assert high.skip == pytest.approx(0, abs=1e-6) and high.out == pytest.approx(edm.DATA, rel=1e-6)


@pytest.mark.parametrize("offset", [0.0, 0.3])
def test_what_the_network_sees_and_says_is_of_unit_size(offset: float) -> None:
    generator = torch.Generator().manual_seed(3)
    clean = edm.DATA * torch.randn(4000, 3, 4, 4, generator=generator)
    for level in (0.05, 0.5, 5.0):
        sigma = torch.full((len(clean),), level)
        noisy = edm.add_noise(clean, sigma, offset, generator)
        scales = edm.scales(torch.tensor(level), offset)
        assert float((scales.into * noisy).std()) == pytest.approx(1, abs=0.03), level
        assert float(((clean - scales.skip * noisy) / scales.out).std()) == pytest.approx(1, abs=0.03), level


def test_levels() -> None:
    assert edm.get_schedule(3)[0] == pytest.approx(5) and edm.get_schedule(3)[2:] == [pytest.approx(2e-3), 0.0]
    assert edm.get_schedule(1) == [pytest.approx(5), 0.0]
    levels = edm.sample_sigmas(20000, torch.Generator().manual_seed(0))
    assert float(levels.log().median()) == pytest.approx(-0.4, abs=0.05)
    assert edm.LEVELS[0] <= float(levels.min()) and float(levels.max()) <= edm.LEVELS[1]


# The model.


def inputs(batch: int = 2) -> tuple[Tensor, ...]:
    shapes = [(batch, 3, 16, 16), (batch, 12, 16, 16), (batch, 4, 2), (batch, 384)]
    noisy, past, actions, text = (torch.randn(shape, generator=torch.Generator().manual_seed(5)) for shape in shapes)
    return noisy, torch.rand(batch) + 0.1, past, actions, text


def test_a_new_model_is_the_preconditioning_alone() -> None:
    noisy, sigma, past, actions, text = inputs()
    skip = edm.scales(sigma, UNET.offset_noise).skip.view(-1, 1, 1, 1)
    torch.testing.assert_close(UNET.build().denoise(noisy, sigma, past, actions, text), skip * noisy)


@pytest.mark.parametrize("patch", [1, 2])
def test_each_condition_reaches_the_frame(patch: int) -> None:
    """Changing the noise level, any past frame, any action or the prompt changes what the network says, of one row."""
    model = lively(dataclasses.replace(UNET, patch=patch))
    given = inputs()
    with torch.no_grad():
        base = model(*given)
        changes = [(0, (1,)), (1, (1,)), (4, (1,))]
        changes += [(2, (1, slice(3 * k, 3 * k + 3))) for k in range(4)] + [(3, (1, k)) for k in range(4)]
        for which, place in changes:
            other = [value.clone() for value in given]
            other[which][place] += 0.5
            out = model(*other)
            assert torch.equal(out[0], base[0]), (which, place)
            assert float((out[1] - base[1]).abs().max()) > 1e-3, (which, place)


def test_frames_to_pixels_and_back() -> None:
    frames = torch.randint(0, 256, (2, 3, 8, 8, 3), dtype=torch.uint8)
    pixels = to_pixels(frames)
    assert pixels.is_contiguous(memory_format=torch.channels_last)
    for k in range(3):
        assert torch.equal(to_frames(pixels[:, 3 * k : 3 * k + 3]), frames[:, k])


@pytest.mark.parametrize("bad", [{"widths": ()}, {"widths": (12,), "groups": 8}, {"steps": 0}, {"history": 0}])
def test_bad_shapes_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        UNetConfig(**bad)


# Training.


def test_resume_is_exact(dataset: Dataset, tmp_path: Path) -> None:
    """5 steps at once equal 3 steps, a stop, and 2 more: bit for bit; and what is saved is what is loaded."""
    whole = train_baseline(tiny_baseline(dataset, tmp_path / "whole", 5)).state_dict()
    train_baseline(tiny_baseline(dataset, tmp_path / "parts", 3))
    train_baseline(tiny_baseline(dataset, tmp_path / "parts", 5))
    parts = load_baseline(tmp_path / "parts").state_dict()
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_learns(dataset: Dataset, tmp_path: Path) -> None:
    """The loss can go down: forty steps on a small recording halve it."""
    config = tiny_baseline(dataset, tmp_path, 40)
    settings = dataclasses.replace(config.trainer, bf16=False, learning_rate=3e-3)
    task, trainer = prepare_baseline(dataclasses.replace(config, batch=8, trainer=settings))
    losses = [trainer.train_step()["loss"] for _ in range(40)]
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10]), losses
    assert task.module is not None


def test_rows_stay_within_an_episode(dataset: Dataset) -> None:
    data = PixelData.read(dataset, "train")
    for history, after in ((4, 1), (2, 5)):
        rows = set(data.rows(history, after).tolist())
        want = set()
        for row in range(len(data.frames)):
            inside = range(row - history, row + after)
            if inside.start >= 0 and inside.stop <= len(data.frames):
                want |= {row} if len({int(data.first[i]) for i in inside}) == 1 else set()
        assert rows == want
    with pytest.raises(DataError, match="record longer"):
        data.rows(10000)


def test_what_cannot_be_trained_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    config = tiny_baseline(dataset, tmp_path)
    with pytest.raises(ConfigError, match="multiples of 32"):
        train_baseline(dataclasses.replace(config, model=UNetConfig(widths=(8,) * 6)))
    with pytest.raises(ConfigError, match="no trained U-Net"):
        load_baseline(tmp_path / "nothing")


# Playing.


def test_a_free_run_follows_its_seed_alone(dataset: Dataset, world: World) -> None:
    """The same seed gives the same frames, alone and in a batch; another seed gives others."""
    found, model = segments(dataset, world), lively()
    drawn = [
        UNetRunner(model, world, batch, seed).free(found, recorded(found)) for batch, seed in ((3, 0), (3, 0), (3, 9))
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    single = UNetRunner(model, world, 1, 0).free(found, recorded(found))
    assert int((single.int() - drawn[0].int()).abs().max()) <= 2  # sums in another order, and no more


def test_the_first_free_frame_is_a_forced_one(dataset: Dataset, world: World) -> None:
    found, runner = segments(dataset, world), UNetRunner(lively(), world)
    forced, shuffled = runner.forced(found, found.taken, 100 - found.taken)  # far off: it hardly listens yet
    free = runner.free(found, recorded(found))
    assert torch.equal(forced[:, 0], free[:, 0])
    assert not torch.equal(forced, shuffled)  # actions matter


def test_compares(dataset: Dataset, world_path: Path, run: Path, tmp_path: Path) -> None:
    """Both are measured on the same segments: their copies are equal."""
    report = compare(
        BaselineEval(
            world=world_path, unet=run, data=dataset.path, starts=2, horizons=(8,), timed=8, out=tmp_path
        )
    )  # fmt: skip
    stages = [name for name in report["unet"] if "frame_" in name]
    assert stages and all(name in report["world"] for name in stages)
    same = ("copy_psnr", "moving", "frames")
    for stage in stages:
        if isinstance(report["unet"][stage], dict):
            assert all(report["unet"][stage][key] == report["world"][stage][key] for key in same)
            assert report["unet"][stage]["psnr"] != report["world"][stage]["psnr"]
    assert min(report[name]["ms_per_frame"] for name in report) > 0
    assert "U-Net" in table(report) and "next frame: PSNR" in table(report)
    assert (tmp_path / "unet" / "next.png").is_file()


def test_a_longer_history_than_the_stretches_is_refused(world: World) -> None:
    model = dataclasses.replace(UNET, history=50).build()
    assert isinstance(model, UNetDynamics)
    with pytest.raises(DataError, match="stacks 50 frames"):
        UNetRunner(model, world)
