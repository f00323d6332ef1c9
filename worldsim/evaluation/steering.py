"""Measure whether the picture moves in the direction of the action when a player steers.

The turn between two frames is found by search: the first frame is moved by each of some amounts, and the one that makes
it most like the second wins. How a turn moves the picture depends on the camera: in first person it shifts the picture
sideways; from above, it rotates the picture about the vehicle.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional as F

from worldsim.evaluation.intervals import bootstrap, ratio
from worldsim.evaluation.metrics import grayscale
from worldsim.spaces import ActionCodec

SIDE = 64  # frames are compared at this size
CLEAR = 0.85  # a turn is clear if it leaves less than this share of the error that not turning leaves
HELD = 3  # steps after which a car is sure to follow its wheel
ENOUGH = 20  # clear turns without which nothing is said
FIRM = 0.3  # a steer is firm beyond this share of the strongest key


@dataclass(frozen=True)
class Camera:
    """How a turn moves the picture.

    Attributes:
        name: for the report.
        turns: amounts of turn that are tried, (K,); those up to 1 in size do not count as a turn.
        warps: where each pixel came from, for each amount and for some other motions beside it (forward, say), as
            affine maps of places in -1..1, (K, M, 2, 3).
        rows: share of the picture, from above, that moves at all.
    """

    name: str
    turns: Tensor
    warps: Tensor
    rows: float = 1.0


def pan() -> Camera:
    """First person: a turn shifts the picture sideways, walking enlarges it. Amounts are pixels of 64."""
    turns = torch.arange(-14.0, 15.0)
    warps = [
        [torch.tensor([[zoom, 0, -float(x) * 2 / SIDE], [0, zoom, 0]]) for zoom in (1.0, 0.94)] for x in turns.tolist()
    ]
    return Camera("pan", turns, torch.stack([torch.stack(row) for row in warps]))


def orbit() -> Camera:
    """CarRacing: a turn rotates the picture about the car, driving moves it down. Amounts are 1.5 degrees each."""
    turns = torch.arange(-8.0, 9.0)
    car = torch.tensor([0.0, 0.53])
    wide = 1.25  # a pixel shows 1000/64 units across and 800/64 along
    warps = []
    for turn in turns.tolist():
        cos, sin = math.cos(math.radians(1.5 * turn)), math.sin(math.radians(1.5 * turn))
        rotation = torch.tensor([[cos, sin / wide], [-sin * wide, cos]])  # back to where each pixel came from
        for down in (0, 2, 4, 6, 8):
            offset = car - rotation @ car - torch.tensor([0.0, down * 2 / SIDE])
            warps.append(torch.cat([rotation, offset.unsqueeze(1)], dim=1))
    return Camera("orbit", turns, torch.stack(warps).unflatten(0, (len(turns), -1)), rows=0.875)


def turns(before: Tensor, after: Tensor, camera: Camera) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate the turn between frames (N, H, W, 3) and later ones.

    Returns:
        amounts, positive where the picture moves (or its upper part rotates) to the right; which of them are clearly
        turns, bool; and the mean difference that is left, in grey levels; all (N,).
    """
    errors = [_errors(a, b, camera) for a, b in zip(before.split(128), after.split(128), strict=True)]
    tried = torch.cat(errors)  # (N, K)
    left, best = tried.min(dim=1)
    still = tried[:, camera.turns.abs() <= 1].amin(dim=1)
    amounts = camera.turns[best]
    return amounts, (amounts.abs() > 1) & (left < CLEAR * still), left


def _errors(before: Tensor, after: Tensor, camera: Camera) -> Tensor:
    """Compute the difference that each amount leaves, (N, K)."""
    first, second = (_small(frames) for frames in (before, after))  # (N, 1, SIDE, SIDE)
    shown = torch.arange(SIDE) < camera.rows * SIDE
    errors = torch.empty(len(first), *camera.warps.shape[:2])
    for k, m in np.ndindex(*camera.warps.shape[:2]):
        places = F.affine_grid(camera.warps[k, m].unsqueeze(0), [1, 1, SIDE, SIDE], align_corners=False)
        moved = F.grid_sample(first, places.expand(len(first), -1, -1, -1), align_corners=False, padding_mode="border")
        known = ((places.abs() < 1).all(dim=-1)[0] & shown.unsqueeze(1)).float()  # (SIDE, SIDE)
        errors[:, k, m] = ((moved - second).abs()[:, 0] * known).sum(dim=(1, 2)) / known.sum()
    return errors.amin(dim=2)


