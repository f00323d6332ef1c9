"""The metric of latents that counts pixels."""

from __future__ import annotations

from pathlib import Path

import torch

from worldsim.data.episodes import Dataset
from worldsim.data.latents import LatentData
from worldsim.training.autoencoder import load_run
from worldsim.training.latent_metric import latent_metric


def test_lengths_count_pixels(dataset: Dataset, autoencoder_run: Path) -> None:
    """Small changes of latents move pixels as the metric says: along its axes, in proportion."""
    autoencoder = load_run(autoencoder_run)
    latents = LatentData.cached(dataset, "train", autoencoder).latents[:16].float()
    weights = latent_metric(autoencoder, latents, rounds=16)
    channels = latents.shape[1]
    assert abs(float(weights.square().sum()) - channels) < 1e-3 * channels
    mean, std = autoencoder.mean.view(-1, 1, 1), autoencoder.std.view(-1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (len(latents), 1, *latents.shape[2:]), generator=generator) * 2.0 - 1
    lengths = weights.norm(dim=1)
    moved = []
    for row in (0, -1):
        change = 1e-3 * signs * (weights[row] / lengths[row]).view(-1, 1, 1)
        with torch.no_grad():
            apart = [autoencoder.decode_raw((latents + side * change) * std + mean) for side in (1, -1)]
        moved.append((apart[0] - apart[1]).square().mean())
    least, most = moved
    said = (lengths[-1] / lengths[0]).square()
    assert 0.7 * said < most / least < 1.4 * said, (most / least, said)
