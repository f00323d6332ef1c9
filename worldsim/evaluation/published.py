"""LPIPS and FVD with their published weights, from files in the published layouts.

The weights are not shipped and never downloaded. Both loaders take paths of files only.
"""

from __future__ import annotations

import pickle  # only for the name of an error: see `weights_only` below
import warnings
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim.errors import ConfigError, FrameError, InputError, WorldError
from worldsim.evaluation.distances import frechet_distance

# The convolutional parts as torchvision lays them out: (output channels, kernel, stride, padding) of a convolution,
# which a ReLU follows, or "P", which pools. TAPS are the indices of the ReLUs that LPIPS looks at.
ALEX = ((64, 11, 4, 2), "P", (192, 5, 1, 2), "P", (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
VGG = tuple(
    "P" if width == 0 else (width, 3, 1, 1)
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)
)
TAPS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of frames in -1..1, as LPIPS defines it
BATCH = 8  # frames in one pass
FVD_FRAMES, FVD_SIZE = 10, 224  # the fewest that I3D can take, and what it was trained on


class Lpips(nn.Module):
    """LPIPS (Zhang et al. 2018, arXiv:1801.03924), version 0.1; `load_lpips` loads its weights."""

    def __init__(self, network: Literal["alex", "vgg"] = "alex") -> None:
        """Initialize the backbone and the five linear heads with random weights."""
        super().__init__()
        if network not in TAPS:
            raise ConfigError(f"network is {network!r}; allowed: 'alex', 'vgg'.")
        pool = nn.MaxPool2d(3, 2) if network == "alex" else nn.MaxPool2d(2, 2)
        layers: list[nn.Module] = []
        widths: dict[int, int] = {}  # by index in `layers`
        before = 3
        for layer in ALEX if network == "alex" else VGG:
            if isinstance(layer, str):
                layers.append(pool)
                continue
            width, kernel, stride, padding = layer
            widths[len(layers)] = width
            layers += [nn.Conv2d(before, width, kernel, stride, padding), nn.ReLU()]
            before = width
        self.taps = TAPS[network]
        self.features = nn.Sequential(*layers)
        self.heads = nn.ModuleList(nn.Conv2d(widths[tap - 1], 1, 1, bias=False) for tap in self.taps)

    @torch.no_grad()
    def forward(self, frames: Tensor, truth: Tensor) -> Tensor:
        """Compute LPIPS of each frame and its truth, both uint8 (N, H, W, 3); float32 (N,)."""
        if frames.shape != truth.shape or frames.ndim != 4 or frames.dtype != torch.uint8 or truth.dtype != torch.uint8:
            raise FrameError(
                f"the frames are {frames.dtype} {tuple(frames.shape)}, the truth {truth.dtype} {tuple(truth.shape)}; "
                "allowed: both uint8 (N, H, W, 3)."
            )
        found = [self._distance(a, b) for a, b in zip(frames.split(BATCH), truth.split(BATCH), strict=True)]
        return torch.cat(found) if found else torch.empty(0)

    def _distance(self, frames: Tensor, truth: Tensor) -> Tensor:
        x = torch.cat([frames, truth]).permute(0, 3, 1, 2).float() / 127.5 - 1  # (2n, 3, H, W)
        x = (x - torch.tensor(SHIFT).view(1, 3, 1, 1)) / torch.tensor(SCALE).view(1, 3, 1, 1)
        total = torch.zeros(len(frames))
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                a, b = (x / (x.norm(dim=1, keepdim=True) + 1e-10)).chunk(2)
                total += self.heads[self.taps.index(index)]((a - b).square()).mean(dim=(1, 2, 3))
        return total


def load_lpips(linear: str | Path, backbone: str | Path, network: Literal["alex", "vgg"] = "alex") -> Lpips:
    """Load LPIPS from two files of published weights; call the result with (frames, truth).

    Both are read as tensors only (`weights_only`), so that a file cannot run code.

    Args:
        linear: the heads as the `lpips` package ships them (`lpips/weights/v0.1/alex.pth`), with keys such as
            "lin0.model.1.weight".
        backbone: the ImageNet network as torchvision publishes it (`alexnet-owt-7be5be79.pth`, `vgg16-397923af.pth`),
            with keys such as "features.0.weight"; further layers are ignored.
        network: which of the two these are.

    Raises:
        ConfigError: an unknown `network`.
        WorldError: a file is missing or damaged, or has another layout.
    """
    model = Lpips(network)
    state = {k: v for k, v in _tensors(backbone).items() if k.startswith("features.")}
    state |= {
        f"heads.{i}.weight": v for i in range(5) for k, v in _tensors(linear).items() if k == f"lin{i}.model.1.weight"
    }
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise WorldError(
            f"{linear} and {backbone} are not the published weights of LPIPS with {network!r}: {error}. Give the file "
            "of linear heads first, then the backbone's, and the network they are for."
        ) from error
    return model.eval().requires_grad_(False)


class Fvd:
    """FVD (Unterthiner et al. 2018, arXiv:1812.01717) by a network that `load_fvd` has read."""

    def __init__(self, network: Any) -> None:
        """Take the network: clips float (B, 3, T, 224, 224) in -1..1 to features (B, D)."""
        self.network = network

    @torch.no_grad()
    def features(self, clips: Tensor | np.ndarray) -> Tensor:
        """Compute features (B, D) of clips uint8 (B, T, H, W, 3), T at least 10."""
        clips = torch.as_tensor(clips)
        if clips.dtype != torch.uint8 or clips.ndim != 5 or clips.shape[-1] != 3 or clips.shape[1] < FVD_FRAMES:
            raise FrameError(
                f"the clips are {clips.dtype} {tuple(clips.shape)}; allowed: uint8 (B, T, H, W, 3) of at least "
                f"{FVD_FRAMES} frames."
            )
        found = []
        for clip in clips:  # one by one: a clip at this size is large
            x = clip.permute(0, 3, 1, 2).float()
            x = F.interpolate(x, (FVD_SIZE, FVD_SIZE), mode="bilinear", align_corners=False) / 127.5 - 1
            x = x.transpose(0, 1).unsqueeze(0)  # (1, 3, T, 224, 224)
            found.append(self.network(x, rescale=False, resize=False, return_features=True).float())
        return torch.cat(found)

    def __call__(self, drawn: Tensor | np.ndarray, truth: Tensor | np.ndarray) -> float:
        """Compute FVD between two sets of clips; published figures use 2,048 clips of 16 frames; fewer clips give more.

        Raises:
            FrameError: clips of another dtype or shape, or too short.
            InputError: fewer than two clips.
        """
        if min(len(drawn), len(truth)) < 2:
            raise InputError(f"FVD needs at least 2 clips on each side, got {len(drawn)} and {len(truth)}.")
        return frechet_distance(self.features(drawn), self.features(truth))


def load_fvd(path: str | Path) -> Fvd:
    """Load FVD with the public TorchScript of I3D (`i3d_torchscript.pt`, Kinetics-400); call it with (drawn, truth).

    A TorchScript file is a program of torch's own operators. Torch's reader builds no Python objects from it, as an
    unpickler would, but a program can still do harm: only give it files from people you trust.

    Raises:
        WorldError: the file is missing or is no TorchScript.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # torch wants other files, but this is the published one
            network = torch.jit.load(str(_file(path)), map_location="cpu")
    except (RuntimeError, ValueError) as error:
        raise WorldError(
            f"{path} is no TorchScript ({(str(error) or type(error).__name__).splitlines()[0]}); "
            "give the file i3d_torchscript.pt."
        ) from error
    return Fvd(network.eval())


def _tensors(path: str | Path) -> dict[str, Tensor]:
    try:
        state = torch.load(_file(path), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError, KeyError) as error:
        raise WorldError(
            f"cannot read {path} as weights: {(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WorldError(f"{path} is no state dict; give a file of tensors by name.")
    return state


def _file(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise WorldError(
            f"there is no file {path}; the weights are not shipped, fetch them from those who published them."
        )
    return path
