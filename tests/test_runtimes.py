"""Every runtime against eager, and where batches differ from singles."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from worldsim.engine import tuning
from worldsim.engine.batch_invariance.modules import ACTIVATIONS, SplitMLP, batch_invariant, set_split_k
from worldsim.engine.batch_invariance.sizes import ENOUGH, SIZES, exact_sizes, exact_split
from worldsim.engine.batching import in_pieces, pieces, spread
from worldsim.engine.engine import Engine
from worldsim.engine.records import SessionSpec
from worldsim.engine.runtimes import Runtime, build
from worldsim.engine.simulator import Simulator
from worldsim.engine.stages import Stages, eager, example
from worldsim.errors import ConfigError, RuntimeUnavailable
from worldsim.models.dit import DiTConfig
from worldsim.world import World


# compiling takes a minute of a core, more than any other quick test
@pytest.fixture(scope="module", params=[pytest.param("compiled", marks=pytest.mark.slow), "onnx", "cudagraph"])
def runtime(request: pytest.FixtureRequest, world_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Runtime:
    torch.set_num_threads(1)
    world = World.from_pretrained(world_path, dtype=torch.float32)
    try:
        return build(world, request.param, tmp_path_factory.mktemp("runtime"))
    except RuntimeUnavailable as error:
        pytest.skip(str(error))


@torch.no_grad()
def test_stages_give_what_eager_gives(runtime: Runtime) -> None:
    reference = eager(runtime.dynamics, runtime.autoencoder)
    for rows in (1, 3):
        for name, inputs in example(runtime.dynamics, rows).items():
            outs = getattr(runtime.stages, name)(*inputs)
            expected = getattr(reference, name)(*inputs)
            for out, right in zip(*((x if isinstance(x, tuple) else (x,)) for x in (outs, expected)), strict=True):
                atol = 0.05 if name == "decode" else 1e-4  # grey levels of 255
                torch.testing.assert_close(out, right, rtol=1e-3, atol=atol)


def test_sessions_give_what_eager_gives_and_are_exact(runtime: Runtime, world_path: Path) -> None:
    """A rollout stays close to eager's, and equals itself alone and among others."""
    world = World.from_pretrained(world_path, dtype=torch.float32)
    frames = {}
    for name, stages in (("own", runtime.stages), ("eager", eager(runtime.dynamics, runtime.autoencoder))):
        simulator = Simulator(runtime.dynamics, stages=in_pieces(stages, lambda: runtime.sizes))
        for seeds in ([1], [1, 2, 3, 4, 5]):
            state = simulator.begin(seeds, [world.book.encode("a cart")] * len(seeds))
            simulator.step(state, None)
            outs = [simulator.step(state, torch.eye(2)[[turn % 2] * len(seeds)]) for turn in range(4)]
            frames[name, len(seeds)] = outs[-1].latents[0]
    torch.testing.assert_close(frames["own", 1], frames["eager", 1], rtol=1e-2, atol=1e-2)
    assert torch.equal(frames["own", 1], frames["own", 5])


