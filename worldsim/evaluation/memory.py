"""Measure memory: look away and back, and compare the view on return.

The truth is the real game: a player who stands still turns away, waits, and turns back by the same steps. Only those
segments count in which the game then shows the same view again, and another view in between. The world sees the true
frames up to the first turn, and predicts all later frames under the same actions. The baseline is the same world with
its memory emptied before each step, so that it has its last few frames only; the difference is the effect of memory.
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from worldsim.data.recipe import Recipe
from worldsim.engine.simulator import State
from worldsim.errors import MissingDependency
from worldsim.evaluation import metrics, real
from worldsim.evaluation.intervals import psnr_intervals, shown
from worldsim.evaluation.rollout import Runner, Segments, context_of, recorded
from worldsim.models.kv_cache import KVCache
from worldsim.spaces import ActionCodec

AWAY = (8, 16, 32, 64)  # steps from the first turn to the return
TURNS = 16  # steps of turning at most: about half a circle in Doom, so that the place is not passed again
STILL = 8  # steps without a key until a player who walked stands
SAME = 25.0  # dB: the truth's first and last frame are one picture
OTHER = 20.0  # dB: the frame in the middle is another one
TRIES = 8  # segments tried for each that is wanted


def script(keys: dict[str, Any], away: int) -> list[list[Any]]:
    """List the ways to look away for `away` steps (at least 4) and back, as actions; empty if no keys turn."""
    if not {"", "left", "right"} <= set(keys):
        return []
    turns = min(TURNS, away // 2 - 1)
    wait = [keys[""]] * (away - 2 * turns - 1)  # without a pause the way back would start faster than the way there
    sides = (keys["left"], keys["right"]), (keys["right"], keys["left"])
    return [[there] * turns + wait + [back] * turns + [keys[""]] for there, back in sides]


def look_aways(
    recipe: Recipe, env: gym.Env, away: int, count: int, context: int, size: tuple[int, int], rng: np.random.Generator
) -> Segments | None:
    """Find up to `count` segments of the real game that look away and are back after `away` steps.

    Returns:
        Segments of `away` frames after their context, the last of which shows what the last of the context showed;
        None where the game gave none.
    """
    keys, policy = dict(recipe.keys), recipe.make_policy()
    ways = script({name: np.asarray(action, env.action_space.dtype) for name, action in keys.items()}, away)
    found: list[real.Run] = []
    for i in range(TRIES * count if ways else 0):
        run = real.begin(recipe, env, policy, rng, context + int(rng.integers(10, 60)), size)
        no_op = np.asarray(keys[""], env.action_space.dtype)
        if run is None or not run.play(env, [no_op] * STILL + ways[i % 2]):
            continue
        home, middle, back = (torch.from_numpy(run.frames[k][None]) for k in (-1 - away, -1 - away // 2, -1))
        if metrics.psnr(home, back) >= SAME and metrics.psnr(home, middle) < OTHER:
            found.append(run)
        if len(found) == count:
            break
    if not found:
        return None
    total, space = context + away, env.action_space
    taken = [ActionCodec(space).flatten_list(run.actions[1 - total :]) for run in found]
    return Segments(
        frames=torch.from_numpy(np.stack([run.frames[-total:] for run in found])),
        actions=torch.from_numpy(np.stack(taken)),
        prompts=[run.prompts[-total:] for run in found],
        sources=list(range(len(found))),
        context=context,
    )


def forgetful(runner: Runner, segments: Segments) -> Tensor:
    """Predict what `runner.free` does with memory emptied before each step, uint8 (S, N, H, W, 3)."""

    def forget(state: State) -> None:
        latent = state.history.shape[-2:]
        dynamics = runner.simulator.dynamics
        size = latent[0], latent[1]
        state.cache = KVCache.empty(dynamics.config, len(state.prompts), size, dynamics.dtype, dynamics.device)

    drawn = torch.empty_like(segments.truth)
    act = recorded(segments)
    for rows, n, frames in runner.stream(segments, act, segments.length, "without memory", before=forget):
        drawn[rows, n] = frames
    return drawn


def compare(runner: Runner, segments: Segments) -> tuple[dict[str, Any], list[np.ndarray]]:
    """Compare the views on return.

    Returns:
        psnr: of the world's view on return against the truth's, in dB; and of others in its place: emptied_psnr, the
            same world without memory; copy_psnr, the true frame before turning: the most that can be had;
            other_psnr, the view of another segment: the least; decoded_psnr, the truth through the autoencoder.
        over_emptied, over_other: what memory gives, in dB, with intervals.
        perceptual, emptied_perceptual, ...: `features.perceptual_distance`, where its network is installed.

        And pictures: before turning, away, the return in truth, as drawn, and as drawn without memory, for each.
    """
    drawn, emptied = (
        runner.free(segments, recorded(segments), title="look away and back"),
        forgetful(runner, segments),
    )
    truth, home = segments.truth[:, -1:], segments.before[:, :1]
    decoded = runner.world.autoencoder.decode(runner.world.autoencoder.encode(truth[:, 0])).cpu().unsqueeze(1)
    others = truth.roll(1, dims=0)
    views = {"": drawn[:, -1:], "emptied_": emptied[:, -1:], "copy_": home, "other_": others, "decoded_": decoded}
    report: dict[str, Any] = {"segments": len(segments)}
    for name, frames in views.items():
        report[f"{name}psnr"] = metrics.psnr(frames.flatten(0, 1), truth.flatten(0, 1))
    baselines = {"emptied": views["emptied_"], "other": others}
    report |= psnr_intervals(views[""], truth, baselines, segments.sources)
    try:
        from worldsim.evaluation.features import perceptual_distance

        for name, frames in views.items():
            report[f"{name}perceptual"] = float(perceptual_distance(frames[:, 0], truth[:, 0]).mean())
    except MissingDependency as error:
        report["skipped"] = str(error)
    middle = segments.truth[:, segments.length // 2 - 1]
    rows = [home[:, 0], middle, truth[:, 0], drawn[:, -1], emptied[:, -1]]
    return report, list(torch.stack(rows, dim=1).flatten(0, 1).numpy())


def memory(
    runner: Runner, recipe: Recipe | None, count: int, seed: int = 0, away: tuple[int, ...] = AWAY
) -> tuple[dict[str, Any], list[np.ndarray], list[str]]:
    """Look away for each of some numbers of steps, and measure the views on return.

    Returns:
        By number of steps what `compare` says, or {"skipped": why}; pictures in rows of five, and the rows' captions.
    """
    world, env = runner.world, real.open_game(recipe)
    if env is None or recipe is None or env.action_space != world.action_space:
        return {"skipped": "the real game of this world is not installed, or has other actions"}, [], []
    report, pictures, captions = {}, [], []
    height, width = world.card.frame_size
    try:
        for steps in away:
            rng = np.random.default_rng([seed, 30, steps])
            found = look_aways(recipe, env, steps, count, context_of(world), (height, width), rng)
            if found is None:
                report[str(steps)] = {"skipped": "in the real game nobody saw the same picture again"}
                continue
            report[str(steps)], views = compare(runner, found)
            shown = min(3, len(found))
            pictures += views[: 5 * shown]
            captions += [f"away for {steps}: before, away, back: truth, drawn, without memory"] * shown
    finally:
        env.close()
    return report, pictures, captions


def table(report: dict[str, Any]) -> str:
    """Format the report."""
    if "skipped" in report:
        return f"look away and back: {report['skipped']}"
    lines = ["look away and back, PSNR of the view on return:"]
    for steps, line in report.items():
        if "psnr" not in line:
            lines.append(f"{steps:>6} steps: {line['skipped']}")
            continue
        gain = shown(line["over_emptied"], line["over_emptied_interval"])
        emptied, other, copy = (shown(line[f"{name}_psnr"], None) for name in ("emptied", "other", "copy"))
        eyes = ""
        if "perceptual" in line:
            eyes = f"; perceptual {line['perceptual']:.3f}, without memory {line['emptied_perceptual']:.3f}"
        lines.append(
            f"{steps:>6} steps: {shown(line['psnr'], line['psnr_interval'])}, without memory "
            f"{emptied} (memory gives {gain}), another view {other}, before turning {copy}, "
            f"{line['segments']} segments{eyes}"
        )
    return "\n".join(lines)
