"""Train the autoencoder: frames in, the same frames out."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from worldsim.data.episodes import Dataset, count_steps, read_episode
from worldsim.errors import ConfigError, DataError, WorldError
from worldsim.files import replacing, replacing_folder
from worldsim.models.autoencoder import AutoencoderConfig, DiffusersAutoencoder, FrameAutoencoder
from worldsim.models.autoencoder_files import (
    describe_autoencoder,
    load_autoencoder,
    load_pretrained,
    save_autoencoder,
)
from worldsim.training.trainer import Trainer, TrainerConfig
from worldsim.untrusted import Untrusted, read_json

GRID_FRAMES = 16
SAMPLE_FRAMES = 2048  # that latent statistics are taken of
SAMPLE_CLIPS, SAMPLE_LATENTS = 32, 5  # the same of an autoencoder of clips, and the latents of each


@dataclass(frozen=True, kw_only=True)
class AutoencoderTraining:
    """What `worldsim train autoencoder` does."""

    data: Path
    """A recorded dataset."""
    out: Path | None = None
    """The run folder (default: runs/DATASET-autoencoder); a run that was stopped there goes on."""
    pretrained: str | None = None
    """An autoencoder of diffusers to use as it is, a folder or a hub id: of images (`AutoencoderTiny`, `AutoencoderKL`)
    or of causal clips (`AutoencoderKLWan`). Nothing is trained, only the statistics of its latents are taken."""
    model: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    batch: int = 24
    latent_noise: float = 0.05
    """Noise on the latents, of their own deviation: the decoder learns to bear small errors."""
    edges: float = 0.5
    """Weight of the absolute error of differences between neighbours, which keeps edges sharp."""

    def __post_init__(self) -> None:
        """A run that is told no end takes ten minutes."""
        object.__setattr__(self, "trainer", self.trainer.or_minutes(10))

    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / f"{self.data.name}-autoencoder"


class AutoencoderTask:
    """Squared error on pixels plus absolute error on their differences, on random frames of the training split."""

    def __init__(self, config: AutoencoderTraining, dataset: Dataset) -> None:
        """Count the frames of the training split; batches are read from disk."""
        self.config = config
        self.module = config.model.build(dataset.frame_size).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frames = dataset.frames("train")
        if self.module.linear:
            sample = torch.from_numpy(self.frames.evenly(4096))
            self.module.start_linear(sample.permute(0, 3, 1, 2).float() / 127.5 - 1)
        self.val = torch.from_numpy(dataset.frames("heldout").evenly(GRID_FRAMES))[:GRID_FRAMES]

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """One batch of random frames."""
        index = torch.randint(len(self.frames), (self.config.batch,), generator=generator)
        frames = torch.from_numpy(self.frames.read(index.numpy())).to(self.module.device)
        pixels = frames.permute(0, 3, 1, 2).float() / 127.5 - 1  # (B, 3, H, W), channels_last
        latents = self.module.encode_raw(pixels)
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)
        spread = latents.detach().float().std(dim=(0, 2, 3), keepdim=True)
        out = self.module.decode_raw(latents + self.config.latent_noise * spread * noise).float()
        error = out - pixels
        square = error.square().mean()
        # A frame of one row has no neighbours down: a mean of nothing is no number.
        edges = sum(part.abs().mean() for dim in (-1, -2) if (part := error.diff(dim=dim)).numel())
        # MSE of a unit-range picture is small: scaled so that the gradient norm is near one.
        loss = 20 * square + self.config.edges * edges
        return loss, {"psnr": -10 * float(torch.log10(square.detach() / 4))}

    def sample_grid(self, module: nn.Module) -> np.ndarray:
        """Held-out frames above what the autoencoder makes of them."""
        assert isinstance(module, FrameAutoencoder)
        shown = module.decode(module.encode(self.val)).cpu()
        return torch.cat([torch.cat(list(frames), 1) for frames in (self.val, shown)], 0).numpy()

    def state(self) -> dict[str, Any]:
        """Nothing but the weights."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


