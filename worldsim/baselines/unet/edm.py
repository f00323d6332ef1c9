"""The diffusion of Karras et al. 2022 (EDM, arXiv:2206.00364), as functions over tensors.

Data plus noise of deviation `sigma`, from almost 0 to far above that of the data. The network F is preconditioned,
D = c_skip x + c_out F(c_in x, c_noise), so that what it sees and what it has to say is of unit size at every level.
`schedules.euler` is the Euler sampler of this too: from x at `sigma` towards D, as far as the level falls.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DATA = 0.5  # deviation of pixels in -1..1
LEVELS = (2e-3, 20.0)  # of training


@dataclass(frozen=True)
class Scales:
    """What goes around the network at some noise levels, each of their shape."""

    skip: Tensor
    out: Tensor
    into: Tensor
    noise: Tensor


def scales(sigma: Tensor, offset: float = 0.0, data: float = DATA) -> Scales:
    """The preconditioning at noise levels `sigma`.

    Args:
        sigma: deviation of the noise, above 0.
        offset: deviation of one more noise that is the same all over a channel (see `add_noise`).
        data: deviation of the data.
    """
    total = (sigma.square() + offset**2).sqrt()
    seen = (total.square() + data**2).sqrt()
    return Scales((data / seen).square(), total * data / seen, 1 / seen, total.log() / 4)


def add_noise(clean: Tensor, sigma: Tensor, offset: float, generator: torch.Generator) -> Tensor:
    """Pixels (B, C, H, W) with noise of deviation `sigma` (B,), and of deviation `offset` on each channel as a whole.

    The second one makes the network correct colours, which noise of single pixels never hides.
    """
    noise = torch.randn(clean.shape, generator=generator).to(clean.device) * sigma.view(-1, 1, 1, 1)
    return clean + noise + offset * torch.randn((*clean.shape[:2], 1, 1), generator=generator).to(clean.device)


def sample_sigmas(count: int, generator: torch.Generator, mean: float = -0.4, deviation: float = 1.2) -> Tensor:
    """Random noise levels (count,): their logarithms are normal; cut to `LEVELS`."""
    return (mean + deviation * torch.randn(count, generator=generator)).exp().clamp(*LEVELS)


def get_schedule(steps: int, highest: float = 5.0, lowest: float = LEVELS[0], rho: float = 7.0) -> list[float]:
    """The sampler's noise levels, `steps` of them from `highest` to `lowest` and then 0; dense at the low end."""
    top, bottom = highest ** (1 / rho), lowest ** (1 / rho)
    ramp = [step / max(1, steps - 1) for step in range(steps)]
    levels = [(top + share * (bottom - top)) ** rho for share in ramp]
    return [*levels, 0.0]
