"""Distances between frames and their truth, and measures of single frames.

Errors are pooled: a mean of per-frame PSNR would be dominated by frames in which nothing happens.
All frames are uint8 tensors (N, H, W, 3).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
WINDOW, DEVIATION = 11, 1.5  # of SSIM's Gaussian, in pixels
ENTROPY_BINS = 8  # so few that a decoder's faint noise does not count as variety
MOVING = 2.0  # mean absolute difference in grey levels of 255; less is hard to see


def grayscale(frames: Tensor) -> Tensor:
    """Compute the luminance 0..255 of frames (..., H, W, 3), float32 (..., H, W)."""
    return frames.float() @ torch.tensor(LUMA)


def psnr(frames: Tensor, truth: Tensor) -> float:
    """Compute PSNR in dB of the mean squared error over all pixels; infinite for equal frames, nan without frames."""
    if not len(frames):
        return math.nan
    total = sum(float((a.float() - b.float()).square().sum(dtype=torch.float64)) for a, b in _parts(frames, truth))
    return 10 * math.log10(255**2 * frames.numel() / total) if total else math.inf


def ssim(frames: Tensor, truth: Tensor) -> Tensor:
    """Compute the structural similarity of luminances, -1..1, (N,) (Wang et al. 2004, doi:10.1109/TIP.2003.819861).

    By torchmetrics. The usual Gaussian window of 11 pixels is narrower where the frame is smaller.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    # The library's window has 2 int(3.5 deviations + .5) + 1 pixels. It pads the frames by half of that.
    side = (min(WINDOW, *frames.shape[1:3]) - 1) // 2
    deviation = min(DEVIATION, (side + 0.49) / 3.5)
    rows, columns = (slice(side, length - side) for length in frames.shape[1:3])
    scores = []
    for a, b in _parts(frames, truth):
        pair = grayscale(a).unsqueeze(1), grayscale(b).unsqueeze(1)  # (n, 1, H, W)
        settings: Any = {"sigma": deviation, "data_range": 255.0, "reduction": "none", "return_full_image": True}
        _, score = structural_similarity_index_measure(*pair, **settings)
        scores.append(score[..., rows, columns].mean(dim=(1, 2, 3)))
    return torch.cat(scores) if scores else torch.empty(0)


def sharpness(frames: Tensor) -> Tensor:
    """Compute the mean absolute luminance step between neighbouring pixels, in grey levels, (N,)."""
    parts = [grayscale(part) for part in frames.split(256)]
    steps = [(p.diff(dim=1).abs().mean(dim=(1, 2)) + p.diff(dim=2).abs().mean(dim=(1, 2))) / 2 for p in parts]
    return torch.cat(steps)


def brightness(frames: Tensor) -> Tensor:
    """Compute the mean luminance, 0..255, (N,)."""
    return torch.cat([grayscale(part).mean(dim=(1, 2)) for part in frames.split(256)])


def entropy(frames: Tensor) -> Tensor:
    """Compute the entropy in bits of the luminances' histogram, (N,): 0 for one colour, at most 3."""
    bins = torch.cat([grayscale(part).mul(ENTROPY_BINS / 256).long().flatten(1) for part in frames.split(256)])
    counts = torch.zeros(len(frames), ENTROPY_BINS).scatter_add_(1, bins, torch.ones(bins.shape))
    shares = counts / counts.sum(dim=1, keepdim=True)
    return -torch.xlogy(shares, shares).sum(dim=1) / math.log(2)


def motion(frames: Tensor, before: Tensor) -> Tensor:
    """Compute the mean absolute difference from the frames `before`, in grey levels, (N,)."""
    parts = [(a.float() - b.float()).abs().mean(dim=(1, 2, 3)) for a, b in _parts(frames, before)]
    return torch.cat(parts) if parts else torch.empty(0)


def moving(frames: Tensor, before: Tensor) -> Tensor:
    """Say which frames clearly differ from those `before`, bool (N,)."""
    return motion(frames, before) > MOVING


def reference_range(values: Tensor, share: float = 0.98) -> tuple[float, float]:
    """Compute the range in which the middle `share` of `values` lies."""
    low, high = torch.quantile(values.double(), torch.tensor([(1 - share) / 2, (1 + share) / 2]).double()).tolist()
    return low, high


def inside(values: Tensor, limits: tuple[float, float]) -> Tensor:
    """Say which values lie within `limits`, bool (N,)."""
    return (values >= limits[0]) & (values <= limits[1])


def compare(drawn: Tensor, truth: Tensor, copy: Tensor, shuffled: Tensor) -> dict[str, float]:
    """Compare predicted frames and two baselines with the truth, all uint8 (S, n, H, W, 3).

    `moving_` figures are over the frames that clearly differ from what `copy` shows.
    """
    drawn, truth, copy, shuffled = (frames.flatten(0, 1) for frames in (drawn, truth, copy, shuffled))
    moves = moving(truth, copy)
    report = {"frames": len(truth), "moving": float(moves.float().mean())}
    for name, frames in (("", drawn), ("copy_", copy), ("shuffled_", shuffled)):
        report[f"{name}psnr"] = psnr(frames, truth)
        report[f"{name}ssim"] = float(ssim(frames, truth).mean())
        report[f"{name}moving_psnr"] = psnr(frames[moves], truth[moves])
    for name, measure in (("sharpness", sharpness), ("brightness", brightness)):
        report[name] = float(measure(drawn).mean() / measure(truth).mean())
    return report


def _parts(a: Tensor, b: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Yield both in pieces, so that the float copies stay small."""
    return list(zip(a.split(256), b.split(256), strict=True)) if len(a) else []
