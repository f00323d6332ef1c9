"""Frames for the measures of a first minute."""

import numpy as np
import torch

from worldsim.evaluation import realism


def kept():
    """Real frames and rotten ones, one of each of 16 sessions."""
    return realism.kept_frames("rotten")


def weave(count, seed=0):
    """Grey frames with a fine grain."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.integers(70, 90, (1, 64, 64, 1), np.uint8).repeat(3, axis=3)) for _ in range(count)]


def panned(rows=2, steps=8, shift=3, seed=0):
    """Clips of a wide smooth picture that moves to the left by `shift` pixels a step."""
    rng = np.random.default_rng(seed)
    wide = torch.from_numpy(rng.integers(0, 256, (rows, 3, 16, 40), np.uint8)).float()
    wide = torch.nn.functional.interpolate(wide, (64, 160), mode="bicubic").clamp(0, 255).byte().permute(0, 2, 3, 1)
    return torch.stack([wide[:, :, shift * t : shift * t + 64] for t in range(steps)], dim=1)
