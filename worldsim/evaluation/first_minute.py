"""Compare a world with its real game in the first minute: four beginners play both from the same starts.

In worlds whose prompts name colors, shorter sessions also start from first frames that are sampled from prompts.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.data.contact_sheet import contact_sheet
from worldsim.data.policy import Policy
from worldsim.errors import ConfigError
from worldsim.evaluation import following, realism, recovery, stillness
from worldsim.evaluation import minute_measures as measures
from worldsim.evaluation.beginners import BEGINNERS, ScriptPolicy, beginner
from worldsim.evaluation.first_frames import captions, first_frames
from worldsim.evaluation.intervals import plain
from worldsim.evaluation.played import Played, Start, find_starts, play_real, play_world, segments_of
from worldsim.evaluation.probe import Probe, probe_of
from worldsim.evaluation.rollout import Runner, context_of
from worldsim.world import World

WORST, COLUMNS = 4, 12  # sessions of each beginner on its contact sheet, and frames of each


@dataclass(frozen=True, kw_only=True)
class FirstMinute:
    """What to measure of the first minute."""

    starts: int = 16
    """Sessions of each beginner."""
    seconds: float = 60.0
    """Length of each, of the game's time."""
    prompt_seconds: float = 20.0
    """Length of those that begin from a prompt (0: none)."""
    ages: tuple[int, ...] = (16, 64, 256)
    """Ages, in steps, at which frames are told from real ones and compared with the reference ranges."""
    rest_ages: tuple[int, ...] = stillness.AGES
    """Ages at which stillness is measured; the resting sessions last until the last of them."""
    beginners: tuple[str, ...] = BEGINNERS
    """Which of hold, tap, steer, rest play."""
    first_frames: int = 60
    """First frames that are sampled from prompts (0: none)."""
    probes: bool = True
    """Also measure whether the world follows its actions and heals a patch of noise."""
    batch: int = 16
    """Sessions that are stepped together."""
    runtime: str = "eager"
    """What computes, see `worldsim eval --help`."""
    seed: int = 0
    """Of starts, noise and beginners."""
    out: Path | None = None
    """Folder for the contact sheets and first_minute.json (none: nothing is written)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.starts < 1 or self.batch < 1:
            raise ConfigError(f"starts and batch are {self.starts} and {self.batch}; they must be at least 1.")
        if not self.seconds > 0 or not self.prompt_seconds >= 0:  # nan too
            raise ConfigError(f"seconds are {self.seconds} and {self.prompt_seconds}; allowed: above 0, and 0 or more.")
        if min((*self.ages, *self.rest_ages), default=1) < 1:
            raise ConfigError(f"ages are {self.ages} and {self.rest_ages}; all must be at least 1.")
        if unknown := set(self.beginners) - set(BEGINNERS):
            raise ConfigError(f"there are no beginners {sorted(unknown)}; allowed: {', '.join(BEGINNERS)}.")


@dataclass
class RealGame:
    """The real game under the beginners, played once for all worlds that one process measures.

    Attributes:
        probe: of the game.
        size: height and width of the frames.
        starts: where sessions begin.
        played: what was played already.
    """

    probe: Probe
    size: tuple[int, int]
    starts: list[Start]
    played: dict[tuple[Any, ...], Played] = field(default_factory=dict)

    def play(self, name: str, steps: int, ages: Sequence[int], seed: int, protect: bool = True) -> Played:
        """Play the sessions of a beginner, see `play_real`."""
        key = (name, steps, tuple(ages), seed, protect)
        if key not in self.played:
            policy = policies(self.probe, [start.labels for start in self.starts], name, seed)
            self.played[key] = play_real(self.probe, self.starts, policy, steps, ages, self.size, protect)
        return self.played[key]

    def turn(self, key: str) -> Played:
        """Play SETTLED steps without a key, then turn by holding a key."""
        settled, name = stillness.SETTLED, f"turn {key}"
        script = [self.probe.recipe.keys[""]] * settled + [self.probe.recipe.keys[key]] * stillness.TURN_STEPS
        if (name,) not in self.played:
            ages = range(settled, len(script) + 1)
            self.played[(name,)] = play_real(
                self.probe, self.starts, lambda row: ScriptPolicy(script), len(script), ages, self.size
            )
        return self.played[(name,)]


_GAMES: dict[tuple[Any, ...], RealGame] = {}


def real_game(world: World, probe: Probe, count: int, seed: int) -> RealGame:
    """Return the real game of a world with `count` starts, the same object at each call."""
    height, width = world.card.frame_size
    prompts = probe.prompts(world.card.prompts)
    key = (probe.recipe.name, (height, width), repr(prompts), count, seed)
    if key not in _GAMES:
        _GAMES[key] = RealGame(probe, (height, width), find_starts(probe, count, (height, width), prompts, seed))
    return _GAMES[key]


def policies(probe: Probe, labels: list[dict[str, Any]], name: str, seed: int):
    """Make the policy of a session by its number; each has a seed of its own, the same in world and game."""
    env = probe.open()
    space = env.action_space
    env.close()

    def policy(row: int) -> Policy:
        return beginner(name, probe, space, labels[row], [seed, 60, row])

    return policy


def first_minute(world: World, config: FirstMinute) -> dict[str, Any]:
    """Let the beginners play a world and its real game.

    Returns:
        By beginner and origin ("starts", "prompts"): told from real and the share in the reference ranges by age,
        layout, motion, turning, rewards, ends; stillness and turns of the one who rests. {"skipped": why} where the
        game is not known or not installed.
    """
    probe = probe_of(world)
    if probe is None:
        return {"skipped": "the real game of this world is not known, not installed or has other actions"}
    return Minute(world, probe, config).run()


class Minute:
    """One world under the beginners; `run` gives the report."""

    def __init__(self, world: World, probe: Probe, config: FirstMinute) -> None:
        """Find the starts."""
        self.world, self.probe, self.config = world, probe, config
        self.steps = max(2, round(config.seconds * world.card.fps))
        prompted = round(config.prompt_seconds * world.card.fps)
        self.prompted = min(self.steps, prompted) if prompted > 1 else 0  # steps from prompts
        self.game = real_game(world, probe, config.starts, config.seed)
        self.runner = Runner(world, None, config.batch, config.seed, config.runtime)
        self.power = realism.power()
        self.blind = realism.is_blind(self.power)

    def run(self) -> dict[str, Any]:
        """Run all beginners."""
        config = self.config
        report: dict[str, Any] = {
            "world": self.world.card.name,
            "weights": self.world.fingerprint(),
            "game": self.probe.recipe.name,
            "starts": config.starts,
            "steps": self.steps,
            "seed": config.seed,
            "power": self.power,
            "told_refused": self.blind,
            "beginners": {},
        }
        for name in config.beginners:
            self.write(report)
            report["beginners"][name] = {"starts": self.from_starts(name)}
            if self.probe.colored and self.prompted and self.world.card.prompts:
                report["beginners"][name]["prompts"] = self.from_prompts(name, self.prompted)
        if config.probes:
            report |= self.probes()
        if config.first_frames and self.world.card.prompts:
            report["first_frames"] = self.first_frames()
        self.write(report)
        return report

    def write(self, report: dict[str, Any]) -> None:
        """Write the figures so far: a whole minute takes long."""
        if self.config.out is not None:
            self.config.out.mkdir(parents=True, exist_ok=True)
            (self.config.out / "first_minute.json").write_text(json.dumps(plain(report), indent=2) + "\n")

    def from_starts(self, name: str) -> dict[str, Any]:
        """Measure a beginner from the recorded starts."""
        steps, forks = self.length(name), None
        keys: dict[str, str] = dict(zip(("left", "right"), self.probe.turn_keys, strict=True))
        scripts = {
            side: [self.probe.recipe.keys[key]] * stillness.TURN_STEPS
            for side, key in keys.items()
            if key in self.probe.recipe.keys
        }
        if name == "rest":
            forks = {measures.turn_age(steps): scripts}
        ages, real = self.ages(name), self.real(name)
        begin = segments_of(self.game.starts, self.world.action_space, context_of(self.world))
        policy = policies(self.probe, real.labels, name, self.config.seed)
        world = play_world(self.runner, begin, real.labels, policy, steps, ages, forks, title=name)
        report = self.compare(name, "starts", world, real)
        if forks:
            turns = {side: self.game.turn(keys[side]) for side in scripts}
            report["rest"] = measures.rest(world, real, self.probe, self.config.rest_ages, turns)
        return report

    def from_prompts(self, name: str, steps: int) -> dict[str, Any]:
        """Measure a beginner from the first frames of the starts' prompts."""
        real = self.real(name)
        ages = [age for age in self.ages(name) if age <= steps]
        prompts = [start.prompt for start in self.game.starts]
        policy = policies(self.probe, real.labels, name, self.config.seed)
        world = play_world(self.runner, prompts, real.labels, policy, steps, ages, title=f"{name}, from prompts")
        return self.compare(name, "prompts", world, real)

    @functools.cached_property
    def reference(self) -> measures.Reference:
        """Collect real frames for the reference ranges, from all beginners."""
        plays = [self.real(name) for name in self.config.beginners]
        return measures.Reference.of(plays, self.probe, self.world.autoencoder)

    def length(self, name: str) -> int:
        """Compute the steps of a beginner's sessions: long enough for the ages of rest."""
        return max((self.steps, *self.config.rest_ages)) if name == "rest" else self.steps

    def ages(self, name: str) -> list[int]:
        """List the steps at which frames are stored, from 0."""
        more = (*self.config.rest_ages, measures.turn_age(self.length(name))) if name == "rest" else ()
        whole = measures.stored_ages((*self.config.ages, *more), self.length(name))
        return sorted({*whole, *measures.stored_ages(self.config.ages, min(self.prompted, self.length(name)))})

    def real(self, name: str) -> Played:
        """Play the real game with a beginner."""
        return self.game.play(name, self.length(name), self.ages(name)[1:], self.config.seed)

    def probes(self) -> dict[str, Any]:
        """Measure whether the world follows its actions, and whether it recovers from noise."""
        seed, starts = self.config.seed, self.game.starts
        begin = segments_of(starts, self.world.action_space, context_of(self.world))
        tapped = self.game.play("tap", following.FRAMES, range(1, following.FRAMES + 1), seed)
        whole = [i for i in range(len(starts)) if tapped.present[i].all()]
        report = {}
        if len(whole) > 1:
            parts = (begin.pick(whole), tapped.actions[whole], tapped.frames[whole])
            report["following"] = following.following(self.runner, *parts)
        steered = self.game.play("steer", max(recovery.AFTER), range(1, max(recovery.AFTER) + 1, 2), seed)
        moving = [i for i, start in enumerate(starts) if start.moving]
        bank = realism.decoded(self.world.autoencoder, steered.frames[steered.present])
        report["recovery"] = recovery.recovery(self.runner, begin.pick(moving), steered.actions[moving], bank)
        return report

    def first_frames(self) -> dict[str, Any]:
        """Measure first frames from prompts, and write a contact sheet of them."""
        last = torch.from_numpy(np.stack([start.frames[-1] for start in self.game.starts]))
        report, frames, prompts = first_frames(self.runner, self.probe, last, self.config.first_frames)
        if self.config.out is not None:
            rows = captions(prompts, COLUMNS)
            self.config.out.mkdir(parents=True, exist_ok=True)
            contact_sheet(frames, COLUMNS, 1, rows).save(self.config.out / "first_frames.png")
        return report

    def compare(self, name: str, origin: str, world: Played, real: Played) -> dict[str, Any]:
        """Report some sessions; put the worst on a contact sheet."""
        probe, refused, real = self.probe, self.blind, real.first(world.steps)
        report: dict[str, Any] = {"steps": world.steps, "at": {}}
        worst = torch.zeros(len(world.ends))
        reached = [age for age in self.config.ages if age <= world.steps]
        windows = [measures.window(age, world.steps) for age in reached]
        results, pooled = measures.told(world, real, self.world.autoencoder, windows)
        for age, ages, found, seen in zip(reached, windows, results, pooled, strict=True):
            line: dict[str, Any] = {"real_sessions": sum(map(bool, map(len, seen)))}
            line |= {"told": None, "told_interval": None} if refused else realism.line(found)
            line |= measures.ranges_at(self.reference, world, real, ages, None if refused else found, seen)
            line["layout"] = measures.layout(world, real, probe, ages)
            report["at"][str(age)] = line
            worst += found.drawn.nan_to_num()
        if pooled and not refused and origin == "starts":
            report["baselines"] = self.baselines(real, pooled)
        ages = [age for age in measures.pair_ages(real.steps) if age <= min(measures.LAYOUT_STEPS, world.steps)]
        ages = ages or world.ages[1:]
        report["layout"] = measures.layout(world, real, probe, ages)
        report |= measures.moving(world, probe) | {f"real_{k}": v for k, v in measures.moving(real, probe).items()}
        truth = real
        if probe.recipe.protect:
            truth = self.game.play(name, self.length(name), (), self.config.seed, False).first(world.steps)
        report |= measures.outcome(world) | {f"real_{k}": v for k, v in measures.outcome(truth).items()}
        if (palette := probe.palette_adherence(world.at(ages)[0], world.labels)) is not None:
            report["palette"] = measures.mean_interval(palette)["mean"]
            report["palette_interval"] = measures.mean_interval(palette)["interval"]
        self.save_worst(name, origin, world, real, self.badness(name, world, worst, ages))
        return report

    def baselines(self, real: Played, pooled: list[list[Tensor]]) -> dict[str, Any]:
        """Measure what the decoder alone reveals, and how well real sessions are told from other real ones."""
        ages = [measures.window(age, real.steps) for age in self.config.ages if age <= real.steps][: len(pooled)]
        raw = [torch.cat(parts) for parts in zip(*(measures.sessions(real, some) for some in ages), strict=True)]
        seen = [torch.cat(parts) for parts in zip(*pooled, strict=True)]
        decoder = realism.tell(raw, seen, realism.folds_of(len(raw)))
        itself = realism.tell_itself(seen)
        return {
            "decoder": decoder.accuracy,
            "decoder_interval": decoder.interval,
            "itself": itself.accuracy,
            "itself_interval": itself.interval,
        }

    def badness(self, name: str, world: Played, told: Tensor, ages: list[int]) -> Tensor:
        """Score how bad sessions look: by drift at rest, by the key layout measure, or as told from real."""
        if name == "rest" and stillness.SETTLED in world.ages and world.steps > stillness.SETTLED:
            frames, _ = world.at([stillness.SETTLED, world.ages[-1]])
            return stillness.distance(frames[:, -1], frames[:, 0])
        if self.probe.key_layout:
            frames, _ = world.at(ages)
            labels = [label for label in world.labels for _ in ages]
            found = self.probe.layout(frames.flatten(0, 1), labels).unflatten(0, frames.shape[:2])
            return -found[:, :, self.probe.layout_names.index(self.probe.key_layout)].nanmean(dim=1)
        return told

    def save_worst(self, name: str, origin: str, world: Played, real: Played, bad: Tensor) -> None:
        """Write a picture of the worst sessions, each below the real one from the same start."""
        if self.config.out is None:
            return
        self.config.out.mkdir(parents=True, exist_ok=True)
        places = np.unique(np.linspace(0, len(world.ages) - 1, COLUMNS).round().astype(int)).tolist()
        ages = [world.ages[place] for place in places]
        frames, captions = [], []
        for row in bad.argsort(descending=True)[:WORST].tolist():
            for title, played in (("real", real), ("world", world)):
                for age in ages:
                    if age in played.ages:
                        frames.append(played.frames[row, played.ages.index(age)].numpy())
                    else:
                        frames.append(self.game.starts[row].frames[-1])
                captions.append(f"{title}, session {row}: steps {', '.join(map(str, ages))}")
        contact_sheet(frames, len(ages), 1, captions).save(self.config.out / f"minute_{name}_{origin}.png")
