"""Long-horizon rollouts under several patterns of input: do the frames stay within the reference ranges?

A session is measured at checkpoints. At each, it is in range if the medians of all measures over its last WINDOW frames
lie within the reference ranges (`ranges`): sharpness, brightness, histogram distance, and the layout if the game's is
known. "Told from real" is not among them: no real session is as old, or plays the same actions.
A session has stayed in range if it was in range at every checkpoint so far. Motion, the mean absolute difference of
consecutive frames, is reported too, because a world that has stopped moving passes all other measures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from worldsim.data.episodes import Episode
from worldsim.data.recipe import Recipe
from worldsim.evaluation import metrics, real
from worldsim.evaluation.intervals import shown, wilson
from worldsim.evaluation.ranges import Ranges
from worldsim.evaluation.reference import WINDOW, Limits, fits, session_fits
from worldsim.evaluation.rollout import RolloutPolicy, Runner, Segments, chained
from worldsim.spaces import ActionCodec

PATTERNS = ("none", "held", "random", "recorded")
CHECKPOINTS = (16, 64, 256, 1000, 2000, 5000, 10000)
HOLD = 200  # frames after which held keys are changed, as holding one key forever leaves the place where a game is
LONGEST = 16  # frames that random keys are held at most
REAL_FRAMES = 200  # of a real rollout under a pattern
REAL_STARTS = 12  # real rollouts under each pattern
PER_PATTERN = 2  # sessions of each pattern on the contact sheet


def checkpoints(frames: int) -> list[int]:
    """List the checkpoints of a run of so many frames: the usual ones, and its end."""
    return sorted({*(point for point in CHECKPOINTS if point < frames), frames})


def actions_of(keys: dict[str, Any], space: spaces.Space) -> tuple[Any | None, list[Any]]:
    """Get the action of no key (None: unknown) and those of all key combinations; without keys some random ones."""
    if keys and not isinstance(space, spaces.Dict):
        found = {name: np.asarray(action, space.dtype) for name, action in keys.items()}
        return found.get(""), [action for name, action in found.items() if name] or list(found.values())
    space.seed(0)
    return None, [space.sample() for _ in range(8)]


def plan(pattern: str, keys: dict[str, Any], space: spaces.Space, frames: int, rng: np.random.Generator) -> list[Any]:
    """Get the actions of one session under a pattern other than "recorded"; empty where a world has no such input."""
    no_op, others = actions_of(keys, space)
    if pattern == "none":
        return [] if no_op is None else [no_op] * frames
    longest, shortest = (HOLD, HOLD) if pattern == "held" else (LONGEST, 1)
    options = others if pattern == "held" or no_op is None else [*others, no_op]
    taken: list[Any] = []
    while len(taken) < frames:
        taken += [options[rng.integers(len(options))]] * int(rng.integers(shortest, longest + 1))
    return taken[:frames]


def plain_starts(segments: Segments, count: int) -> Segments:
    """Choose the `count` segments with the shortest last prompt: it is held, and should not describe a passing view.

    Rows come back in the order of their length.
    """
    words = [len(texts[segments.context - 1].split()) for texts in segments.prompts]
    return segments.pick(sorted(range(len(segments)), key=lambda row: words[row])[:count])


@dataclass(frozen=True)
class Track:
    """What was measured on sessions of one pattern: the measures of `Ranges` (S, T, M) and motion (S, T)."""

    values: Tensor
    motion: Tensor


@dataclass(frozen=True)
class LongRollout:
    """Long-horizon rollouts of one world; `run` gives the report.

    Attributes:
        runner: predicts the frames.
        segments: a recorded context for each session to begin from.
        episodes: whose actions the pattern "recorded" plays.
        reference: ranges of the recording.
        labels: of each session, see `probe`.
        motion: the reference range of motion in the recording.
        recipe: of the game; None where there is none installed.
        seed: of the input.
    """

    runner: Runner
    segments: Segments
    episodes: list[Episode]
    reference: Ranges
    motion: tuple[float, float]
    recipe: Recipe | None
    labels: list[dict[str, Any]]
    seed: int = 0

    def run(self, frames: int) -> tuple[dict[str, Any], list[np.ndarray], list[str]]:
        """Predict `frames` frames of every session under every pattern, all together.

        Returns:
            The report; pictures at the checkpoints, a row for each of some sessions; and the rows' captions.
        """
        acts = self._acts(frames)
        names, count, points = list(acts), len(self.segments), checkpoints(frames)
        order = list(range(count)) * len(names)
        many = self.segments.pick(order)

        def act(rows: list[int], n: int, last: Tensor) -> tuple[Tensor, list[str]]:
            parts = [acts[names[row // count]]([row % count], n, last) for row in rows]
            return torch.cat([action for action, _ in parts]), [text for _, texts in parts for text in texts]

        values, moves = torch.empty(len(many), frames, len(self.reference.names)), torch.empty(len(many), frames)
        pictures = torch.empty(len(many), len(points), *many.frames.shape[2:], dtype=torch.uint8)
        before = many.frames[:, many.context - 1].clone()
        for rows, n, drawn in self.runner.stream(many, act, frames, title=f"{frames} frames"):
            values[rows, n] = self.reference.measure(drawn, [self.labels[row % count] for row in rows])
            moves[rows, n] = metrics.motion(drawn, before[rows])
            before[rows] = drawn
            if n + 1 in points:
                pictures[rows, points.index(n + 1)] = drawn
        found = {
            name: Track(values[i * count : (i + 1) * count], moves[i * count : (i + 1) * count])
            for i, name in enumerate(names)
        }
        report = self.judge(found, frames)
        some = [i * count + j for i in range(len(names)) for j in range(min(PER_PATTERN, count))]
        captions = [f"{names[row // count]}: frames {', '.join(map(str, points))}" for row in some]
        return report, list(pictures[some].flatten(0, 1).numpy()), captions

    def judge(self, found: dict[str, Track], frames: int) -> dict[str, Any]:
        """Report some sessions by pattern."""
        report: dict[str, Any] = {
            "frames": frames,
            "sessions": len(self.segments),
            "truth": {**self.reference.stats.medians, "ranges": self.reference.limits, "motion_range": self.motion},
            "in_range_of": self.reference.names,
            "patterns": {},
        }
        env = real.open_game(self.recipe)
        stayed, ended = [], []
        for name, track in found.items():
            limits, motion, truth = self._real(env, name)
            lines, good = {}, torch.ones(len(track.values), dtype=torch.bool)
            for point in checkpoints(frames):
                window = slice(max(0, point - WINDOW), point)
                now = session_fits(track.values[:, window], limits)
                good &= now
                lines[str(point)] = _line(track, window, limits, motion) | {
                    "sessions_in_range": float(now.float().mean()),
                    "sessions_stayed": float(good.float().mean()),
                }
            stayed.append(good)
            ended.append(session_fits(track.values[:, -WINDOW:], limits))
            report["patterns"][name] = {"ranges": limits, "motion_range": motion, "real": truth, "at": lines}
        if env is not None:
            env.close()
        for name, hits in (("in_range", torch.cat(ended)), ("stayed", torch.cat(stayed))):
            report[name] = float(hits.float().mean())
            report[f"{name}_interval"] = wilson(int(hits.sum()), len(hits))
        return report

    def _acts(self, frames: int) -> dict[str, RolloutPolicy]:
        """Make the policies by pattern, without those that the world has no input for."""
        space, keys = self.runner.world.action_space, self.runner.world.card.keys
        rng = np.random.default_rng([self.seed, 20])
        prompts = [texts[self.segments.context - 1] for texts in self.segments.prompts]
        acts: dict[str, RolloutPolicy] = {}
        for name in PATTERNS[:-1]:
            plans = [plan(name, keys, space, frames, rng) for _ in range(len(self.segments))]
            if plans[0]:
                acts[name] = _played(torch.from_numpy(np.stack([_flat(space, actions) for actions in plans])), prompts)
        taken = chained(self.segments, self.episodes, space, frames)
        # The recorded prompts tell what the recording shows, which a free run leaves: the first is held here too.
        acts[PATTERNS[-1]] = lambda rows, n, last: (taken(rows, n, last)[0], [prompts[row] for row in rows])
        return acts

    def _real(self, env: gym.Env | None, pattern: str) -> tuple[Limits, tuple[float, float], dict[str, Any] | None]:
        """Measure the reference ranges for a pattern, and the real game itself under it.

        The recording's ranges are widened to what the game shows under this pattern, which a recording may not contain;
        motion is judged by the game under this pattern alone.
        """
        world = self.runner.world
        if env is None or self.recipe is None or pattern == PATTERNS[-1] or env.action_space != world.action_space:
            return self.reference.limits, self.motion, None
        rng = np.random.default_rng([self.seed, 21])
        plans = [plan(pattern, world.card.keys, world.action_space, REAL_FRAMES, rng) for _ in range(REAL_STARTS)]
        height, width = world.card.frame_size
        found = real.rollouts(self.recipe, env, plans, (height, width), rng)
        runs = [(torch.from_numpy(run), self._labels(info)) for run, info in found if len(run) > 1]
        if not runs:
            return self.reference.limits, self.motion, None
        moves = torch.cat([metrics.motion(run[1:], run[:-1]) for run, _ in runs])
        labels = [label for run, label in runs for _ in run]
        whole = torch.cat([run for run, _ in runs])
        limits, motion = self.reference.wider(whole, labels), metrics.reference_range(moves)
        values = self.reference.measure(whole, labels)
        ends = [part[-WINDOW:].unsqueeze(0) for part in values.split([len(run) for run, _ in runs])]
        good = [bool(session_fits(part, limits)) for part in ends]
        medians = dict(zip(self.reference.names, values.nanmedian(dim=0).values.tolist(), strict=True))
        return limits, motion, {**medians, "motion": float(moves.median()), "sessions_in_range": float(np.mean(good))}

    def _labels(self, info: dict[str, Any]) -> dict[str, Any]:
        return {} if self.reference.probe is None else self.reference.probe.labels(info)


def _line(track: Track, window: slice, limits: Limits, motion: tuple[float, float]) -> dict[str, float]:
    """Compute medians over a window, and the shares of its frames within the ranges."""
    values, moves = track.values[:, window].flatten(0, 1), track.motion[:, window].flatten()
    good = fits(values, limits)
    line = dict(zip(limits, values.nanmedian(dim=0).values.tolist(), strict=True)) | {"motion": float(moves.median())}
    line |= {f"{name}_in_range": float(good[:, i].float().mean()) for i, name in enumerate(limits)}
    line["motion_in_range"] = float(metrics.inside(moves, motion).float().mean())
    line["in_range"] = float(good.all(dim=1).float().mean())
    return line


def _flat(space: spaces.Space, actions: list[Any]) -> np.ndarray:
    """Flatten actions to (frames, action_size)."""
    return ActionCodec(space).flatten_list(actions)


def _played(actions: Tensor, prompts: list[str]) -> RolloutPolicy:
    """Play actions (S, frames, action_size) under one prompt each."""

    def act(rows: list[int], n: int, last: Tensor) -> tuple[Tensor, list[str]]:
        return actions[rows, n], [prompts[row] for row in rows]

    return act


def table(report: dict[str, Any]) -> str:
    """Format the report."""
    names = [*report["in_range_of"], "motion"]
    columns = (*names, "in_range", "sessions_in_range", "sessions_stayed")
    head = (*(name.replace("_", " ") for name in names), "frames in", "sessions in", "stayed")
    lines = [f"long runs of {report['frames']} frames, {report['sessions']} sessions under each input:"]
    lines.append(f"{'':>10}{'frame':>8}" + "".join(f"{name:>13}" for name in head))
    for name, pattern in report["patterns"].items():
        limits = {**pattern["ranges"], "motion": pattern["motion_range"]}
        cells = [f"{limits[key][0]:.1f}-{limits[key][1]:.1f}" if key in limits else "" for key in columns]
        lines.append(f"{name:>10}{'truth':>8}" + "".join(f"{cell:>13}" for cell in cells))
        for point, line in pattern["at"].items():
            lines.append(f"{'':>10}{point:>8}" + "".join(f"{shown(line[key], None):>13}" for key in columns))
    ends = {name: shown(report[name], report[f"{name}_interval"]) for name in ("in_range", "stayed")}
    lines.append(f"sessions in all ranges at the end {ends['in_range']}, at every checkpoint {ends['stayed']}")
    return "\n".join(lines)
