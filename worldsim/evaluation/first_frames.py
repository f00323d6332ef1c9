"""Measure the first frames that a world samples from prompts alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from worldsim.evaluation import metrics
from worldsim.evaluation.intervals import bootstrap, ratio, wilson
from worldsim.evaluation.probe import Probe
from worldsim.evaluation.realism import decoded
from worldsim.evaluation.rollout import Runner


def first_frames(
    runner: Runner, probe: Probe, starts: Tensor, count: int
) -> tuple[dict[str, Any], list[Any], list[str]]:
    """Sample first frames from the prompts that a world knows, in turn.

    Args:
        runner: predicts the frames.
        probe: of the game.
        starts: recorded frames to hold them against, uint8 (S, H, W, 3).
        count: how many.

    Returns:
        sharpness: theirs over the recorded ones'; sharpness_decoded: over those encoded and decoded, as a session
        from a clip shows them; where the game has a key layout, the share that shows it, under its name; with
        intervals. Then the frames, and their prompts.
    """
    known = probe.prompts(runner.world.card.prompts)
    chosen = [known[i % len(known)] for i in range(count)]
    frames = runner.from_prompts([text for text, _ in chosen], 1)[:, 0]
    report = {"frames": count} | sharpness(frames, starts)
    shown = sharpness(frames, decoded(runner.world.autoencoder, starts))
    report |= {name.replace("sharpness", "sharpness_decoded"): value for name, value in shown.items()}
    labels = [probe.named(text, options) for text, options in chosen]
    if name := probe.key_layout:
        hits = probe.layout(frames, labels)[:, probe.layout_names.index(name)]
        report |= {"key_layout": name, name: float(hits.mean()), f"{name}_interval": wilson(int(hits.sum()), count)}
    if (palette := probe.palette_adherence(frames.unsqueeze(1), labels)) is not None:
        report["palette"] = float(palette.mean())
        report["palette_interval"] = wilson(int(palette.sum()), count)
    return report, list(frames.numpy()), [text for text, _ in chosen]


def sharpness(frames: Tensor, starts: Tensor) -> dict[str, Any]:
    """Compute the mean sharpness of frames over that of recorded ones, with its interval over the former."""
    values, truth = metrics.sharpness(frames).double(), float(metrics.sharpness(starts).double().mean())
    sums = torch.stack([values, torch.full_like(values, truth)], dim=1).numpy()
    return {
        "sharpness": float(values.mean()) / truth if truth else None,
        "sharpness_interval": bootstrap(sums, range(len(frames)), ratio()),
    }


def captions(prompts: Sequence[str], columns: int) -> list[str]:
    """Make a caption for each row of a contact sheet."""
    return ["; ".join(prompts[i : i + columns]) for i in range(0, len(prompts), columns)]