@torch.no_grad()
def latent_statistics(autoencoder: DiffusersAutoencoder, frames: np.ndarray) -> tuple[Tensor, Tensor]:
    """Mean and scale per latent channel over uint8 `frames` (N, H, W, 3), or clips (N, T, H, W, 3).

    The scale is the channel's deviation over the fourth root of what its unit change does to the pixels (as squared
    error), so that a squared error of latents weighs channels halfway between equally and as pixels do. Equal weights
    would spend the dynamics on texture: half of the channels carry noise-like detail that no one can predict.
    """
    autoencoder.set_statistics(torch.zeros_like(autoencoder.mean), torch.ones_like(autoencoder.std))
    parts = np.array_split(frames, min(32, len(frames)))
    latents = torch.cat([autoencoder.encode(torch.from_numpy(part)) for part in parts])  # (N, [t,] C, h, w)
    others = [axis for axis in range(latents.dim()) if axis != latents.dim() - 3]
    mean, std = latents.mean(dim=others), latents.std(dim=others)
    probe = latents[:: max(1, len(latents) // 16)]
    base = autoencoder.decode(probe).float()
    noise = 0.3 * torch.randn(probe.select(-3, 0).shape, generator=torch.Generator().manual_seed(0)).to(probe)
    effect = torch.empty_like(std)
    for channel in range(len(std)):
        moved = probe.clone()
        moved.select(-3, channel).add_(noise * std[channel])
        effect[channel] = (autoencoder.decode(moved).float() - base).square().mean()
    weight = effect.clamp(min=1e-6).sqrt()
    return mean, std / (weight / weight.mean()).sqrt()


def prepare_autoencoder(config: AutoencoderTraining) -> tuple[AutoencoderTask, Trainer]:
    """Build (or resume) the run, without a step of training."""
    dataset = Dataset(config.data)
    torch.manual_seed(config.trainer.seed)
    task = AutoencoderTask(config, dataset)
    return task, Trainer(task, config.trainer, config.folder())


def train_autoencoder(config: AutoencoderTraining) -> DiffusersAutoencoder:
    """Train, and save the EMA weights with their latent statistics in the run folder; or take a pretrained one."""
    if config.pretrained is not None:
        return adopt_autoencoder(config, config.pretrained)
    task, trainer = prepare_autoencoder(config)
    trainer.run()
    task.module.load_state_dict(trainer.ema)
    task.module.set_statistics(*latent_statistics(task.module, task.frames.evenly(SAMPLE_FRAMES)))
    save_run(task.module, config.folder())
    return task.module


def adopt_autoencoder(config: AutoencoderTraining, name: str) -> DiffusersAutoencoder:
    """Save an autoencoder of diffusers, with the statistics of its latents of a recording, in the run folder.

    Raises:
        WorldError: there is no such autoencoder.
        DataError: no episode of the recording is long enough.
        ConfigError: the run folder has an autoencoder that was trained, or the recording's frames do not fit.
    """
    if (config.folder() / "checkpoint.pt").exists():
        raise ConfigError(f"{config.folder()} has a training run; choose another folder with --out.")
    dataset = Dataset(config.data)
    autoencoder, episodes = load_pretrained(name), dataset.episodes("train")
    if autoencoder.temporal_stride == 1:
        frames = dataset.frames("train").evenly(SAMPLE_FRAMES)
    else:
        frames = _clips(episodes, 1 + (SAMPLE_LATENTS - 1) * autoencoder.temporal_stride)
    shown = autoencoder.decode(autoencoder.encode(torch.from_numpy(frames[:1]))).shape[-3:-1]
    if tuple(shown) != tuple(dataset.frame_size):
        raise ConfigError(
            f"frames of {dataset.frame_size} come back from {name} as {tuple(shown)}; record with --frame-size "
            f"{shown[0]} {shown[1]}."
        )
    autoencoder.set_statistics(*latent_statistics(autoencoder, frames))
    save_run(autoencoder, config.folder())
    return autoencoder


def _clips(episodes: list[Path], frames: int) -> np.ndarray:
    """Read clips of so many frames from the middle of different episodes, (N, frames, H, W, 3)."""
    clips = []
    for path in episodes[:: max(1, len(episodes) // SAMPLE_CLIPS)]:
        if (steps := count_steps(path)) >= frames - 1:
            begin = (steps - frames + 1) // 2
            clips.append(read_episode(path, begin, begin + frames - 1).frames)
    if not clips:
        raise DataError(f"no episode has {frames} frames in a row; record longer episodes.")
    return np.stack(clips[:SAMPLE_CLIPS])


def save_run(autoencoder: DiffusersAutoencoder, out: Path) -> None:
    """Write a trained autoencoder where `load_run` finds it."""
    card = {
        **describe_autoencoder(autoencoder),
        "mean": autoencoder.mean.tolist(),
        "std": autoencoder.std.tolist(),
    }
    with replacing_folder(out / "autoencoder") as partial:
        save_autoencoder(autoencoder, partial, torch.float32)
    with replacing(out / "autoencoder.json") as partial:
        partial.write_text(json.dumps(card))


def load_run(out: Path) -> DiffusersAutoencoder:
    """The autoencoder that a training run left in `out`.

    Raises:
        ConfigError: no finished run there.
        WorldError: what is there is damaged.
    """
    path = Path(out) / "autoencoder.json"
    if not path.is_file():
        raise ConfigError(
            f"no trained autoencoder in {out}; make one with: worldsim train autoencoder DATA --out {out}"
        )
    try:
        card = read_json(path)
        return load_autoencoder(card, card.pop("mean"), card.pop("std"), Path(out) / "autoencoder")
    except (OSError, SafetensorError, KeyError, Untrusted) as error:
        raise WorldError(f"the autoencoder in {out} is damaged ({error}); train it again, or restore it.") from error