def _small(frames: Tensor) -> Tensor:
    small = grayscale(frames).unsqueeze(1)
    return small if small.shape[2:] == (SIDE, SIDE) else F.interpolate(small, (SIDE, SIDE), mode="area")


def steer_of(actions: Tensor, keys: dict[str, Any], space: spaces.Space) -> Tensor | None:
    """Say where flattened actions (..., action_size) steer: -1 left, 1 right, 0 neither or not firmly; (...).

    What "left" and "right" do is read from the keys; None for a world that has no such keys.
    """
    sides = [[action for key, action in keys.items() if side in key.split("+")] for side in ("left", "right")]
    if not all(sides) or isinstance(space, spaces.Dict):
        return None
    left, right = (
        torch.from_numpy(ActionCodec(space).flatten(np.asarray(side))) for side in sides
    )  # (keys, action_size)
    axis = right.mean(dim=0) - left.mean(dim=0)
    steer = actions @ axis
    return steer.sign() * (steer.abs() > FIRM * max(float((left @ axis).abs().max()), 1e-6))


def held(steer: Tensor) -> Tensor:
    """Say where steers (S, N) have been on the same side for HELD steps, bool (S, N)."""
    same = steer != 0
    for age in range(1, HELD):
        same[:, age:] &= steer[:, age:] == steer[:, :-age]
    same[:, : HELD - 1] = False
    return same


def direction(
    steer: Tensor,
    before: Tensor,
    truth: Tensor,
    drawn: Tensor,
    free: tuple[Tensor, Tensor] | None = None,
    groups: Sequence[int] | None = None,
) -> dict[str, Any] | None:
    """Measure how often a steer moves the picture in its direction.

    The camera is the one that explains best how the true frames move under a held steer.

    Args:
        steer: see `steer_of`, (S, N).
        before: the true frame before each, uint8 (S, N, H, W, 3).
        truth: the true frame.
        drawn: what the world drew for it, from the true frames before it.
        free: the steers (S, N) and frames (S, N, H, W, 3) of a free run.
        groups: the episode of each of the S segments (default: all different).

    Returns:
        None where the true frames show no clear turns, else:
        right: of the frames in which the truth clearly turns, the share in which the drawn frame turns the same way;
            right_interval: see `intervals`.
        frames: how many those are.
        truth_right: of the truth's clear turns under a steer held for HELD steps, the share that goes with the steer:
            what is possible.
        free_right: the same of the free run, in its own frames; free_frames: of how many.
        truth_turning, free_turning: shares of the frames under a held steer that clearly turn.
    """
    firm = held(steer).flatten()
    earlier, later = before.flatten(0, 1), truth.flatten(0, 1)
    found = [(camera, *turns(earlier, later, camera)) for camera in (pan(), orbit())]
    camera, amounts, clear, _ = min(found, key=lambda one: float(one[3][firm].mean()))
    agree = (amounts.sign() * steer.flatten())[clear & firm]
    if len(agree) < ENOUGH:
        return None
    way = 1.0 if agree.mean() > 0 else -1.0  # where the picture moves when steering right
    own, _, _ = turns(earlier[clear], drawn.flatten(0, 1)[clear], camera)
    same = torch.zeros(len(clear))
    same[clear] = (own.sign() == amounts[clear].sign()).float()
    sums = torch.stack([same, clear.float()], dim=1).unflatten(0, steer.shape).double().sum(dim=1)  # (S, 2)
    report: dict[str, Any] = {
        "camera": camera.name,
        "frames": int(clear.sum()),
        "right": float(same.sum() / clear.sum()),
        "right_interval": bootstrap(sums.numpy(), groups or range(len(steer)), ratio()),
        "truth_right": float((agree == way).float().mean()),
        "truth_turning": float(clear[firm].float().mean()),
    }
    if free is not None:
        wheel, frames = free
        pairs = held(wheel)[:, 1:]
        amounts, clear, _ = turns(frames[:, :-1][pairs], frames[:, 1:][pairs], camera)
        right = amounts.sign() == way * wheel[:, 1:][pairs]
        report |= {
            "free_right": float(right[clear].float().mean()),
            "free_turning": float(clear.float().mean()),
            "free_frames": int(clear.sum()),
        }
    return report
