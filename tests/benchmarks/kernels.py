"""Our written-out operators beside torch's own, as ratios of the same run; and where a batch differs from its rows.

python tests/benchmarks/kernels.py

Shapes are those of the shipped worlds: 64 patches, width 192, three heads; 48 frames in a training batch.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from worldsim.models.attention import attend
from worldsim.models.layers import RMSNorm, SquaredReLU

ROUNDS, CALLS = 15, 5


def ratio(name: str, ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
    """Print the median times of two calls, taken in turns, and theirs over ours."""
    times: dict[Callable[[], Any], list[float]] = {ours: [], theirs: []}
    for _ in range(ROUNDS):
        for call, spent in times.items():
            call()
            begin = time.perf_counter()
            for _ in range(CALLS):
                call()
            spent.append(1e6 * (time.perf_counter() - begin) / CALLS)
    mine, other = statistics.median(times[ours]), statistics.median(times[theirs])
    print(f"{name:44} ours {mine:8.0f} us   torch's {other:8.0f} us   ratio {other / mine:.2f}")


def trained(call: Callable[..., Tensor], *shapes: tuple[int, ...]) -> Callable[[], None]:
    """A forward and a backward pass of `call` on random bf16 tensors."""
    inputs = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
    grad = torch.ones_like(call(*inputs))
    return lambda: call(*inputs).backward(grad)


def rows_equal(call: Callable[[Tensor], Tensor], x: Tensor) -> bool:
    """Whether each row of a batch is bit for bit what it is alone."""
    return torch.equal(call(x), torch.cat([call(row) for row in x.split(1)]))


def training() -> None:
    """Forward and backward."""
    for keys, shape in ((64, (48, 3, 64, 64)), (8, (384, 3, 8, 64))):
        ours, theirs = trained(attend, *[shape] * 3), trained(F.scaled_dot_product_attention, *[shape] * 3)
        ratio(f"attention over {keys} keys, training", ours, theirs)
    hidden = (6, 8, 64, 768)
    norm, both = RMSNorm(2, 1, 64).bfloat16(), (6, 8, 64, 2, 3, 64)
    ratio("RMS norm of queries and keys, training", trained(norm, both), trained(lambda x: torch_norm(x, norm), both))
    ratio("squared ReLU, training", trained(SquaredReLU.apply, hidden), trained(lambda x: F.relu(x).square(), hidden))


@torch.no_grad()
def play() -> None:
    """One session's frame, and batches of sessions."""
    x = torch.randn(1, 1, 64, 2, 3, 64).bfloat16()
    norm = RMSNorm(2, 1, 64).bfloat16()
    ratio("RMS norm of queries and keys, play", lambda: norm(x), lambda: torch_norm(x, norm))
    weight = (0.05 * torch.randn(192, 768)).bfloat16()
    for sessions in (1, 32):
        batch = torch.randn(sessions, 64, 768).bfloat16()
        title = f"768 to 192 in halves, {sessions} session(s), play"
        ratio(title, lambda x=batch: sum_of_halves(x, weight), lambda x=batch: F.linear(x, weight))
    for dtype in (torch.bfloat16, torch.float32):
        for wide, narrow in ((192, 768), (768, 192)):
            weight = (0.05 * torch.randn(narrow, wide)).to(dtype)
            for sessions in (2, 3, 8, 32):
                batch = torch.randn(sessions, 64, wide).to(dtype)
                whole = rows_equal(lambda x, w=weight: F.linear(x, w), batch)
                halves = rows_equal(lambda x, w=weight: sum_of_halves(x, w), batch)
                print(f"{dtype} {wide} to {narrow}, {sessions:2} sessions: equal whole {whole}, in halves {halves}")


def torch_norm(x: Tensor, norm: RMSNorm) -> Tensor:
    """The same by torch's own operator, whose scales cannot differ between queries and keys."""
    return F.rms_norm(x, x.shape[-1:], None, 1e-6) * norm.weight


def sum_of_halves(x: Tensor, weight: Tensor) -> Tensor:
    """The product over each half of the channels, added."""
    half = x.shape[-1] // 2
    return F.linear(x[..., :half], weight[:, :half]) + F.linear(x[..., half:], weight[:, half:])


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    training()
    play()
