"""What latents change in the picture.

An autoencoder's normalised channels all vary by one, but a few of them carry most of the picture and the rest its
grain, which no model can foresee. A loss that counts all alike spends itself on grain. The metric here weighs
directions of a latent by how much they move pixels, to first order: the decoder's Jacobian J gives J^T J (compare the
pullback metrics of Arvanitidis et al. 2018, arXiv:1710.11379).
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldsim.models.autoencoder import DiffusersAutoencoder


def latent_metric(autoencoder: DiffusersAutoencoder, latents: Tensor, rounds: int = 4, seed: int = 0) -> Tensor:
    """The matrix (C, C) whose product with a latent vector has squared lengths that count pixels, on the average.

    J^T J at some places of some frames, estimated from random pixels sent backward through the decoder (Hutchinson's
    estimate, of which every place of every frame gives one sample), averaged; then a square root of it, whose rows are
    its axes, from the one that moves pixels least to the one that moves them most, scaled so that a vector of
    independent unit values keeps its mean squared length.

    Args:
        autoencoder: whose decoder draws the picture; its latents are the normalised ones.
        latents: frames to look at, (B, C, h, w).
        rounds: random pictures sent back for each.
        seed: of these.
    """
    generator = torch.Generator().manual_seed(seed)
    channels = latents.shape[1]
    parameter = next(autoencoder.model.parameters())
    mean, std = (part.view(-1, 1, 1) for part in (autoencoder.mean, autoencoder.std))
    total = torch.zeros(channels, channels)
    for _ in range(rounds):
        place = latents.float().to(parameter.device).requires_grad_()
        pixels = autoencoder.decode_raw((place * std + mean).to(parameter.dtype))  # (B, 3, H, W)
        noise = torch.randn(pixels.shape, generator=generator).to(pixels)
        (gradient,) = torch.autograd.grad((pixels * noise).sum(), place)
        rows = gradient.movedim(1, -1).flatten(0, -2).float().cpu()  # (B h w, C)
        total += rows.T @ rows
    values, vectors = torch.linalg.eigh(total)
    root = (vectors * values.clamp(min=0).sqrt()).T
    return root * (channels / values.clamp(min=0).sum()).sqrt()
