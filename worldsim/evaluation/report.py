"""Measure the quality of a world on recorded episodes that it was not trained on.

Every figure has two baselines beside it: repeating the last frame (`copy`), and the same world under the actions of
another episode (`shuffled`), which must be worse or the actions do not matter. `config` lists what can be measured;
other modules hold the measures.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.data.contact_sheet import contact_sheet
from worldsim.data.episodes import Dataset
from worldsim.diffusion.sampler import SamplerConfig
from worldsim.errors import DataError, MissingDependency
from worldsim.evaluation import classifier, events, long_rollout, memory, metrics, real, realism
from worldsim.evaluation.config import EvalConfig as EvalConfig
from worldsim.evaluation.first_minute import first_minute
from worldsim.evaluation.intervals import plain, psnr_intervals
from worldsim.evaluation.probe import probe_of
from worldsim.evaluation.ranges import Ranges, judge
from worldsim.evaluation.reference import WINDOW
from worldsim.evaluation.rollout import Runner, Segments, chained, context_of, cut, labels_at, longest, recorded
from worldsim.evaluation.steering import direction, steer_of
from worldsim.evaluation.table import table as table
from worldsim.files import replacing
from worldsim.model_card import write_model_card
from worldsim.plots import table_picture
from worldsim.world import World, write_card

FORCED = 16  # next frames measured in each segment
SHOWN = 6  # segments on a contact sheet
COLUMNS = 12  # frames of each


def evaluate(config: EvalConfig) -> dict[str, Any]:
    """Measure a world; write the report (JSON and PNG) and the contact sheets to `config.out`.

    Returns:
        Numbers by stage: "next_frame", "frame_N" for each horizon, "steering", "free_run", "palette", "autoencoder";
        "long_rollout", "memory" and "events" where they were asked for.
        Shares are 0..1; sharpness and brightness are the drawn frames' over the truth's; None is what was not measured.
        A figure's 95 % interval, over episodes, is beside it as NAME_interval.

    Raises:
        WorldError: the world cannot be loaded.
        DataError: no such dataset, another game, or episodes that are too short.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    world = World.from_pretrained(config.world)
    out = config.out or Path("runs") / f"eval-{world.card.name}"
    out.mkdir(parents=True, exist_ok=True)
    report = plain(first_minute(world, config.minute(out)) if config.first_minute else Evaluation(config, world).run())
    with replacing(out / "report.json") as partial:
        partial.write_text(json.dumps(report, indent=2) + "\n")
    with replacing(out / "report.png") as partial:
        table_picture(table(report)).save(partial, format="PNG")
    if config.save_to_card:
        assert world.path is not None
        card = dataclasses.replace(world.card, quality=report)
        write_card(card, world.path)
        write_model_card(card, world.path)
    return report


