"""The energy score: training a model whose one pass from noise is a draw, as functions over tensors.

A squared error teaches the mean of all possible next frames, a blur; diffusion gets from means to draws by many small
steps. A strictly proper scoring rule of two draws teaches draws at once: the network takes noise in and its output is
scored by how near both draws are to what happened, less how near they are to each other. Ensembles of weather
models are trained in this way (Lang et al. 2024, arXiv:2412.15832; Alet et al. 2025, arXiv:2506.10772), and
diffusion models for few steps (De Bortoli et al. 2025, arXiv:2502.02483).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def energy_score(first: Tensor, second: Tensor, target: Tensor, eps: float = 1e-4) -> Tensor:
    """The energy score of two draws against what happened, over vectors (..., E): (...,), smaller is better.

    A strictly proper scoring rule (Gneiting & Raftery 2007, doi:10.1198/016214506000001437): the mean is least when
    both are draws from the true distribution of the target, neither its mean (the last term) nor anything else (the
    first two). Estimated from two draws, as ensembles of weather models are trained.
    """

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return ((a - b).float().square().sum(dim=-1) + eps).sqrt()

    return (distance(first, target) + distance(second, target) - distance(first, second)) / 2


def through_one_draw(score: Tensor) -> Tensor:
    """A score with twice its gradient, for scores of which only one draw has any.

    Both draws are made alike and the score is symmetric in them, so that each has half of the gradient on the average.
    """
    return 2 * score - score.detach()


def scaled_energy_score(
    first: Tensor, second: Tensor, target: Tensor, scales: tuple[int, ...], weight: Tensor | None = None
) -> Tensor:
    """The energy score of latents (..., C, h, w), averaged over blocks of several sizes: (...,).

    Small blocks say most of each place, larger ones whether places agree with one another. `weight` (..., h, w) says
    how much each place counts, about 1.
    """
    scores = []
    for side in scales:
        draws = _blocks(first, side), _blocks(second, side)  # (..., blocks, C side side)
        score = energy_score(*draws, _blocks(target, side))
        if weight is not None:
            score = score * _blocks(weight.unsqueeze(-3), side).mean(dim=-1)
        scores.append(score.mean(dim=-1) / side)
    return torch.stack(scores).mean(dim=0)


def _blocks(x: Tensor, side: int) -> Tensor:
    """Latents (..., C, h, w) as blocks (..., n, C side side); what is missing at the edges is zero."""
    x = nn.functional.pad(x, (0, -x.shape[-1] % side, 0, -x.shape[-2] % side))
    parts = x.unflatten(-1, (-1, side)).unflatten(-3, (-1, side))  # (..., C, h', side, w', side)
    return parts.movedim((-4, -2), (-5, -4)).flatten(-3).flatten(-3, -2)


def share_places(noise: Tensor, shared: Tensor) -> Tensor:
    """Noise (..., C, h, w) whose first k channels are `shared` (..., k, 1, 1), the same at every place.

    Noise of its own decides what happens at one place and not at the next; noise that all places have decides what must
    fit together, such as how far the camera turned.
    """
    count = shared.shape[-3]
    return torch.cat([shared.expand(*shared.shape[:-2], *noise.shape[-2:]), noise[..., count:, :, :]], dim=-3)


def shared_channels(channels: int, share: float) -> int:
    """How many of the noise's channels all places share."""
    return round(channels * share)
