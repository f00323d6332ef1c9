"""Reference ranges of sharpness, brightness and colours: could the real game have shown a frame?

A reference range is that of the middle 98 % of real frames. The colour measure is the distance of a frame's histogram
from that of all real frames pooled: the mean over the channels of the earth mover's distance, in grey levels of 255.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim.evaluation import metrics

MEASURES = ("sharpness", "brightness", "histogram")
BINS = 64  # of a channel's histogram
WINDOW = 64  # frames over which a session is judged: its median is what must lie in a range

Limits = dict[str, tuple[float, float]]


def cumulative(frames: Tensor) -> Tensor:
    """Compute the cumulative histogram of each channel, 0..1, of frames (N, H, W, 3); (N, 3, BINS)."""
    parts = []
    for part in frames.split(256):
        bins = part.flatten(1, 2).transpose(1, 2).long() * BINS // 256  # (n, 3, H W)
        counts = torch.zeros(len(part), 3, BINS).scatter_add_(2, bins, torch.ones(bins.shape))
        parts.append(counts.cumsum(dim=2) / bins.shape[2])
    return torch.cat(parts) if parts else torch.empty(0, 3, BINS)


@dataclass(frozen=True)
class ReferenceStats:
    """Statistics of real frames.

    Attributes:
        colours: their pooled cumulated histogram, (3, BINS).
        limits: the range of each measure.
        medians: of each measure.
    """

    colours: Tensor
    limits: Limits
    medians: dict[str, float]

    @staticmethod
    def of(frames: Tensor) -> ReferenceStats:
        """Compute them of frames (N, H, W, 3) of the real game."""
        colours = cumulative(frames).mean(dim=0)
        values = measure(frames, colours)
        return ReferenceStats(
            colours, limits_of(values), {name: float(values[:, i].median()) for i, name in enumerate(MEASURES)}
        )

    def measure(self, frames: Tensor) -> Tensor:
        """Compute MEASURES of frames (N, H, W, 3); (N, 3)."""
        return measure(frames, self.colours)

    def wider(self, frames: Tensor) -> Limits:
        """Widen each range to that of more real frames, such as those of another policy."""
        if not len(frames):
            return self.limits
        more = limits_of(self.measure(frames))
        return {name: (min(low, more[name][0]), max(high, more[name][1])) for name, (low, high) in self.limits.items()}


def measure(frames: Tensor, colours: Tensor) -> Tensor:
    """Compute MEASURES of frames (N, H, W, 3), colours against pooled ones (3, BINS); (N, 3)."""
    away = (cumulative(frames) - colours).abs().sum(dim=2).mean(dim=1) * (256 / BINS)
    return torch.stack([metrics.sharpness(frames), metrics.brightness(frames), away], dim=1)


def limits_of(values: Tensor) -> Limits:
    """Get the range of each measure, of values (N, 3)."""
    return {name: metrics.reference_range(values[:, i]) for i, name in enumerate(MEASURES)}


def fits(values: Tensor, limits: Limits) -> Tensor:
    """Say which measures (..., M) are within M limits, bool (..., M); nan is within: the frame has no such measure."""
    columns = zip(values.unbind(dim=-1), limits.values(), strict=True)
    return torch.stack([metrics.inside(column, limit) | column.isnan() for column, limit in columns], dim=-1)


def session_fits(values: Tensor, limits: Limits) -> Tensor:
    """Say which sessions are in range: the median over frames of every measure is, for (S, N, M); bool (S,)."""
    return fits(values.nanmedian(dim=1).values, limits).all(dim=-1)
