"""Measure whether a world recovers: a patch of noise is pasted into the last context frames of a moving session.

A rollout with the patch and one without it have the same seeds and the same actions. The measures are, at the place of
the patch, the distance from the nearest patches of real frames, and the distance between the two rollouts.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from worldsim.diffusion.noise import keys_of, normal
from worldsim.evaluation.minute_measures import mean_interval
from worldsim.evaluation.rollout import Runner, Segments

PATCH = 3  # latents across
PASTED = 2  # frames of context that it is pasted into
AFTER = (1, 4, 16, 48)  # frames after which the place is looked at
TOKEN = 77  # of the noise, beside those of `diffusion.noise`
SIDE = 8  # a place is compared at this size


def place(latent_size: tuple[int, int], row: int) -> tuple[int, int]:
    """Compute top and left of the patch in latents, by session number: the lower middle, a little to either side."""
    height, width = latent_size
    left = (width - PATCH) // 2 + (row % 3 - 1)
    return max(0, (height - PATCH) // 2), min(max(0, left), width - PATCH)


def paste(latents: Tensor, corner: tuple[int, int], noise: Tensor) -> Tensor:
    """Paste `noise` (..., C, PATCH, PATCH) into latents (..., C, h, w) at a corner."""
    top, left = corner
    pasted = latents.clone()
    pasted[..., top : top + PATCH, left : left + PATCH] = noise
    return pasted


def rollout(runner: Runner, segments: Segments, actions: Tensor, frames: int, pasted: bool) -> Tensor:
    """Predict frames after the context of segments under actions (S, frames, A), uint8 (S, frames, H, W, 3).

    With `pasted`, the last PASTED frames of context have the patch, in history and cache alike.
    """
    drawn = []
    for rows in (list(range(i, min(i + runner.batch, len(segments)))) for i in range(0, len(segments), runner.batch)):
        state = runner.new_state(rows, (segments.prompts[row][0] for row in rows))
        for t in range(segments.context):
            state.prompts = runner.prompts(segments.prompts[row][t] for row in rows)
            latents = runner.world.autoencoder.encode(segments.frames[rows, t]).to(runner.simulator.device)
            if pasted and t >= segments.context - PASTED:
                shape = (latents.shape[1], PATCH, PATCH)
                noise = normal(keys_of([runner.seed + row for row in rows]), torch.full((len(rows),), t), TOKEN, shape)
                size = (latents.shape[2], latents.shape[3])
                patched = [
                    paste(z, place(size, row), n) for z, row, n in zip(latents, rows, noise.to(latents), strict=True)
                ]
                latents = torch.stack(patched)
            runner.simulator.observe(state, latents, segments.actions[rows, t - 1] if t else None)
        shown = [runner.decode(runner.simulator.step(state, actions[rows, n]).latents).cpu() for n in range(frames)]
        drawn.append(torch.stack(shown, dim=1))
    return torch.cat(drawn)


def crops(frames: Tensor, corners: list[tuple[int, int]], latent_size: tuple[int, int]) -> Tensor:
    """Crop the patch of frames uint8 (N, H, W, 3), one corner each, and shrink it: float (N, 3 * SIDE * SIDE)."""
    found = []
    down, across = frames.shape[1] // latent_size[0], frames.shape[2] // latent_size[1]
    for frame, (top, left) in zip(frames, corners, strict=True):
        part = frame[top * down : (top + PATCH) * down, left * across : (left + PATCH) * across]
        found.append(part.permute(2, 0, 1).float())
    return F.adaptive_avg_pool2d(torch.stack(found), SIDE).flatten(1)


def nearest(found: Tensor, bank: Tensor) -> Tensor:
    """Compute the mean absolute difference of each of (N, D) from the nearest of (M, D), in grey levels; (N,)."""
    return torch.cdist(found, bank, p=1).amin(dim=1) / found.shape[1]


def recovery(
    runner: Runner, segments: Segments, actions: Tensor, real: Tensor, after: tuple[int, ...] = AFTER
) -> dict[str, Any]:
    """Paste a patch of noise, and measure its place afterwards.

    Args:
        runner: predicts the frames.
        segments: contexts of moving sessions.
        actions: played after them, flattened, (S, n, action_size).
        real: real frames that the place is compared with, decoded by the world's own decoder, uint8 (N, H, W, 3).
        after: frames after which to look; later ones than there are actions are left out.

    Returns:
        By number of frames: pasted and unpasted, the place's mean distance from the nearest real patches; difference,
        the mean absolute difference of whole frames; each with its interval over sessions, in grey levels. Nothing
        where latents are smaller than the patch.
    """
    config = runner.world.dynamics.config
    points = [n for n in after if n <= actions.shape[1]]
    if not points or not len(real) or min(config.latent_size) < PATCH:
        return {}
    rollouts = [rollout(runner, segments, actions, max(points), pasted) for pasted in (True, False)]
    corners = [place(config.latent_size, row) for row in range(len(segments))]
    banks = {corner: crops(real, [corner] * len(real), config.latent_size) for corner in set(corners)}
    report: dict[str, Any] = {}
    for point in points:
        line: dict[str, Any] = {}
        for name, frames in zip(("pasted", "unpasted"), rollouts, strict=True):
            found = crops(frames[:, point - 1], corners, config.latent_size)
            away = [nearest(found[i : i + 1], banks[corner]) for i, corner in enumerate(corners)]
            line |= _named(name, torch.cat(away))
        apart = (rollouts[0][:, point - 1].float() - rollouts[1][:, point - 1].float()).abs().mean(dim=(1, 2, 3))
        report[str(point)] = line | _named("difference", apart)
    return report


def _named(name: str, values: Tensor) -> dict[str, Any]:
    found = mean_interval(values.unsqueeze(1))
    return {name: found["mean"], f"{name}_interval": found["interval"]}