def test_what_is_not_exact_is_found(world: World) -> None:
    """A stage whose bits depend on the batch, by less than shows in frames, gets single rows; others do not."""
    stages = eager(batch_invariant(world.dynamics), world.autoencoder)

    def drifting(latents: torch.Tensor) -> Any:
        return stages.decode(latents) + 1e-4 * (len(latents) > 3) * torch.rand(1)

    sizes = exact_sizes(Stages(stages.encode, stages.denoise, drifting), world.dynamics)
    honest = exact_sizes(stages, world.dynamics)
    assert set(sizes["decode"]) <= {1, 2, 3} and sizes["denoise"] == honest["denoise"]
    assert all(1 in found and set(found) <= set(SIZES) for found in honest.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_small_products_do_not_depend_on_the_batch(dtype: torch.dtype) -> None:
    """With the sizes of the shipped worlds: there the last bit differed once in 300,000 numbers."""
    dynamics = DiTConfig().build().to(dtype)
    torch.nn.init.normal_(dynamics.heads.reward[-1].weight)  # type: ignore[arg-type]
    dynamics = batch_invariant(dynamics)
    actions, known = torch.randn(4800, 1, 4, 3), torch.ones(4800, 1, 4)
    features = torch.randn(4800, 1, 2, 192).to(dtype)
    calls = (
        (dynamics.actions, (actions, known)),
        (lambda x: dynamics.heads(x)[0], (features,)),
    )
    for call, rows in calls:
        alone = torch.cat([call(*row) for row in zip(*(part.split(1) for part in rows), strict=True)])
        for size in (2, 3, 8, 32):
            parts = zip(*(part.split(size) for part in rows), strict=True)
            assert torch.equal(torch.cat([call(*part) for part in parts]), alone)


@pytest.mark.parametrize("kind", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(16, 5, 5), (3, 7, 7), (1, 5, 5), (48,), (32,), (1,)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_activations_do_not_depend_on_the_batch(kind: Any, shape: tuple[int, ...], memory: torch.memory_format) -> None:
    """The last numbers of a tensor are computed by other code: one of 10^9 pixels of a float32 decoder was another."""
    rows = torch.randn(960, *shape, generator=torch.Generator().manual_seed(0))
    if len(shape) == 3:
        rows = rows.to(memory_format=memory)
    call = batch_invariant(torch.nn.Sequential(kind()))
    assert call(rows[:0]).shape == rows[:0].shape
    alone = torch.cat([call(row) for row in rows.split(1)])
    torch.testing.assert_close(alone, kind()(rows))
    for size in (2, 3, 5, 32):
        found = torch.cat([call(part) for part in rows.split(size)])
        assert torch.equal(found, alone) and call(rows[:size]).stride() == kind()(rows[:size]).stride()


@torch.no_grad()
def test_a_batch_invariant_copy_computes_the_same(world: World) -> None:
    """In another order, with weights of its own; the world's model stays what it was."""
    kinds = {type(module) for module in world.dynamics.modules()}
    copy = batch_invariant(world.dynamics)
    assert {type(module) for module in world.dynamics.modules()} == kinds and SplitMLP not in kinds
    assert any(isinstance(module, SplitMLP) for module in copy.modules())
    for parts in (1, 2, 4):
        set_split_k(copy, parts)
        inputs = example(world.dynamics, 3)["denoise"]
        pairs = zip(eager(copy).denoise(*inputs), eager(world.dynamics).denoise(*inputs), strict=True)
        for mine, theirs in pairs:
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    copy.final.weight.add_(1)
    assert not torch.equal(copy.final.weight, world.dynamics.final.weight)


def test_long_sums_are_split_until_batches_are_exact(world: World) -> None:
    dynamics = batch_invariant(world.dynamics)
    whole, tried = eager(dynamics).denoise, []

    def denoise(*args: torch.Tensor) -> Any:
        """Exact only once sums are in four parts."""
        parts = next(module.split_k for module in dynamics.modules() if isinstance(module, SplitMLP))
        tried.append(parts)
        outs = whole(*args)
        return outs if parts == 4 or len(args[0]) < ENOUGH else tuple(out + 1 for out in outs)

    assert exact_split(Stages(whole, denoise, whole), dynamics) == 4, tried
    assert sorted(set(tried)) == [1, 2, 4]


def test_rows_are_cut_into_sizes() -> None:
    assert pieces(13, (1, 2, 8)) == [8, 2, 2, 1]
    assert spread(9, (1, 2, 4, 8), workers=2, largest=8) == [4, 4, 1]
    assert spread(32, SIZES, workers=1, largest=32) == [32]
    assert spread(3, SIZES, workers=8, largest=8) == [1, 1, 1]
    for rows in range(1, 70):
        assert sum(spread(rows, SIZES, 2, 8)) == rows


def test_tuning_is_remembered(world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(tuning.CACHE, str(tmp_path))
    monkeypatch.setattr(tuning, "SECONDS", 0.01)
    monkeypatch.setattr(tuning, "BATCHES", (1, 2))
    monkeypatch.setattr(tuning, "RUNTIMES", ("eager", "cudagraph"))
    assert tuning.choose(world).name == "eager"  # where nothing was tuned
    lines: list[str] = []
    found = tuning.tune(world, lines.append)
    assert (
        found["fastest"] == "eager" and found["runtimes"]["eager"]["ms"]["1"] > 0 and any("exact" in x for x in lines)
    )
    assert torch.cuda.is_available() or "NVIDIA" in found["unavailable"]["cudagraph"]
    path = next(tmp_path.glob("runtimes/*/runtimes.json"))
    assert json.loads(path.read_text()) == json.loads(json.dumps(found))
    assert tuning.choose(world).largest == found["runtimes"]["eager"]["largest"]
    for damaged in ("", "[]", "{}", '{"runtimes": 3}'):
        path.write_text(damaged)
        assert tuning.choose(world).name == "eager"
    with pytest.raises(ConfigError, match="Did you mean 'eager'"):
        tuning.choose(world, "eagre")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_cannot_be_written_is_no_error(
    world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv(tuning.CACHE, str(tmp_path / "cache"))
    assert tuning.choose(world).sizes


def test_inexact_mode_is_close(world: World) -> None:
    frames = []
    for exact in (True, False):
        engine = Engine(world, threads=1, exact=exact)
        numbers = engine.open_all([SessionSpec(seed=i) for i in range(5)])
        frames.append(engine.step({n: 1 for n in numbers})[numbers[0]].frame)
        assert engine.stats()["exact"] is exact
    assert np.abs(frames[0].astype(int) - frames[1].astype(int)).max() <= 2
