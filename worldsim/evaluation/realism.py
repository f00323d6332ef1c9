"""Told from real: how well a small network tells predicted frames from real ones of the same ages and inputs.

The network, its training and its seed are constants of this module, so that a figure means the same everywhere. It is
trained on some sessions and tested on others. The figure is the balanced accuracy: the mean of the shares of real and
of predicted frames that are classified right. .5 is chance and the best value; 1 means that every frame is recognized
(a classifier two-sample test, Lopez-Paz and Oquab 2017, arXiv:1610.06545). Real frames are encoded and decoded first,
because the figure is about the dynamics; the effect of the decoder alone is a figure of its own.

The network sees local contrast: each pixel less the mean around it, in units of the deviation around it. On plain
pixels it saw brightness and strong edges alone, and told nothing where a person sees at a glance that walls melt and
that squares of the ground become blobs (docs/log.md, 2026-11-30).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim.errors import DataError
from worldsim.evaluation.intervals import Interval, bootstrap
from worldsim.models.autoencoder import DiffusersAutoencoder

WIDTHS = (16, 24, 32)  # channels of the layers, each at half the size of the one before
STEPS, BATCH, RATE = 200, 16, 6e-3  # of training, half of a batch real; the highest learning rate
AROUND, LEAST = 9, 0.01  # side in pixels of the neighbourhood of a pixel; added to its deviation, of -1..1
SHIFT = 4  # pixels by which training frames are moved, at most
FOLDS = 4  # a session is tested by the network that was trained on the sessions of the other folds
SIDE = 64  # larger frames are measured at this height
POWER = {"rotten": 0.95, "melted": 0.75}  # told at least so well, kept frames show that the measure sees
REFERENCES = Path(__file__).parent


class Critic(nn.Module):
    """Predicts one logit for each frame: above 0 for a predicted frame."""

    def __init__(self) -> None:
        """Initialize with random weights."""
        super().__init__()
        layers: list[nn.Module] = []
        for few, many in zip((3, *WIDTHS[:-1]), WIDTHS, strict=True):
            convolution = nn.Conv2d(few, many, 4 if few == 3 else 3, stride=2, padding=1)
            layers += [convolution, nn.GroupNorm(4, many), nn.SiLU()]
        self.trunk, self.head = nn.Sequential(*layers), nn.Linear(2 * WIDTHS[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (N,) of frames as `prepared` returns them, (N, 3, H, W)."""
        seen = self.trunk(x)
        return self.head(torch.cat([seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1))[:, 0]


@dataclass(frozen=True)
class Told:
    """The result of a test.

    Attributes:
        accuracy: balanced, 0..1; None where there are too few sessions.
        interval: 95 %, over episodes.
        real: mean logit of each real session by a network that was not trained on it, nan for an empty one.
        drawn: the same of the drawn sessions.
    """

    accuracy: float | None
    interval: Interval | None
    real: Tensor
    drawn: Tensor


def prepared(frames: Tensor) -> Tensor:
    """Prepare frames uint8 (N, H, W, 3) for the network: their local contrast, (N, 3, h, w)."""
    x = frames.permute(0, 3, 1, 2).float() / 127.5 - 1
    height, width = x.shape[2:]
    x = x if height <= SIDE else F.interpolate(x, (SIDE, round(width * SIDE / height)), mode="area")
    mean = _around(x)
    variance = (_around(x * x) - mean * mean).mean(dim=1, keepdim=True).clamp(min=0)
    return (x - mean) / (variance.sqrt() + LEAST)


def _around(x: Tensor) -> Tensor:
    """Average over the neighbourhood of each pixel, less of it at the border."""
    return F.avg_pool2d(x, AROUND, stride=1, padding=AROUND // 2, count_include_pad=False)


def train(real: Tensor, drawn: Tensor, seed: int) -> Critic:
    """Train a network to tell the frames of one set from those of the other, both as `prepared` returns them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Critic()
    rng = np.random.default_rng([seed, 50])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    target = torch.cat([torch.zeros(BATCH // 2), torch.ones(BATCH // 2)])
    pad = (SHIFT, SHIFT, SHIFT, SHIFT)
    height, width = real.shape[2:]
    for _ in range(STEPS):
        x = torch.cat([part[rng.integers(len(part), size=BATCH // 2)] for part in (real, drawn)])
        top, left = rng.integers(2 * SHIFT + 1, size=2)
        x = F.pad(x, pad, mode="replicate")[:, :, top : top + height, left : left + width]
        x = x.flip(3) if rng.random() < 0.5 else x
        loss = F.binary_cross_entropy_with_logits(model(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return model.eval()


def tell(
    real: Sequence[Tensor],
    drawn: Sequence[Tensor],
    folds: Sequence[int],
    seed: int = 0,
    groups: Sequence[int] | None = None,
) -> Told:
    """Tell predicted sessions from real ones; see `tell_by_age`, of which this is the case of one age."""
    return tell_by_age([real], [drawn], folds, seed, groups)[0]


def tell_by_age(
    real: Sequence[Sequence[Tensor]],
    drawn: Sequence[Sequence[Tensor]],
    folds: Sequence[int],
    seed: int = 0,
    groups: Sequence[int] | None = None,
) -> list[Told]:
    """Tell predicted sessions from real ones at some ages, by networks that learn from all of these ages.

    Args:
        real: by age, the frames of each real session, uint8 (n, H, W, 3); n may be 0.
        drawn: the same of as many drawn ones; those at one place have the same start and are kept in one fold.
        folds: the fold of each place, 0 to FOLDS - 1.
        seed: of the networks.
        groups: the episode of each place; those of one are resampled together (default: each has its own).

    Returns:
        The result at each age.
    """
    sides = [[[prepared(frames) for frames in age] for age in part] for part in (real, drawn)]
    logits = torch.full((2, len(real), len(folds)), float("nan"))
    rights = torch.zeros(len(real), len(folds), 4)  # share told right of a real one, 1 if it exists; of a drawn one
    for fold in range(FOLDS):
        learned = [
            [x for age in part for x, f in zip(age, folds, strict=True) if f != fold and len(x)] for part in sides
        ]
        if fold not in folds or not all(learned):
            continue
        model = train(torch.cat(learned[0]), torch.cat(learned[1]), seed + fold)
        for side, part in enumerate(sides):
            for age, sessions in enumerate(part):
                for i, x in enumerate(sessions):
                    if folds[i] == fold and len(x):
                        with torch.no_grad():
                            found = model(x)
                        logits[side, age, i] = found.mean()
                        right = ((found > 0) == bool(side)).float().mean()
                        rights[age, i, 2 * side : 2 * side + 2] = torch.tensor([right, 1.0])
    groups = range(len(folds)) if groups is None else groups
    return [_told(rights[age], groups, logits[0, age], logits[1, age]) for age in range(len(real))]


def _told(rights: Tensor, groups: Sequence[int], real: Tensor, drawn: Tensor) -> Told:
    sums = rights.double().numpy()
    if not (sums[:, 1].sum() and sums[:, 3].sum()):
        return Told(None, None, real, drawn)

    def balanced(total: np.ndarray) -> np.ndarray:
        return (total[..., 0] / total[..., 1] + total[..., 2] / total[..., 3]) / 2

    return Told(float(balanced(sums.sum(axis=0))), bootstrap(sums, groups, balanced), real, drawn)


def folds_of(count: int) -> list[int]:
    """Assign starts to folds: neighbours go together, so that every fold has starts in motion and at rest."""
    return [i // 2 % FOLDS for i in range(count)]


def tell_itself(sessions: Sequence[Tensor], seed: int = 0) -> Told:
    """Tell one half of some sessions from the other half: the figure when there is no difference, about .5."""
    halves = [[frames for i, frames in enumerate(sessions) if i // 4 % 2 == half] for half in range(2)]
    pairs = min(map(len, halves))
    return tell(halves[0][:pairs], halves[1][:pairs], folds_of(pairs), seed)


@torch.no_grad()
def decoded(autoencoder: DiffusersAutoencoder, frames: Tensor) -> Tensor:
    """Encode and decode frames uint8 (N, H, W, 3)."""
    if not len(frames):
        return frames
    return torch.cat([autoencoder.decode(autoencoder.encode(part)).cpu() for part in frames.split(64)])


def line(told: Told) -> dict[str, Any]:
    """Format the figure for a report."""
    return {"told": told.accuracy, "told_interval": told.interval}


@functools.cache
def power() -> dict[str, float]:
    """Measure how well the bad frames that are kept beside this module are told from the real ones of the same starts.

    Both are of a doom, one frame of each of 16 sessions: "rotten" after 300 steps without a key in the world of
    2026-11-28, "melted" after 64 steps of steering in that of 2026-11-30. They are kept, so that the check stays the
    same whatever worlds do later.

    Raises:
        DataError: the kept frames are missing or damaged.
    """
    found = {}
    for name in POWER:
        real, drawn = kept_frames(name)
        found[name] = tell(real, drawn, folds_of(len(real))).accuracy or 0.0
    return found


def is_blind(found: dict[str, float]) -> bool:
    """Say whether the measure is blind by its `power`, and must give no figures."""
    return any(found[name] < least for name, least in POWER.items())


def kept_frames(name: str) -> tuple[list[Tensor], list[Tensor]]:
    """Read kept real and bad frames by their name in POWER, uint8 (1, H, W, 3) of each session.

    Raises:
        DataError: they are missing or damaged.
    """
    path = REFERENCES / f"{name}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            real, drawn = (list(torch.from_numpy(file[side])) for side in ("real", "drawn"))
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); install this package again.") from error
    return real, drawn
