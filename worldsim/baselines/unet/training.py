"""Train the U-Net baseline: the next frame from the last ones, the actions and the prompt, in pixels.

Nothing comes before it (no autoencoder), and each sample of a batch is one frame.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldsim.baselines.unet import edm
from worldsim.baselines.unet.model import UNetConfig, UNetDynamics, to_pixels
from worldsim.data.episodes import Dataset
from worldsim.errors import ConfigError, DataError
from worldsim.models.text import PromptBook
from worldsim.spaces import ActionCodec
from worldsim.training.precision import choose
from worldsim.training.trainer import Trainer, TrainerConfig
from worldsim.types import TextContext

GRID_EPISODES, GRID_FRAMES = 4, 32


@dataclass(frozen=True, kw_only=True)
class BaselineTraining:
    """What `train_baseline` does."""

    data: Path
    """A recorded dataset."""
    out: Path | None = None
    """The run folder (default: runs/DATASET-unet); a run that was stopped there goes on."""
    model: UNetConfig = field(default_factory=UNetConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    batch: int = 16
    compile: bool = False
    """Compile the U-Net for training: four minutes of CPU time once, then steps are a tenth faster (it is mostly
    convolutions, which stay as they are): for runs of hours. It needs a C++ compiler."""

    def __post_init__(self) -> None:
        """A run that is told no end takes an hour."""
        object.__setattr__(self, "trainer", self.trainer.or_minutes(60))

    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / f"{self.data.name}-unet"


@dataclass(frozen=True)
class PixelData:
    """N frames of a recording; episodes follow each other.

    Attributes:
        frames: uint8 (N, H, W, 3).
        actions: flattened, the one that led to each frame; zeros for the first of an episode; (N, action_size).
        prompt: index into `prompts`, (N,).
        first: row of the first frame of the same episode, (N,).
        prompts: the distinct prompts.
    """

    frames: Tensor
    actions: Tensor
    prompt: Tensor
    first: Tensor
    prompts: list[str]

    @staticmethod
    def read(dataset: Dataset, split: str, limit: int | None = None) -> PixelData:
        """Read the episodes of a split, at most `limit`.

        Raises:
            DataError: the split is empty.
        """
        episodes, places = dataset.read(split, limit), dict[str, int]()
        actions, prompt, first, offset = [], [], [], 0
        for episode in episodes:
            flat = torch.from_numpy(ActionCodec(dataset.action_space).flatten(episode.actions))
            actions.append(torch.cat([torch.zeros_like(flat[:1]), flat]))
            prompt += [places.setdefault(text, len(places)) for text in episode.texts()]
            first.append(torch.full((len(flat) + 1,), offset))
            offset += len(flat) + 1
        frames = torch.from_numpy(np.concatenate([episode.frames for episode in episodes]))
        return PixelData(frames, torch.cat(actions), torch.tensor(prompt), torch.cat(first), list(places))

    def rows(self, history: int, after: int = 1) -> Tensor:
        """Rows with `history` frames before them and `after` - 1 behind them in the same episode.

        Raises:
            DataError: no episode is long enough.
        """
        index = torch.arange(len(self.first) - after + 1)
        fits = (index - self.first[index] >= history) & (self.first[index] == self.first[index + after - 1])
        if not fits.any():
            raise DataError(f"no episode has {history + after} frames in a row; record longer episodes.")
        return index[fits]


def prompt_means(book: PromptBook, prompts: list[str]) -> Tensor:
    """The mean state of each prompt's words, (U, text_width); zeros for the empty prompt."""
    text = TextContext.of([book.encode(prompt) for prompt in prompts], book.tokens)
    return text.states.sum(dim=1) / text.mask.sum(dim=1, keepdim=True).clamp(min=1)


