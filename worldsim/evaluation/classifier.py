"""A small network that predicts a recording's labels from a frame: what is in view, the light, the place.

It is trained on real frames with the labels of the game, including half of the frames that are held out of the training
of worlds. It is tested on real frames that it has not seen before it classifies frames of a world. Whether an object is
in view is decided at a threshold that few real frames without the object pass.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from worldsim.data.episodes import Dataset, Episode, count_steps, read_episode
from worldsim.errors import ConfigError, DataError

UNSEEN_BY_EYE = ("text", "event")  # labels that no single frame shows
EVENTFUL = 3  # every such frame while an event is being told is taken too: that is when rare things are seen
LEAST = 0.1  # a thing is never seen at a lower probability
VALIDATED = 8  # every such training episode sets thresholds instead


@dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """How a classifier is trained."""

    width: int = 16  # channels of its first layer
    frames: int = 16_000  # of training, evenly from all episodes; beside those of events
    steps: int = 2000
    batch: int = 48
    learning_rate: float = 2e-3
    false_positives: float = 0.02  # share of real frames without a thing in which it may be seen
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("width", "frames", "steps", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")


Labels = Mapping[str, tuple[Any, ...]]
"""The values that each label can have, (False, True) or names."""


class Classifier(nn.Module):
    """Predicts the values of labels from frames.

    Attributes:
        labels: the labels that it predicts.
        thresholds: for each yes-or-no label, the probability from which it says yes.
    """

    def __init__(self, labels: Labels, width: int = 16, thresholds: dict[str, float] | None = None) -> None:
        """Initialize with random weights."""
        super().__init__()
        self.labels, self.width, self.thresholds = dict(labels), width, dict(thresholds or {})
        sizes = [3, width, 2 * width, 4 * width, 6 * width]
        layers: list[nn.Module] = []
        for few, many in zip(sizes[:-1], sizes[1:], strict=True):
            layers += [nn.Conv2d(few, many, 3, stride=2, padding=1), nn.GroupNorm(4, many), nn.SiLU()]
        self.trunk = nn.Sequential(*layers, nn.Conv2d(sizes[-1], sizes[-1], 3, padding=1), nn.SiLU())
        self.heads = nn.Linear(2 * sizes[-1], sum(len(values) for values in labels.values()))

    def forward(self, frames: Tensor) -> dict[str, Tensor]:
        """Compute logits of each label's values, (N, values), of uint8 (N, H, W, 3) or float 0..1 (N, 3, H, W)."""
        x = frames.permute(0, 3, 1, 2).float() / 255 if frames.dtype == torch.uint8 else frames
        seen = self.trunk(2 * x - 1)
        pooled = torch.cat([seen.amax(dim=(2, 3)), seen.mean(dim=(2, 3))], dim=1)  # a small thing, or all of it
        parts = self.heads(pooled).split([len(values) for values in self.labels.values()], dim=1)
        return dict(zip(self.labels, parts, strict=True))

    @torch.no_grad()
    def shares(self, frames: Tensor) -> dict[str, Tensor]:
        """Compute the probability of each label's values, (N, values), of frames uint8 (N, H, W, 3)."""
        parts = [self(part) for part in frames.split(256)]
        return {name: torch.cat([part[name] for part in parts]).softmax(dim=1) for name in self.labels}

    def shows(self, frames: Tensor, label: str, value: Any) -> Tensor:
        """Say which frames (N, H, W, 3) show a value of a label, bool (N,)."""
        shares = self.shares(frames)[label]
        if self.labels[label] == (False, True):
            return (shares[:, 1] >= self.thresholds.get(label, 0.5)) == bool(value)
        return shares.argmax(dim=1) == self.labels[label].index(value)


def labels_of(episodes: list[Episode]) -> Labels:
    """Find the labels of some episodes that take more than one value and that a frame can show."""
    found: dict[str, set[Any]] = {}
    for episode in episodes:
        for prompt in episode.prompts:
            for name, value in prompt.items():
                if name not in UNSEEN_BY_EYE and isinstance(value, bool | str):
                    found.setdefault(name, set()).add(value)
    return {name: tuple(sorted(values)) for name, values in sorted(found.items()) if len(values) > 1}


def examples(
    episode: Episode, labels: Labels, every: int = 1, begin: int = 0, eventful: bool = False
) -> tuple[Tensor, Tensor]:
    """Take each `every`-th frame with the number of each label's value, uint8 (N, H, W, 3) and (N, labels).

    `eventful` adds frames in which the prompt names an event.
    """
    numbers = np.array(
        [[labels[name].index(prompt[name]) for name in labels] for prompt in episode.prompts], dtype=np.int64
    )
    chosen = np.arange(begin, len(episode) + 1, every)
    if eventful:
        told = np.array([bool(prompt.get("event")) for prompt in episode.prompts])[episode.prompt_index]
        chosen = np.union1d(chosen, np.flatnonzero(told)[::EVENTFUL])
    return torch.from_numpy(episode.frames[chosen]), torch.from_numpy(numbers[episode.prompt_index[chosen]])


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([frames for frames, _ in parts]), torch.cat([numbers for _, numbers in parts])


