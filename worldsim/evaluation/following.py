"""Measure whether a world follows its actions, and not only its momentum.

The truth is the real game, played by a beginner who taps random keys. The world starts from the same frames and plays
the same actions; under the actions of another session its error must grow. A small network that was trained on real
frames predicts the pressed keys from frames of the world.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim.evaluation.intervals import bootstrap, ratio, squared
from worldsim.evaluation.rollout import Runner, Segments, scripted

FRAMES = 16  # the frame after which errors are compared
GAP = 2  # frames: the reader sees one frame and the one so many steps later, and the action between is held
WIDTHS = (16, 24, 32)
STEPS, BATCH, RATE = 200, 24, 4e-3  # of the reader's training


class Reader(nn.Module):
    """Predicts the key that was pressed between two frames."""

    def __init__(self, keys: int) -> None:
        """Initialize with random weights."""
        super().__init__()
        layers: list[nn.Module] = []
        for few, many in zip((9, *WIDTHS[:-1]), WIDTHS, strict=True):
            layers += [nn.Conv2d(few, many, 4, stride=2, padding=1), nn.GroupNorm(4, many), nn.SiLU()]
        self.trunk, self.head = nn.Sequential(*layers), nn.LazyLinear(keys)

    def forward(self, pairs: Tensor) -> Tensor:
        """Compute logits (N, keys) of pairs of frames uint8 (N, 2, H, W, 3)."""
        first, second = (x.permute(0, 3, 1, 2).float() / 127.5 - 1 for x in pairs.unbind(dim=1))
        if first.shape[2] > 64:
            first, second = (F.interpolate(x, (64, 64), mode="area") for x in (first, second))
        seen = self.trunk(torch.cat([first, second, 4 * (second - first)], dim=1))
        return self.head(F.adaptive_avg_pool2d(seen, 4).flatten(1))


def train_reader(pairs: Tensor, keys: Tensor, count: int, seed: int = 0) -> Reader:
    """Train a reader on pairs uint8 (N, 2, H, W, 3) and the number of the key between each, (N,)."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Reader(count)
        model(pairs[:1])
    rng = np.random.default_rng([seed, 70])
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.05)
    rates = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    for _ in range(STEPS):
        rows = rng.integers(len(pairs), size=BATCH)
        loss = F.cross_entropy(model(pairs[rows]), keys[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return model.eval()


def read_keys(
    real: tuple[Tensor, Tensor], drawn: tuple[Tensor, Tensor], sources: tuple[list[int], list[int]]
) -> dict[str, Any]:
    """Measure how often the keys are predicted right.

    Args:
        real: pairs uint8 (N, 2, H, W, 3) of real frames and the number of the key between each, (N,).
        drawn: the same of drawn frames.
        sources: the session of each pair of both. The reader is trained on every second two sessions of the real ones
            and tested on the others of both: neighbours go together, one in motion and one at rest.

    Returns:
        read and real_read, shares 0..1 with intervals over sessions, and chance, the share of the commonest key.
    """
    learned = [i for i, source in enumerate(sources[0]) if source // 2 % 2 == 0]
    tested = [[i for i, source in enumerate(part) if source // 2 % 2] for part in sources]
    if not learned or not all(tested):
        return {"read": None, "real_read": None, "chance": None}
    count = int(torch.cat([real[1], drawn[1]]).max()) + 1
    model = train_reader(real[0][learned], real[1][learned], count)
    report: dict[str, Any] = {}
    for name, (pairs, keys), rows, part in zip(("real_read", "read"), (real, drawn), tested, sources, strict=True):
        with torch.no_grad():
            right = (
                torch.cat([model(pairs[chunk]).argmax(dim=1) for chunk in torch.tensor(rows).split(128)]) == keys[rows]
            )
        sums = np.stack([right.double().numpy(), np.ones(len(rows))], axis=1)
        report |= {
            name: float(right.float().mean()),
            f"{name}_interval": bootstrap(sums, [part[i] for i in rows], ratio()),
        }
    report["chance"] = float(real[1][tested[0]].bincount().max() / len(tested[0]))
    return report


def pairs_of(frames: Tensor, keys: Tensor, before: Tensor) -> tuple[Tensor, Tensor, list[int]]:
    """Find pairs of frames GAP apart between which one key was pressed all the time.

    Args:
        frames: uint8 (S, N, H, W, 3), one for each step.
        keys: the number of the key that led to each, (S, N).
        before: the frame before the first, uint8 (S, H, W, 3).

    Returns:
        The pairs uint8 (M, 2, H, W, 3), their keys (M,) and sessions.
    """
    whole = torch.cat([before.unsqueeze(1), frames], dim=1)
    found, numbers, sources = [], [], []
    for row in range(len(frames)):
        for t in range(frames.shape[1] - GAP + 1):
            if (keys[row, t : t + GAP] == keys[row, t]).all():
                found.append(torch.stack([whole[row, t], whole[row, t + GAP]]))
                numbers.append(int(keys[row, t]))
                sources.append(row)
    empty = whole.new_zeros(0, 2, *whole.shape[2:])
    return torch.stack(found) if found else empty, torch.tensor(numbers, dtype=torch.long), sources


def key_numbers(actions: Tensor) -> Tensor:
    """Number the different actions of (S, N, action_size), (S, N)."""
    flat, numbers = torch.unique(actions.flatten(0, 1), dim=0, return_inverse=True)
    return numbers.unflatten(0, actions.shape[:2])


def following(runner: Runner, segments: Segments, actions: Tensor, truth: Tensor) -> dict[str, Any]:
    """Replay real sessions in a world, with their own actions and with those of the next session.

    Args:
        runner: predicts the frames.
        segments: contexts of the sessions.
        actions: that the real game was played with, flattened, (S, N, action_size).
        truth: its frames, one for each action, uint8 (S, N, H, W, 3).

    Returns:
        shuffled_ratio: the squared error at the last frame with another session's actions over that with the right
        ones, and shuffled_db, the same in dB; over_copy_db: what is gained over the frame before; with intervals over
        sessions; and what `read_keys` says.
    """
    prompts = [[texts[-1]] * actions.shape[1] for texts in segments.prompts]
    last, count = segments.frames[:, -1], actions.shape[1]
    drawn, other = (
        runner.free(segments, scripted(taken, prompts), count, title="following")
        for taken in (actions, actions.roll(1, dims=0))
    )
    errors = [squared(frames, truth[:, -1]) for frames in (drawn[:, -1], other[:, -1], last)]
    sums = np.stack(errors, axis=1)
    report: dict[str, Any] = {"frames": count}
    for name, top in (("shuffled", 1), ("over_copy", 2)):

        def decibels(total: np.ndarray, top: int = top) -> np.ndarray:
            return 10 * np.log10(total[..., top] / total[..., 0])

        with np.errstate(divide="ignore", invalid="ignore"):
            report[f"{name}_db"] = float(decibels(sums.sum(axis=0)))
        report[f"{name}_db_interval"] = bootstrap(sums, range(len(sums)), decibels)
    report["shuffled_ratio"] = float(10 ** (report["shuffled_db"] / 10))
    report["shuffled_ratio_interval"] = bootstrap(sums, range(len(sums)), ratio(1, 0))
    keys = key_numbers(actions)
    real, mine = (pairs_of(frames, keys, last) for frames in (truth, drawn))
    return report | read_keys(real[:2], mine[:2], (real[2], mine[2]))