class Evaluation:
    """One world on one recording."""

    def __init__(self, config: EvalConfig, world: World) -> None:
        """Read the episodes and prepare the output folder."""
        self.config, self.world = config, world
        dataset = Dataset(config.data or Path("data") / world.card.name)
        if dataset.frame_size != tuple(world.card.frame_size) or dataset.action_space != world.action_space:
            raise DataError(
                f"dataset {dataset.path} has frames {dataset.frame_size} and actions {dataset.action_space}; the world "
                f"{world.card.name!r} has {tuple(world.card.frame_size)} and {world.action_space}: not the same game."
            )
        self.dataset = dataset
        self.episodes = dataset.read(config.split, config.episodes)
        names = ("num_denoising_steps", "history_sigma", "guidance", "noise_scale")
        sampler = SamplerConfig.of(world.card.sampler, **{name: getattr(config, name) for name in names})
        self.sampler = sampler
        self.runner = Runner(world, sampler, config.batch, config.seed, config.runtime)
        self.context = context_of(world)
        self.out = config.out or Path("runs") / f"eval-{world.card.name}"
        self.out.mkdir(parents=True, exist_ok=True)
        frames = torch.from_numpy(np.concatenate([episode.frames[::3] for episode in self.episodes]))
        self.truth = {"sharpness": metrics.sharpness(frames), "brightness": metrics.brightness(frames)}
        steps = [torch.from_numpy(episode.frames) for episode in self.episodes]
        moves = torch.cat([metrics.motion(frames[1:], frames[:-1]) for frames in steps])
        self.truth_moving = float((moves > metrics.MOVING).float().mean())
        self.truth_motion = metrics.reference_range(moves)
        probe = probe_of(world)
        if probe is not None and not probe.labelled(self.episodes):
            probe = None  # such as: where the road is cannot be told without the names of its colors
        self.probe = probe
        labels = [label for episode in self.episodes for label in labels_at(episode, slice(None, None, 3))]
        self.ranges = Ranges.of(frames, probe, labels)

    def run(self) -> dict[str, Any]:
        """Run all stages."""
        config = self.config
        report: dict[str, Any] = {
            "world": self.world.card.name,
            "weights": self.world.fingerprint(),
            "data": self.dataset.card.name,
            "split": config.split,
            "prompts": config.prompts,
            "episodes": len(self.episodes),
            "sampler": dataclasses.asdict(self.sampler),
            "seed": config.seed,
        }
        if config.basics:
            report |= self.next_frame()
            for frames in sorted({self.fitting(frames) for frames in config.horizons}):
                report |= self.frame(frames)
            if config.free:
                report["free_run"] = self.free_run()
            if config.prompt_starts and (found := self.prompt_adherence()) is not None:
                report["palette"] = found
        if config.long_rollout:
            report["long_rollout"] = self.long_rollout()
        if config.memory:
            recipe = real.find_recipe(self.dataset.card.recipe or "")
            report["memory"] = self._kept(
                "memory", *memory.memory(self.runner, recipe, config.memory_starts, config.seed)
            )
        if config.events:
            report["events"] = self.events()
        if config.features:
            report["features"] = self.features()
        return report

    def features(self) -> dict[str, Any]:
        """Compare clips of 64 frames under the recorded actions by a network's features and VMAF."""
        from worldsim.evaluation.features import judge

        segments = self.cut(self.config.segments, self.fitting(64), 7)
        drawn = self.runner.free(segments, recorded(segments), title="features")
        try:
            return judge(drawn, segments.truth, seed=self.config.seed)
        except MissingDependency as error:
            return {"skipped": str(error)}

    def fitting(self, frames: int) -> int:
        """Limit `frames` so that the longest episode has several possible starts."""
        room = longest(self.episodes, self.context)
        return max(1, min(frames, room - min(8, room // 8)))

    def cut(self, count: int, frames: int, stage: int) -> Segments:
        """Cut segments for a stage; each stage has its own random places."""
        rng = np.random.default_rng([self.config.seed, stage])
        found = cut(self.episodes, self.world.action_space, count, self.context, self.fitting(frames), rng)
        return found if self.config.prompts == "recorded" else found.hold_prompts()

    def next_frame(self) -> dict[str, Any]:
        """Predict next frames from true ones; measure the autoencoder alone, and steering."""
        segments = self.cut(self.config.segments, FORCED, 0)
        drawn, other = self.runner.forced(segments, segments.taken, segments.shuffled_actions())
        truth, before = segments.truth, segments.before
        self.save_segments("next", segments, {"drawn": drawn}, list(range(min(COLUMNS, truth.shape[1]))))
        encode, decode = self.world.autoencoder.encode, self.world.autoencoder.decode
        flat = truth.flatten(0, 1)
        seen = torch.cat([decode(encode(part)).cpu() for part in flat.split(64)])
        report: dict[str, dict[str, Any]] = {"next_frame": metrics.compare(drawn, truth, before, other)}
        report["next_frame"] |= psnr_intervals(drawn, truth, {"copy": before, "shuffled": other}, segments.sources)
        report["autoencoder"] = {
            "psnr": metrics.psnr(seen, flat),
            "ssim": float(metrics.ssim(seen, flat).mean()),
            "sharpness": float(metrics.sharpness(seen).mean() / metrics.sharpness(flat).mean()),
        } | judge(self.ranges, list(seen.unflatten(0, truth.shape[:2])), segments.labels(self.episodes), None)
        steer = steer_of(segments.taken, self.world.card.keys, self.world.action_space)
        if steer is not None:
            free = self.cut(max(1, self.config.segments // 2), 2 * FORCED, 1)
            wheel = steer_of(free.taken, self.world.card.keys, self.world.action_space)
            assert wheel is not None
            run = self.runner.free(free, recorded(free), title="steering")
            report["steering"] = direction(steer, before, truth, drawn, (wheel, run), segments.sources) or {}
        return report

    def frame(self, frames: int) -> dict[str, Any]:
        """Run freely for `frames` under the true actions; measure the last sixteenth of them."""
        segments = self.cut(self.config.segments, frames, 10 + frames)
        drawn = self.runner.free(segments, recorded(segments), title=f"{frames} frames")
        shuffled = recorded(segments, segments.shuffled_actions())
        other = self.runner.free(segments, shuffled, title=f"{frames} frames, shuffled actions")
        last = slice(frames - max(1, frames // 16), frames)
        still = segments.before[:, :1].expand_as(segments.truth)
        report = metrics.compare(drawn[:, last], segments.truth[:, last], still[:, last], other[:, last])
        baselines = {"copy": still[:, last], "shuffled": other[:, last]}
        report |= psnr_intervals(drawn[:, last], segments.truth[:, last], baselines, segments.sources)
        report |= self.in_range(drawn, segments)
        shown = np.unique(np.geomspace(1, frames, COLUMNS).round().astype(int) - 1).tolist()
        self.save_segments(f"frame_{frames}", segments, {"drawn": drawn, "shuffled": other}, shown)
        return {f"frame_{frames}": report}

    def in_range(self, drawn: Tensor, segments: Segments) -> dict[str, Any]:
        """Say whether the ends of rollouts (S, N, H, W, 3) are in range, and how well they are told from the truth."""
        frames, labels = drawn.shape[1], segments.labels(self.episodes)
        end = slice(max(0, frames - WINDOW), frames)
        some = np.unique(np.linspace(end.start, frames - 1, 8, dtype=int))
        seen = [realism.decoded(self.world.autoencoder, one[some]) for one in segments.truth]
        folds = [source % realism.FOLDS for source in segments.sources]
        told = realism.tell(seen, list(drawn[:, some]), folds, groups=segments.sources)
        report = judge(self.ranges, list(drawn[:, end]), labels, told) | realism.line(told)
        truth = judge(self.ranges, list(segments.truth[:, end]), labels, None)
        return report | {f"truth_{name}": truth[name] for name in ("in_range", "in_range_interval")}

    def long_rollout(self) -> dict[str, Any]:
        """Measure long-horizon rollouts under several patterns of input, see `long_rollout`."""
        count, recipe = self.config.long_rollout_starts, real.find_recipe(self.dataset.card.recipe or "")
        segments = long_rollout.plain_starts(self.cut(4 * count, FORCED, 5), count)
        labels = segments.hold_prompts().labels(self.episodes)
        parts = (self.runner, segments, self.episodes, self.ranges, self.truth_motion, recipe, labels)
        runs = long_rollout.LongRollout(*parts, self.config.seed)
        return self._kept("long_rollout", *runs.run(self.config.long_rollout))

    def events(self) -> dict[str, Any]:
        """Measure events whose prompts are typed in play, see `events`."""
        book = None if self.probe is None else self.probe.events
        if book is None:
            return {"skipped": "the game of this world has no events, or is not known or not installed"}
        if not events.has_events(book, self.episodes):
            return {"skipped": "the recording has no labels of events"}
        judge = classifier.trained(self.dataset, Path("runs") / f"classifier-{self.dataset.path.name}.safetensors")
        tries = events.Events(book, self.runner, self.dataset, self.episodes, judge, self.context, self.config.seed)
        try:
            return self._kept("events", *tries.run(self.config.event_starts))
        except MissingDependency as error:
            return {"skipped": str(error)}

    def _kept(
        self, name: str, report: dict[str, Any], pictures: list[np.ndarray], captions: list[str]
    ) -> dict[str, Any]:
        """Write a picture with a row for each caption; return the report."""
        if captions:
            columns = len(pictures) // len(captions)
            contact_sheet(pictures, columns, 1, captions).save(self.out / f"{name}.png")
        return report

    def free_run(self) -> dict[str, Any]:
        """Run for long: by a policy that sees only frames if the game has one, else under recorded actions."""
        config, frames, probe = self.config, self.config.free, self.probe
        segments = self.cut(config.free_starts, 64, 2)
        last = slice(frames - max(1, frames // 10), frames)
        labels = segments.hold_prompts().labels(self.episodes)
        prompts = [texts[self.context - 1] for texts in segments.prompts]
        policy = None if probe is None else probe.free_policy(labels, prompts)
        if probe is None or policy is None:
            act = chained(segments, self.episodes, self.world.action_space, frames)
            drawn = self.runner.free(segments, act, frames, title="long free run")
            sharp, bright = self.truth["sharpness"].mean(), self.truth["brightness"].mean()
            report = self._drift(drawn[:, last], float(sharp), float(bright), labels)
        else:
            drawn = self.runner.free(segments, policy, frames, title="long free run")
            episodes = [self.episodes[source] for source in segments.sources]
            same = [
                torch.from_numpy(e.frames[[text == prompt for text in e.texts()]])
                for e, prompt in zip(episodes, prompts, strict=True)
            ]
            sharp, bright = (
                float(np.mean([f(x).mean() for x in same])) for f in (metrics.sharpness, metrics.brightness)
            )
            report = self._drift(drawn[:, last], sharp, bright, labels)
            end = drawn[:, last].flatten(0, 1)
            report |= probe.scene(end, [label for label in labels for _ in range(last.stop - last.start)])
        shown = np.linspace(0, frames - 1, COLUMNS).round().astype(int)
        captions = [f"frame {n + 1}" for n in shown] * len(drawn)
        contact_sheet(list(drawn[:, shown].flatten(0, 1).numpy()), COLUMNS, 1, captions).save(self.out / "free.png")
        return {"frames": frames, "sessions": len(drawn), **report}

    def _drift(self, end: Tensor, sharp: float, bright: float, labels: list[dict[str, Any]]) -> dict[str, Any]:
        """Compare the end of a long run; `moving` detects a world that has stopped, as other figures do not."""
        flat = end.flatten(0, 1)
        return {
            "sharpness": float(metrics.sharpness(flat).mean()) / sharp,
            "brightness": float(metrics.brightness(flat).mean()) / bright,
            "moving": float(metrics.moving(end[:, 1:].flatten(0, 1), end[:, :-1].flatten(0, 1)).float().mean()),
            "truth_moving": self.truth_moving,
        } | judge(self.ranges, list(end), labels, None)

    def prompt_adherence(self) -> dict[str, Any] | None:
        """Measure starts from prompts, and prompts that change in play; None: the game measures neither."""
        if self.probe is None:
            return None
        segments, seed = self.cut(self.config.segments, 16, 4), self.config.seed
        found = self.probe.prompt_adherence(self.runner, self.episodes, segments, self.config.prompt_starts, seed)
        if found is None:
            return None
        report, pictures = found
        for name, picture in pictures.items():
            picture.save(self.out / f"{name}.png")
        return report

    def save_segments(self, name: str, segments: Segments, drawn: dict[str, Tensor], shown: list[int]) -> None:
        """Write a picture: for some segments the truth above the prediction."""
        rows, captions = [], []
        for i in range(min(SHOWN, len(segments))):
            numbers = ", ".join(str(n + 1) for n in shown)
            for title, frames in {"truth": segments.truth, **drawn}.items():
                rows += list(frames[i, shown].numpy())
                captions.append(f"{title}, frames {numbers}: {segments.prompts[i][segments.context]}")
        contact_sheet(rows, len(shown), 1, captions).save(self.out / f"{name}.png")
