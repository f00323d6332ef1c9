"""Clusters of the frames of a recording, so that training can sample rare situations as often as common ones.

Most of a recording shows the same few situations. Sampling segments evenly over clusters of frames and actions, instead
of evenly over frames, improves long rollouts at equal compute (MMBench2, arXiv:2606.27326: re-sampling, not
re-weighting the loss).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

CLUSTERS = 64
SIDE = 2  # latents are averaged to so many places a side
FITTED = 8192  # frames on which the clusters are found
ROUNDS = 12
CHUNK = 16384


def cluster(latents: Tensor, actions: Tensor, count: int = CLUSTERS, seed: int = 0) -> Tensor:
    """Group frames by what they show and by the action that led to them, with k-means.

    Args:
        latents: (N, C, h, w).
        actions: flattened, (N, action_size).
        count: of groups.
        seed: of the frames that the groups are found on, and of where they begin.

    Returns:
        The group of each frame, (N,) of 0 to `count` - 1.
    """
    features = torch.cat([_features(x, a) for x, a in zip(latents.split(CHUNK), actions.split(CHUNK), strict=True)])
    generator = torch.Generator().manual_seed(seed)
    some = features[torch.randperm(len(features), generator=generator)[:FITTED]]
    centers = some[torch.randperm(len(some), generator=generator)[:count]].clone()
    for _ in range(ROUNDS):
        nearest = torch.cdist(some, centers).argmin(dim=1)
        sums = torch.zeros_like(centers).index_add_(0, nearest, some)
        sizes = torch.bincount(nearest, minlength=len(centers)).unsqueeze(1)
        centers = torch.where(sizes > 0, sums / sizes.clamp(min=1), centers)  # one that nobody is near stays
    return torch.cat([torch.cdist(part, centers).argmin(dim=1) for part in features.split(CHUNK)])


def odds(groups: Tensor, evenness: float) -> Tensor:
    """Compute how often to sample each frame, relative to a uniform sample, mean 1, (N,).

    Args:
        groups: of each frame, (N,).
        evenness: 0 samples frames alike, 1 groups alike.
    """
    sizes = torch.bincount(groups).float()
    found = sizes[groups] ** -evenness
    return found / found.mean()


def _features(latents: Tensor, actions: Tensor) -> Tensor:
    """Compute the features that frames are compared by, (n, C SIDE SIDE + action_size); both parts count alike."""
    seen = F.adaptive_avg_pool2d(latents.float(), SIDE).flatten(1)
    return torch.cat([seen / seen.shape[1] ** 0.5, actions.float() / max(1, actions.shape[1]) ** 0.5], dim=1)
