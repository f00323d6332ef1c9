"""Muon: orthogonal updates, the same one by one as stacked, and torch's own within its rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from worldsim.training.optimizers import Muon, build_optimizers, orthogonalize
from worldsim.training.precision import Precision, choose


@pytest.mark.parametrize("shape", [(8, 8), (8, 24), (24, 8)])
def test_updates_are_nearly_orthogonal(shape: tuple[int, int]) -> None:
    values = torch.linalg.svdvals(orthogonalize(torch.randn(3, *shape)))
    assert 0.6 < float(values.min()) and float(values.max()) < 1.3


def test_a_stack_is_its_matrices() -> None:
    stack = torch.randn(4, 6, 10)
    for one, all_ in zip(stack, orthogonalize(stack), strict=True):
        torch.testing.assert_close(orthogonalize(one[None])[0], all_, rtol=1e-4, atol=1e-5)


def test_is_torchs_muon_but_for_rounding() -> None:
    ours, theirs = ([nn.Parameter(torch.randn(s, generator=torch.Generator().manual_seed(k)))
                     for k, s in enumerate(((8, 24), (24, 8), (8, 24)))] for _ in range(2))  # fmt: skip
    settings: dict[str, Any] = {"lr": 0.05, "momentum": 0.95, "weight_decay": 0.1}
    optimizers = Muon(ours, **settings), torch.optim.Muon(theirs, **settings)
    for step in range(4):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            for k, parameter in enumerate(parameters):
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(10 * step + k))
                parameter.grad = noise
            optimizer.step()
    for a, b in zip(ours, theirs, strict=True):
        assert float(((a - b).norm() / b.norm()).detach()) < 0.02  # theirs is computed in bfloat16


def test_every_parameter_has_one_optimizer() -> None:
    module = nn.ModuleDict({"blocks": nn.Linear(4, 4), "out": nn.Linear(4, 4)})
    built = build_optimizers(module, learning_rate=1e-3, muon_learning_rate=0.02, weight_decay=0.0)
    assert [type(optimizer).__name__ for optimizer in built] == ["AdamW", "Muon"]
    held = [id(p) for optimizer in built for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in module.parameters())


def test_precision_is_what_was_asked_for_and_is_set_back() -> None:
    device = torch.get_default_device()
    assert choose(device, True).bf16 and choose(device, True).dtype == torch.bfloat16
    assert not choose(device, False).bf16 and choose(device, False).dtype == torch.float32
    assert "GFLOP/s" in choose(device).why
    before = torch.get_float32_matmul_precision()
    with Precision(False, "medium", "").active():
        assert torch.get_float32_matmul_precision() == "medium"
    assert torch.get_float32_matmul_precision() == before
