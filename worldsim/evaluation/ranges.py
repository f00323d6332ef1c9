"""Reference ranges by all measures that a game has: could the real game have shown a frame?

A reference range is the range of the middle 98 % of real frames. The measures are sharpness, brightness, the distance
of the color histogram from that of all real frames (`reference`), the layout of the game if it is known (`probe`),
and told from real (`realism`). By the last, a session is out of range if a network takes its frames for predicted ones
more surely than it takes any but the last percent of real frames; the network was trained on neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from worldsim.evaluation.intervals import wilson
from worldsim.evaluation.metrics import reference_range
from worldsim.evaluation.probe import Labels, Probe
from worldsim.evaluation.realism import Told
from worldsim.evaluation.reference import Limits, ReferenceStats, fits


@dataclass(frozen=True)
class Ranges:
    """Reference ranges of real frames.

    Attributes:
        stats: of sharpness, brightness and histogram.
        probe: of the game, or None where it has none.
        layout: the range of each layout measure.
    """

    stats: ReferenceStats
    probe: Probe | None
    layout: dict[str, tuple[float, float]]

    @staticmethod
    def of(frames: Tensor, probe: Probe | None, labels: Sequence[Labels]) -> Ranges:
        """Measure the ranges of real frames uint8 (N, H, W, 3), one label each."""
        found: dict[str, tuple[float, float]] = {}
        if probe is not None and probe.layout_names:
            values = probe.layout(frames, labels)
            for column, name in enumerate(probe.layout_names):
                known = values[~values[:, column].isnan(), column]
                if len(known):
                    found[name] = reference_range(known)
        return Ranges(ReferenceStats.of(frames), probe, found)

    @property
    def limits(self) -> Limits:
        """Range of each measure of single frames, in the order of `measure`."""
        return {**self.stats.limits, **self.layout}

    @property
    def names(self) -> list[str]:
        """Names of the measures of single frames, in the order of `measure`."""
        return list(self.limits)

    def measure(self, frames: Tensor, labels: Sequence[Labels]) -> Tensor:
        """Measure frames uint8 (N, H, W, 3); (N, len(names)), nan where a frame does not have the measure."""
        parts = [self.stats.measure(frames)]
        if self.probe is not None and self.layout:
            columns = [self.probe.layout_names.index(name) for name in self.layout]
            parts.append(self.probe.layout(frames, labels)[:, columns])
        return torch.cat(parts, dim=1)

    def wider(self, frames: Tensor, labels: Sequence[Labels]) -> Limits:
        """Widen each range to that of more real frames, such as those of another policy."""
        limits = dict(self.limits)
        if len(frames):
            for (name, (low, high)), values in zip(self.limits.items(), self.measure(frames, labels).T, strict=True):
                if len(known := values[~values.isnan()]):
                    limits[name] = min(low, reference_range(known)[0]), max(high, reference_range(known)[1])
        return limits


def judge(ranges: Ranges, sessions: Sequence[Tensor], labels: Sequence[Labels], told: Told | None) -> dict[str, Any]:
    """Say which sessions are in the reference ranges, by the medians of their frames.

    Args:
        ranges: of real frames.
        sessions: frames of each, uint8 (n, H, W, 3); those without any are left out.
        labels: one of each session.
        told: how the sessions, as the drawn ones, are told from real ones; None where that cannot be had.

    Returns:
        in_range: the share of sessions in all ranges, with its interval; in_range_of: the names of the measures that it
        is made of; and `NAME_in_range` for each.
    """
    rows, medians = [], []
    for i, frames in enumerate(sessions):
        if len(frames):
            rows.append(i)
            medians.append(ranges.measure(frames, [labels[i]] * len(frames)).nanquantile(0.5, dim=0))
    if not rows:
        return {"in_range": None, "in_range_of": []}
    hits = fits(torch.stack(medians), ranges.limits)
    names = list(ranges.names)
    if told is not None and told.accuracy is not None:
        known = told.real[~told.real.isnan()]
        limit = float(torch.quantile(known, 0.99))
        hits = torch.cat([hits, ~(told.drawn[rows] > limit).unsqueeze(1)], dim=1)
        names.append("told")
    good = hits.all(dim=1)
    return {
        "in_range": float(good.float().mean()),
        "in_range_interval": wilson(int(good.sum()), len(good)),
        "in_range_of": names,
        **{f"{name}_in_range": float(hits[:, i].float().mean()) for i, name in enumerate(names)},
    }
