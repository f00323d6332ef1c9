"""Measures of sessions of a world, beside those of the real game under the same policy.

Sessions with the same index have the same start, or at least the same colors, so that they form pairs.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.errors import DataError
from worldsim.evaluation import metrics, realism, stillness
from worldsim.evaluation.intervals import bootstrap, ratio, wilson
from worldsim.evaluation.played import Played
from worldsim.evaluation.probe import Probe
from worldsim.evaluation.ranges import Ranges, judge
from worldsim.evaluation.steering import turns
from worldsim.models.autoencoder import DiffusersAutoencoder

WINDOW = range(-8, 8, 2)  # frames around an age that it is measured by
TURNING = 4  # every so-many-th of these pairs tells of turning, which costs more
STRIDE = 12  # steps between pairs of frames by which motion, turning and layout are measured
LAYOUT_STEPS = 250  # steps over which the layout is measured


def window(age: int, steps: int) -> list[int]:
    """List the ages that the measure at an age covers, within 1..steps."""
    last = min(age + WINDOW[-1], steps)
    return sorted({max(1, last - WINDOW[-1] + k) for k in WINDOW})


def pair_ages(steps: int) -> list[int]:
    """List the earlier ages of the frame pairs that motion and turning are measured by."""
    return list(range(min(STRIDE, max(1, steps - 1)), steps, STRIDE))


def stored_ages(ages: tuple[int, ...], steps: int) -> list[int]:
    """List all ages at which the measures need frames."""
    found = {0} | {one for age in ages if age <= steps for one in window(age, steps)}
    found |= {one for age in pair_ages(steps) for one in (age, age + 1)}
    found |= {age for age in (stillness.SETTLED, stillness.TURN_AT, *stillness.AGES, *ages) if age <= steps}
    return sorted(found)


def sessions(played: Played, ages: list[int]) -> list[Tensor]:
    """Collect the frames that exist at some ages, of each session uint8 (n, H, W, 3)."""
    frames, present = played.at(ages)
    return [part[there] for part, there in zip(frames, present, strict=True)]


def distance(found: Tensor, real: Tensor) -> float | None:
    """Compute the Wasserstein distance between two samples of a measure, in its units; None if one is empty."""
    found, real = found[~found.isnan()].double(), real[~real.isnan()].double()
    if not len(found) or not len(real):
        return None
    places = torch.linspace(0.005, 0.995, 100).double()
    return float((torch.quantile(found, places) - torch.quantile(real, places)).abs().mean())


def mean_interval(values: Tensor) -> dict[str, Any]:
    """Compute the mean of values (S, n) without nan, with its interval over sessions."""
    known = (~values.isnan()).double()
    sums = torch.stack([values.nan_to_num().double().sum(dim=1), known.sum(dim=1)], dim=1).numpy()
    sums = sums[sums[:, 1] > 0]
    if not len(sums):
        return {"mean": None, "interval": None}
    return {"mean": float(sums[:, 0].sum() / sums[:, 1].sum()), "interval": bootstrap(sums, range(len(sums)), ratio())}


def layout(world: Played, real: Played, probe: Probe, ages: list[int]) -> dict[str, Any]:
    """Compare each layout measure at some ages: means in world and game, their distance, the game's range."""
    values = []
    for played in (world, real):
        frames, present = played.at(ages)
        labels = [label for label in played.labels for _ in range(frames.shape[1])]
        found = probe.layout(frames.flatten(0, 1), labels).unflatten(0, present.shape)
        values.append(found.masked_fill(~present.unsqueeze(2), math.nan))
    report: dict[str, Any] = {}
    for column, name in enumerate(probe.layout_names):
        mine, theirs = (value[:, :, column] for value in values)
        mine = mine.masked_fill(~real.at(ages)[1], math.nan) if len(mine) == len(theirs) else mine
        known = theirs[~theirs.isnan()]
        report[name] = {
            **mean_interval(mine),
            "real": mean_interval(theirs)["mean"],
            "distance": distance(mine.flatten(), theirs.flatten()),
            "real_range": metrics.reference_range(known) if len(known) else None,
        }
    return report


