"""Distances between two sets of feature vectors.

The kernel distance is torchmetrics'. The Frechet distance is not: a product of covariances loses half of the digits
where there are fewer vectors than dimensions.

The meaning of both numbers depends on the features. The Frechet distance also depends on the number of vectors: compare
only sets of equal size, with several times more vectors than dimensions. The kernel distance has no such bias, so use
it for few frames.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldsim.errors import ConfigError, InputError

SUBSETS, SUBSET = 50, 256  # of the kernel distance: how many times it is measured, on how many vectors of each set


@dataclass(frozen=True)
class KernelDistance:
    """A kernel distance, measured on several subsets."""

    mean: float  # unbiased: around 0, also below, for two sets from one distribution
    deviation: float  # standard deviation over the subsets; they overlap, so it says too little about the mean
    subset: int  # vectors of each set in a subset


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Compute the squared Frechet (2-Wasserstein) distance between Gaussians fitted to vectors (N, D) and (M, D).

    0 for equal sets. Biased upwards when N or M is not much larger than D.

    Raises:
        InputError: fewer than two vectors, other shapes than those above, or numbers that are not finite.
    """
    a, b = check_sets(a, b)
    mean = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    # The square roots of the eigenvalues of cov(a) cov(b) are the singular values of A B^T, where cov(a) = A^T A.
    a, b = ((x - x.mean(dim=0)) / (len(x) - 1) ** 0.5 for x in (a, b))
    shared = torch.linalg.svdvals(_square_root(a) @ _square_root(b).T).sum()
    return max(0.0, float(mean + a.square().sum() + b.square().sum() - 2 * shared))


def kernel_distance(
    a: Tensor, b: Tensor, subset: int = SUBSET, subsets: int = SUBSETS, seed: int = 0
) -> KernelDistance:
    """Compute the squared maximum mean discrepancy of vectors (N, D) and (M, D), kernel (x.y / D + 1)^3.

    The unbiased estimate, averaged over `subsets` random subsets of `subset` vectors of each set (fewer where a set is
    smaller).

    Raises:
        InputError: fewer than two vectors, other shapes than those above, or numbers that are not finite.
        ConfigError: `subset` is less than 2 or `subsets` less than 1.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    if subset < 2 or subsets < 1:
        raise ConfigError(f"subset is {subset} and subsets is {subsets}; they must be at least 2 and at least 1.")
    a, b = check_sets(a, b)
    size = min(subset, len(a), len(b))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that it stores all features, as it should
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(feature=Given(a.shape[1]), subsets=subsets, subset_size=size)
        mean, deviation = _measured(metric, a, b)
    return KernelDistance(float(mean), float(deviation), size)


class Given(nn.Module):
    """Stands for the network of a metric where its features, (N, D), are what is given."""

    def __init__(self, width: int) -> None:
        """Of `width` D."""
        super().__init__()
        self.num_features = width

    def forward(self, features: Tensor) -> Tensor:
        """The same."""
        return features


def check_sets(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both sets in double precision, if each has at least two finite vectors and their widths are equal.

    Raises:
        InputError: they are not.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1] or min(len(a), len(b)) < 2:
        raise InputError(
            f"the sets have shapes {tuple(a.shape)} and {tuple(b.shape)}; allowed: (N, D) and (M, D) with N and M at "
            "least 2. Give more frames."
        )
    if not (a.isfinite().all() and b.isfinite().all()):
        raise InputError("the sets hold numbers that are not finite; look at the frames or the network they came from.")
    return a.double(), b.double()


def _measured(metric: Any, a: Tensor, b: Tensor) -> Any:
    """Give a metric of torchmetrics both sets, in double precision."""
    metric.set_dtype(torch.float64)
    metric.update(a, real=True)
    metric.update(b, real=False)
    return metric.compute()


def _square_root(x: Tensor) -> Tensor:
    """Return the smaller R with R^T R = X^T X."""
    return torch.linalg.qr(x, mode="r").R if len(x) > x.shape[1] else x