def train(dataset: Dataset, config: ClassifierConfig) -> Classifier:
    """Train a classifier of the dataset's labels.

    Raises:
        DataError: too few episodes, or they have no labels.
    """
    # A judge has to know what is held out of worlds, too.
    paths = dataset.episodes("train") + dataset.episodes("unseen")[::2]
    if len(paths) < 2:
        raise DataError(f"dataset {dataset.path} has {len(paths)} episodes of training; a classifier needs 2 or more.")
    every = max(1, sum(count_steps(path) for path in paths) // config.frames)
    labels = labels_of([read_episode(path, 0, 0) for path in paths])
    if not labels:
        raise DataError(f"dataset {dataset.path} has no labels beside its prompts that a classifier could learn.")
    rng = np.random.default_rng(config.seed)
    learned, validated = [], []
    for i, path in enumerate(tqdm(paths, desc="reading", unit="episode", leave=False, disable=None)):
        own = validated if i % VALIDATED == 0 else learned
        own.append(examples(read_episode(path), labels, every, int(rng.integers(every)), eventful=True))
    torch.manual_seed(config.seed)
    model = Classifier(labels, config.width)
    _fit(model, *_joined(learned), config, rng)
    frames, numbers = _joined(validated)
    shares = model.shares(frames)
    for column, (name, values) in enumerate(labels.items()):
        without = shares[name][numbers[:, column] == 0, 1] if values == (False, True) else torch.empty(0)
        if len(without):
            limit = float(torch.quantile(without.double(), 1 - config.false_positives))
            model.thresholds[name] = min(max(LEAST, limit), 0.999)
    return model


def _fit(
    model: Classifier, frames: Tensor, numbers: Tensor, config: ClassifierConfig, rng: np.random.Generator
) -> None:
    """Fit: half of each batch comes from all frames, half takes every value of every label equally often."""
    rare = [
        torch.nonzero(numbers[:, k] == v)[:, 0] for k, vs in enumerate(model.labels.values()) for v in range(len(vs))
    ]
    rare = [rows for rows in rare if len(rows)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.01)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, config.learning_rate, total_steps=config.steps)
    model.train()
    for _ in tqdm(range(config.steps), desc="classifier", unit="step", leave=False, disable=None):
        turns = rng.integers(len(rare), size=config.batch // 2)
        rows = [int(rare[k][rng.integers(len(rare[k]))]) for k in turns]
        rows += rng.integers(len(frames), size=config.batch - len(rows)).tolist()
        x = frames[rows].permute(0, 3, 1, 2).float() / 255
        if rng.random() < 0.5:
            x = x.flip(3)
        if rng.random() < 0.5:  # what a world draws is a little blurred
            x = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
        logits = model(x)
        loss = torch.stack([F.cross_entropy(part, numbers[rows, k]) for k, part in enumerate(logits.values())]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    model.eval()


def accuracy(model: Classifier, frames: Tensor, numbers: Tensor) -> dict[str, dict[str, float]]:
    """Compute how often each label is predicted right, of frames and their labels from `examples`.

    Returns:
        For a yes-or-no label "found" (of the frames that show it) and "invented" (of those that do not), for others
        "right"; and the "frames" with it.
    """
    shares, report = model.shares(frames), {}
    for column, (name, values) in enumerate(model.labels.items()):
        truth = numbers[:, column]
        if values == (False, True):
            said, yes = shares[name][:, 1] >= model.thresholds.get(name, 0.5), truth == 1
            report[name] = {
                "found": float(said[yes].float().mean()),
                "invented": float(said[~yes].float().mean()),
                "frames": int(yes.sum()),
            }
        else:
            right = shares[name].argmax(dim=1) == truth
            report[name] = {"right": float(right.float().mean()), "frames": len(truth)}
    return report


def save(model: Classifier, path: Path, config: ClassifierConfig) -> None:
    """Write a classifier as safetensors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"labels": model.labels, "thresholds": model.thresholds, "config": asdict(config)}
    save_file(model.state_dict(), path, metadata={"classifier": json.dumps(about, sort_keys=True)})


def load(path: Path, config: ClassifierConfig) -> Classifier | None:
    """Read the classifier at `path`; None if there is none that was trained with these settings."""
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["classifier"])
            if about["config"] != asdict(config):
                return None
            labels = {name: tuple(values) for name, values in about["labels"].items()}
            model = Classifier(labels, config.width, about["thresholds"])
            model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError):  # none there, or damaged: it is made again
        return None
    return model.eval()


def trained(dataset: Dataset, path: Path, config: ClassifierConfig | None = None) -> Classifier:
    """Read the classifier at `path`; train it first if it does not exist."""
    config = config or ClassifierConfig()
    model = load(path, config)
    if model is None:
        model = train(dataset, config)
        save(model, path, config)
    return model