def told(
    world: Played, real: Played, autoencoder: DiffusersAutoencoder, windows: Sequence[list[int]]
) -> tuple[list[realism.Told], list[list[Tensor]]]:
    """Measure how well the world's sessions are told from real ones in some windows of ages.

    Returns:
        The result in each window, and the real frames that it was measured by, decoded again, of each session.
    """
    seen = [[realism.decoded(autoencoder, frames) for frames in sessions(real, ages)] for ages in windows]
    drawn = [sessions(world, ages) for ages in windows]
    return realism.tell_by_age(seen, drawn, realism.folds_of(len(world.ends))), seen


def moving(played: Played, probe: Probe) -> dict[str, Any]:
    """Compute the mean change between two steps in grey levels, and the share of steps that clearly turn."""
    stored = set(played.ages)
    ages = [age for age in pair_ages(played.steps) if {age, age + 1} <= stored]
    before, there = played.at(ages)
    after, also = played.at([age + 1 for age in ages])
    both = there & also
    change, turning = torch.full(both.shape, math.nan), torch.full(both.shape, math.nan)
    if both.any():
        change[both] = metrics.motion(after[both], before[both])
    both[:, [column for column in range(both.shape[1]) if column % TURNING]] = False
    if both.any():
        turning[both] = turns(before[both], after[both], probe.camera)[1].float()
    found = {"motion": mean_interval(change), "turning": mean_interval(turning)}
    report = {name: value["mean"] for name, value in found.items()}
    return report | {f"{name}_interval": value["interval"] for name, value in found.items()}


def outcome(played: Played) -> dict[str, Any]:
    """Compute the reward a step, the share of sessions that ended, their median age at the end, and the last reward.

    Share and age of the ends are those of the world's probabilities, not of the ends drawn from them: sixteen draws,
    the same in every world, say more of the draw than of the world. Rewards are those up to the end that was drawn.
    """
    steps, count = played.steps, len(played.ends)
    alive = torch.arange(1, steps + 1) <= played.ends.unsqueeze(1)
    rewards = mean_interval(played.rewards.masked_fill(~alive, math.nan))
    survival = (1 - played.probabilities.double()).cumprod(dim=1)  # (S, T)
    ended = 1 - survival[:, -1:]
    sums = torch.cat([survival, torch.ones(count, 1)], dim=1).numpy()
    last = played.rewards.gather(1, (played.ends - 1).clamp(max=steps - 1).unsqueeze(1))  # (S, 1)
    at_end = mean_interval(last.masked_fill(played.ends.unsqueeze(1) > steps, math.nan))
    median, interval = float(_median(sums.sum(axis=0))), bootstrap(sums, range(count), _median)
    return {
        "reward": rewards["mean"],
        "reward_interval": rewards["interval"],
        "ended": float(ended.mean()),
        "ended_interval": wilson(float(ended.sum()), count),
        "end_age": median if median <= steps else None,  # None: more than half go on
        "end_age_interval": None if interval is None or interval[1] > steps else interval,
        "end_reward": at_end["mean"],
        "end_reward_interval": at_end["interval"],
    }


def _median(sums: np.ndarray) -> np.ndarray:
    """Find the age at which half of the sessions have ended, from (..., T + 1): those that survive, and all."""
    survival = sums[..., :-1] / sums[..., -1:]
    return ((survival > 0.5).sum(axis=-1) + (survival >= 0.5).sum(axis=-1)) / 2 + 1  # as of an even number of values


