"""The straight path between data and noise: corrupting, noise levels, and the Euler sampler, as functions.

The path is a straight line from data to noise, `(1 - sigma) x + sigma e` (Lipman et al. 2022, arXiv:2210.02747;
Liu et al. 2022, arXiv:2209.03003). The network predicts x; the velocity follows from it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator

import torch
from torch import Tensor

from worldsim.threads import at_once

Predict = Callable[[Tensor, float], Tensor]
"""Gives what a model predicts, from latents and their noise level."""
Sampling = Generator[tuple[Tensor, float], Tensor, Tensor]
"""A sampler at work: it yields latents and their noise level, is sent what a model predicts, and returns the sample."""


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Latents at noise level `sigma`, whose shape is a prefix of that of `clean`."""
    sigma = sigma.reshape(*sigma.shape, *[1] * (clean.ndim - sigma.ndim)).to(clean.dtype)
    return torch.lerp(clean, noise, sigma)


def get_schedule(steps: int, shift: float = 1.0) -> list[float]:
    """The sampler's noise levels, `steps` steps from 1 to 0.

    Args:
        steps: how many.
        shift: 1 makes the steps equal; less moves them to low noise, where fine detail is decided, more to high noise
            (the timestep shift of Esser et al. 2024, arXiv:2403.03206).
    """
    even = [1 - step / steps for step in range(steps + 1)]
    return [shift * level / (shift * level + (1 - level)) for level in even]


def euler(noise: Tensor, levels: list[float]) -> Sampling:
    """Integrate from noise to data by Euler steps; it is sent the clean latents.

    Args:
        noise: where to begin, at level `levels[0]`.
        levels: falling noise levels, the last one 0.
    """
    x = noise
    for now, after in zip(levels[:-1], levels[1:], strict=True):
        clean = yield x, now
        x = clean if after == 0 else torch.lerp(clean, x, after / now)
    return x


def with_pauses(sampling: Sampling, predict: Predict) -> Generator[None, None, Tensor]:
    """Sample with a model, and pause after each of its predictions."""
    asked = next(sampling)
    while True:
        found = predict(*asked)
        yield
        try:
            asked = sampling.send(found)
        except StopIteration as done:
            return done.value


def sample(sampling: Sampling, predict: Predict) -> Tensor:
    """Sample with a model."""
    return at_once(with_pauses(sampling, predict))


def sample_sigmas(shape: tuple[int, ...], generator: torch.Generator, share_at_one: float = 0.25) -> Tensor:
    """Random noise levels: `share_at_one` of them exactly 1 (where sampling begins), the others uniform in 0..1."""
    levels = torch.rand(shape, generator=generator)
    return torch.where(torch.rand(shape, generator=generator) < share_at_one, torch.ones(()), levels)
