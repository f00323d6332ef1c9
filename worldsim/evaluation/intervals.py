"""95 % intervals of figures over episodes, not over frames: frames of one episode are too similar to count separately.

A figure is a function of sums over segments, so that a resample of the episodes only adds up other sums.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

Interval = tuple[float, float]
Statistic = Callable[[np.ndarray], np.ndarray]
"""From sums (..., K) to the figure (...)."""

DRAWS = 2000
LEVEL = 0.95
NORMAL = 1.959964  # quantile of the normal distribution for LEVEL


def bootstrap(sums: np.ndarray, groups: Sequence[int], statistic: Statistic, seed: int = 0) -> Interval | None:
    """Compute the percentile interval of a figure under resampled episodes (Efron 1979, doi:10.1214/aos/1176344552).

    Args:
        sums: what the figure is made of, for each segment, (S, K).
        groups: the episode of each segment: those of one episode are resampled together.
        statistic: the figure of the summed rows.
        seed: of the resampling.

    Returns:
        Low and high end, or None where there are fewer than two episodes, which say nothing of each other.
    """
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    if len(names) < 2:
        return None
    totals = np.zeros((len(names), sums.shape[1]))
    np.add.at(totals, index, sums)
    counts = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=DRAWS)
    with np.errstate(divide="ignore", invalid="ignore"):
        figures = statistic(counts @ totals)
    figures = figures[np.isfinite(figures)]
    if not len(figures):
        return None
    low, high = np.quantile(figures, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def wilson(hits: float, count: int) -> Interval | None:
    """Compute the interval of a share of independent tries (Wilson 1927); 20 of 20 is not certainty. None for none."""
    if count < 1:
        return None
    share, z = hits / count, NORMAL**2 / count
    middle, half = share + z / 2, NORMAL * math.sqrt(share * (1 - share) / count + z / (4 * count))
    return max(0.0, (middle - half) / (1 + z)), min(1.0, (middle + half) / (1 + z))


def ratio(top: int = 0, bottom: int = 1) -> Statistic:
    """Make the statistic that divides one sum by another."""
    return lambda sums: sums[..., top] / sums[..., bottom]


def decibels(error: int, values: int) -> Statistic:
    """Make the statistic PSNR, of a sum of squared errors and the number of values."""
    return lambda sums: 10 * np.log10(255**2 * sums[..., values] / sums[..., error])


def psnr_intervals(
    drawn: Tensor, truth: Tensor, baselines: dict[str, Tensor], groups: Sequence[int]
) -> dict[str, float | Interval | None]:
    """Compute pooled PSNR with its interval, and its gain over baselines on the same segments.

    Args:
        drawn: frames uint8 (S, N, H, W, 3).
        truth: the same shape.
        baselines: by name, the same shape.
        groups: the episode of each of the S segments.

    Returns:
        "psnr_interval", and for each baseline "over_NAME" in dB and "over_NAME_interval".
    """
    errors = [squared(frames, truth) for frames in (drawn, *baselines.values())]
    sums = np.stack([*errors, np.full(len(truth), truth[0].numel(), float)], axis=1)
    own, values = 0, len(errors)
    report: dict[str, float | Interval | None] = {
        "psnr_interval": bootstrap(sums, groups, decibels(own, values)),
    }
    for column, name in enumerate(baselines, start=1):

        def over(rows: np.ndarray, column: int = column) -> np.ndarray:
            return 10 * np.log10(rows[..., column] / rows[..., own])

        total = sums.sum(axis=0)
        with np.errstate(divide="ignore", invalid="ignore"):
            report[f"over_{name}"] = float(over(total))
        report[f"over_{name}_interval"] = bootstrap(sums, groups, over)
    return report


def squared(frames: Tensor, truth: Tensor) -> np.ndarray:
    """Sum the squared errors of each segment, for frames (S, ...), as float64 (S,)."""
    return np.array([float((a.float() - b.float()).square().sum()) for a, b in zip(frames, truth, strict=True)])


def shown(value: float | None, interval: Sequence[float] | None, digits: int = 2) -> str:
    """Format a figure: "29.20 [28.91, 29.48]", without brackets if there is no interval."""
    if value is None:
        return "-"
    if interval is None:
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"


def plain(value: Any) -> Any:
    """Convert to JSON values: without infinities, with fewer than 17 digits."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return round(value, 4) if math.isfinite(value) else None
    return value