def rest(
    world: Played, real: Played, probe: Probe, ages: tuple[int, ...], real_turns: dict[str, Played]
) -> dict[str, Any]:
    """Measure stillness at some ages in world and game, and the turns after a rest, by side in the game."""
    report: dict[str, Any] = {"settled_after": stillness.SETTLED, "at": {}}
    for age in ages:
        if age > world.steps or age <= stillness.SETTLED:
            continue
        values = []
        for played in (world, real):
            frames, present = played.at([stillness.SETTLED, age])
            away = stillness.distance(frames[:, 1], frames[:, 0])
            values.append(away.masked_fill(~present.all(dim=1), math.nan))
        report["at"][str(age)] = stillness.spread(values[0]) | {"real": stillness.spread(values[1])["median"]}
    for name, way in (("left", -probe.right), ("right", probe.right)):
        if name in world.forks:
            before = world.at([turn_age(world.steps)])[0][:, 0]
            good, amount = stillness.turned(before, world.forks[name], probe.camera, way)
            report[f"turns_{name}"] = float(good.float().mean())
            report[f"turns_{name}_interval"] = wilson(int(good.sum()), len(good))
            report[f"turns_{name}_amount"] = float(amount.mean())
            frames, there = real_turns[name].at(real_turns[name].ages)
            whole = there.all(dim=1)
            good, amount = stillness.turned(frames[whole, 0], frames[whole, 1:], probe.camera, way)
            report[f"real_turns_{name}"] = float(good.float().mean()) if len(good) else None
            report[f"real_turns_{name}_amount"] = float(amount.mean()) if len(good) else None
    return report


def turn_age(steps: int) -> int:
    """Compute the step of a rest of so many steps at which the turn begins."""
    return min(stillness.TURN_AT, steps)


@dataclass(frozen=True)
class Reference:
    """Real frames of all beginners, decoded by a world's decoder, that reference ranges are computed from.

    Attributes:
        frames: uint8 (N, H, W, 3).
        starts: the number of the start of each.
        labels: of each.
        probe: of the game.
    """

    frames: Tensor
    starts: list[int]
    labels: list[dict[str, Any]]
    probe: Probe

    @staticmethod
    def of(played: Sequence[Played], probe: Probe, autoencoder: DiffusersAutoencoder) -> Reference:
        """Collect the frames of sessions of the real game; those with the same index have the same start.

        Raises:
            DataError: the game ended too soon in all of them.
        """
        frames, starts, labels = [], [], []
        for one in played:
            for i, some in enumerate(sessions(one, pair_ages(one.steps)[::TURNING])):
                frames.append(some)
                starts += [i] * len(some)
                labels += [one.labels[i]] * len(some)
        if not starts:
            raise DataError(
                f"the real game of {probe.recipe.name} ended within {STRIDE} steps under every beginner, which leaves "
                "nothing to hold a world against; let its recipe protect the player, or its probe steer better."
            )
        return Reference(realism.decoded(autoencoder, torch.cat(frames)), starts, labels, probe)

    @functools.cached_property
    def ranges(self) -> Ranges:
        """Compute the ranges of all frames."""
        return Ranges.of(self.frames, self.probe, self.labels)

    def without(self, start: int) -> Ranges:
        """Compute the ranges of the frames from other starts."""
        if start not in self._without:
            rows = [i for i, other in enumerate(self.starts) if other != start]
            self._without[start] = Ranges.of(self.frames[rows], self.probe, [self.labels[i] for i in rows])
        return self._without[start]

    @functools.cached_property
    def _without(self) -> dict[int, Ranges]:
        return {}


def ranges_at(
    reference: Reference, world: Played, real: Played, ages: list[int], found: realism.Told | None, seen: list[Tensor]
) -> dict[str, Any]:
    """Say which sessions are in range at some ages; real sessions by the ranges of the other starts.

    Args:
        reference: what real frames are like.
        world: the world's sessions.
        real: the game's under the same beginner.
        ages: at which frames are looked at.
        found: how the world's sessions are told from the real ones; None where that cannot be had.
        seen: the real frames, decoded again, of each session.
    """
    report = judge(reference.ranges, sessions(world, ages), world.labels, found)
    whole = [i for i, frames in enumerate(seen) if len(frames)]
    parts = [
        judge(reference.without(i), [seen[i]], [real.labels[i]], None) for i in whole if len(set(reference.starts)) > 1
    ]
    report["real_in_range"] = float(np.mean([part["in_range"] for part in parts])) if parts else None
    return report
