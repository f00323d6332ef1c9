"""Measure whether a world stands still while no key is held, and whether a turn works afterwards.

A player that walked slides on for a while, so the picture is compared with the one SETTLED steps after the keys were
released: by the mean color of blocks of 8x8 pixels, in grey levels of 255. A frozen picture stands still too, so a turn
is tried after a long rest.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from worldsim.evaluation.intervals import Interval, wilson
from worldsim.evaluation.steering import Camera, turns

SETTLED = 16  # steps after the keys were let go
BLOCK = 8  # pixels of 64
LIMIT = 2.0  # grey levels: a larger distance is drift
AGES = (64, 128, 256, 400)
TURN_AT, TURN_STEPS = 300, 12  # the step of the rest after which a turn is tried, and for how long
SPEED_UP = 4  # steps of it after which the turn has gathered speed


def blocks(frames: Tensor) -> Tensor:
    """Compute the mean colors of blocks of frames uint8 (..., H, W, 3), float (..., 3, h, w)."""
    flat = frames.reshape(-1, *frames.shape[-3:]).permute(0, 3, 1, 2).float()
    means = F.avg_pool2d(flat, max(1, BLOCK * frames.shape[-3] // 64))
    return means.unflatten(0, frames.shape[:-3])


def distance(frames: Tensor, settled: Tensor) -> Tensor:
    """Compute the mean distance of blocks between frames of the same shape (..., H, W, 3), 0..255; (...)."""
    return (blocks(frames) - blocks(settled)).abs().mean(dim=(-3, -2, -1))


def median_interval(values: Tensor, seed: int = 0) -> Interval | None:
    """Compute the 95 % bootstrap interval of the median of values (S,); None for fewer than two."""
    if len(values) < 2:
        return None
    rows = np.random.default_rng(seed).integers(len(values), size=(2000, len(values)))
    low, high = np.quantile(np.median(values.double().numpy()[rows], axis=1), [0.025, 0.975])
    return float(low), float(high)


def spread(values: Tensor, limit: float = LIMIT) -> dict[str, Any]:
    """Compute the median of distances (S,) and the share beyond a limit, with intervals over sessions."""
    values = values[~values.isnan()]
    if not len(values):
        return {"median": None, "sessions": 0}
    over = int((values > limit).sum())
    return {
        "median": float(values.double().quantile(0.5)),
        "median_interval": median_interval(values),
        "worst": float(values.max()),
        "over": over / len(values),
        "over_interval": wilson(over, len(values)),
        "limit": limit,
        "sessions": len(values),
    }


def turned(before: Tensor, frames: Tensor, camera: Camera, way: float) -> tuple[Tensor, Tensor]:
    """Say whether turns go in the right direction.

    Args:
        before: the frame before each turn, uint8 (S, H, W, 3).
        frames: those of the turn, uint8 (S, n, H, W, 3).
        camera: how a turn moves the picture.
        way: the sign of an amount that is right.

    Returns:
        Which sessions clearly turn that way by their mean amount, bool (S,), and that amount a step, (S,).
    """
    all_frames = torch.cat([before.unsqueeze(1), frames], dim=1)[:, min(SPEED_UP, frames.shape[1] - 1) :]
    pairs = all_frames[:, :-1].flatten(0, 1), all_frames[:, 1:].flatten(0, 1)
    amounts, clear, _ = turns(*pairs, camera)
    moved = (amounts * clear).unflatten(0, (len(before), -1))  # what is not clearly a turn counts as none
    mean = moved.mean(dim=1) * way
    return (mean > 1) & ((moved * way > 0).float().mean(dim=1) > 0.5), mean
