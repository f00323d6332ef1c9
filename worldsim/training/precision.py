"""In which precision a device trains fastest: measured, as no processor flag says it.

A product of a training step takes a ninth of the time in bfloat16 on one CPU and nine times as long on the next; the
fast float32 kernels of oneDNN, which torch calls precision "medium", are twice as fast as the default on one and half
as fast on another. So each is timed once, in some tens of milliseconds, and the choice is printed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional as F

SHAPE = (2048, 192, 768)  # rows, in, out of the product that is timed: a layer of the default model
WORTH = 1.15  # bfloat16 costs accuracy: it must be so many times faster
EXACT = 1e-5  # relative error of a float32 product that is still one


@dataclass(frozen=True)
class Precision:
    """How to compute.

    Attributes:
        bf16: whether products run in bfloat16 (autocast).
        matmul: torch's precision of float32 products, "highest" or "medium".
        why: what was measured, for people.
    """

    bf16: bool
    matmul: str
    why: str

    @property
    def dtype(self) -> torch.dtype:
        """Of products."""
        return torch.bfloat16 if self.bf16 else torch.float32

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Set torch's precision of float32 products, and set it back."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.matmul)
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)


def choose(device: torch.device, bf16: bool | None = None, matmul: str | None = None) -> Precision:
    """The fastest precision of a device; `bf16` and `matmul` decide their part whatever was measured."""
    speeds = dict(_speeds(device))
    matmul = matmul or max((name for name in speeds if name != "bf16"), key=speeds.__getitem__)
    fast = bf16 if bf16 is not None else speeds["bf16"] > WORTH * speeds[matmul]
    found = ", ".join(f"{name} {speed:.0f}" for name, speed in speeds.items())
    return Precision(fast, matmul, f"{'bfloat16' if fast else f'float32 ({matmul})'}; GFLOP/s: {found}")


@cache
def _speeds(device: torch.device) -> tuple[tuple[str, float], ...]:
    """GFLOP/s of one product on a device by name: "bf16", and those float32 precisions that are exact there."""
    rows, inner, outer = SHAPE
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(count, inner, generator=generator).to(device) for count in (rows, outer))
    truth = F.linear(x.double(), weight.double())
    found = []
    for name in ("highest", "medium"):
        with Precision(False, name, "").active():
            error = (F.linear(x, weight).double() - truth).norm() / truth.norm()
            if name == "highest" or float(error) < EXACT:
                found.append((name, _time(x, weight)))
    return (*found, ("bf16", _time(x.bfloat16(), weight.bfloat16())))


def _time(x: torch.Tensor, weight: torch.Tensor, tries: int = 5) -> float:
    best = float("inf")
    for _ in range(tries + 1):
        start = time.perf_counter()
        float(F.linear(x, weight)[0, 0])  # a device may still compute when a call is over: its number is there then
        best = min(best, time.perf_counter() - start)
    return 2 * x.shape[0] * x.shape[1] * weight.shape[0] / best / 1e9