class BaselineTask:
    """EDM's loss of the next frame."""

    def __init__(self, config: BaselineTraining, data: PixelData, val: PixelData | None, book: PromptBook) -> None:
        """Build the model; `data` trains it, `val` is drawn on sample grids (None: on none)."""
        self.config, self.data, self.val, self.book = config, data, val, book
        self.module: UNetDynamics = config.model.build()
        if config.compile:
            self.module.compile_unet()
        self.text = prompt_means(book, data.prompts)
        self.choice = data.rows(config.model.history)
        self.back = torch.arange(-config.model.history, 1)

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """One batch of frames at random places."""
        config, data, device = self.config, self.data, self.module.device
        rows = self.choice[torch.randint(len(self.choice), (config.batch,), generator=generator)]
        index = rows.unsqueeze(1) + self.back  # (B, K + 1)
        pixels = to_pixels(data.frames[index].to(device))
        past, clean = pixels[:, :-3], pixels[:, -3:]
        sigma = edm.sample_sigmas(config.batch, generator).to(device)
        noisy = edm.add_noise(clean, sigma, config.model.offset_noise, generator)
        scales = edm.scales(sigma, config.model.offset_noise)
        target = (clean - scales.skip.view(-1, 1, 1, 1) * noisy) / scales.out.view(-1, 1, 1, 1)
        actions, text = data.actions[index[:, 1:]].to(device), self.text[data.prompt[rows]].to(device)
        out = self.module(noisy, sigma, past, actions, text)
        error = (out - target).square()
        # The squared error of the frame itself, where it was hidden.
        hidden = (sigma > 1).float()
        pixel = (error.detach().mean(dim=(1, 2, 3)) * scales.out.square() * hidden).sum() / hidden.sum().clamp(min=1)
        return error.mean(), {"pixel_error": float(pixel)}

    @torch.no_grad()
    def sample_grid(self, module: nn.Module) -> np.ndarray | None:
        """Held-out segments, the truth above the model's own play under the recorded actions, every 8th frame."""
        if self.val is None:
            return None
        frames = min(GRID_FRAMES, int(torch.bincount(self.val.first).max()) - self.config.model.history)
        drawn, truth = self.play(module, GRID_EPISODES, frames)
        shown = [0, *range(7, frames, 8)]
        pairs = zip(truth[:, shown], drawn[:, shown], strict=True)
        return torch.cat([torch.cat(list(line), dim=1) for pair in pairs for line in pair]).numpy()

    @torch.no_grad()
    def play(self, module: nn.Module, count: int, frames: int) -> tuple[Tensor, Tensor]:
        """Free running over up to `count` held-out segments under the recorded actions, and the truth of them.

        Returns:
            Two of uint8 (S, frames, H, W, 3).
        """
        assert self.val is not None and isinstance(module, UNetDynamics)
        val, history = self.val, module.config.history
        fits = val.rows(history, frames)
        starts = fits[:: max(1, len(fits) // count)][:count]
        text, generator = prompt_means(self.book, val.prompts), torch.Generator().manual_seed(0)
        seen = val.frames[starts.unsqueeze(1) + self.back[:-1]]  # (S, K, H, W, 3)
        bf16 = choose(module.device, self.config.trainer.bf16).bf16
        for n in range(frames):
            rows = starts + n
            noise = torch.randn((len(rows), 3, *seen.shape[2:4]), generator=generator)
            actions = val.actions[rows.unsqueeze(1) + self.back[1:]]
            with torch.autocast(module.device.type, dtype=torch.bfloat16, enabled=bf16):
                drawn = module.draw(noise, to_pixels(seen[:, -history:]), actions, text[val.prompt[rows]])
            seen = torch.cat([seen, drawn.cpu().unsqueeze(1)], dim=1)
        return seen[:, history:], val.frames[starts.unsqueeze(1) + torch.arange(frames)]

    def state(self) -> dict[str, Any]:
        """Nothing but the weights."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Nothing to load."""


def train_baseline(config: BaselineTraining) -> UNetDynamics:
    """Train, and save the EMA weights in the run folder. Run again, it goes on where it stopped."""
    task, trainer = prepare_baseline(config)
    trainer.run()
    return save_baseline(task, trainer)


def prepare_baseline(config: BaselineTraining) -> tuple[BaselineTask, Trainer]:
    """Read the recording and build (or resume) the run, without a step of training.

    Raises:
        DataError: no such dataset, or episodes that are too short.
        ConfigError: the frames cannot be halved as often as the model has levels.
    """
    torch.set_num_threads(config.trainer.threads)
    dataset = Dataset(config.data)
    side = config.model.patch * 2 ** (len(config.model.widths) - 1)
    if any(size % side for size in dataset.frame_size):
        raise ConfigError(
            f"frames of {dataset.frame_size} are no multiples of {side}, which patch {config.model.patch} and "
            f"{len(config.model.widths)} levels need; use fewer levels."
        )
    model = dataclasses.replace(config.model, action_size=ActionCodec(dataset.action_space).size)
    val = PixelData.read(dataset, "heldout", 8) if dataset.episodes("heldout") else None
    torch.manual_seed(config.trainer.seed)
    book = PromptBook(model.text_width)
    task = BaselineTask(dataclasses.replace(config, model=model), PixelData.read(dataset, "train"), val, book)
    return task, Trainer(task, config.trainer, config.folder())


def save_baseline(task: BaselineTask, trainer: Trainer) -> UNetDynamics:
    """The model with the EMA weights, saved in the run folder as `load_baseline` reads it."""
    model = task.config.model.build()
    model.load_state_dict(trainer.ema)
    folder = trainer.out / "unet"
    folder.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in trainer.ema.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dataclasses.asdict(model.config), indent=2) + "\n")
    return model.eval()


def load_baseline(out: Path, dtype: torch.dtype = torch.float32) -> UNetDynamics:
    """The model that a training run left in `out`, its weights in `dtype`.

    Raises:
        ConfigError: no finished run there.
    """
    folder = Path(out) / "unet"
    if not (folder / "config.json").is_file():
        raise ConfigError(f"no trained U-Net in {out}; make one with worldsim.baselines.unet.training.train_baseline.")
    config = json.loads((folder / "config.json").read_text())
    settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config.items()}
    model = UNetConfig(**settings).build()
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.to(dtype).eval()
