"""Runtimes: ways to compute the stages of a step, behind one function.

- eager: torch, operator by operator. Needs nothing, begins at once.
- compiled: torch's ahead-of-time compiler (AOTInductor). Needs a C++ compiler and a minute, once; what it made is kept.
- onnx: ONNX Runtime in float32. Needs the packages onnx, onnxscript and onnxruntime.
- cudagraph: eager operators recorded once and replayed, on an NVIDIA GPU.

All give what eager gives but for rounding. Bits are promised within one runtime, not between them.
"""

from __future__ import annotations

import copy
import shutil
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldsim.diffusion.sampler import SamplerConfig
from worldsim.engine.aoti import Library, unpack
from worldsim.engine.batch_invariance import ENOUGH, Sizes, exact_parts, exact_sizes, set_parts
from worldsim.engine.stages import Decode, Denoise, Judge, Prepare, Stages, eager, example
from worldsim.errors import ConfigError, RuntimeUnavailable, did_you_mean
from worldsim.models.autoencoder import FrameAutoencoder
from worldsim.models.dit import DiT
from worldsim.models.layers import FIXED_ROWS
from worldsim.world import World

RUNTIMES = ("eager", "compiled", "onnx", "cudagraph")
MOST_ROWS, MOST_PASSES = FIXED_ROWS, 64  # that a compiled stage takes at once
WORDS_AT = 8  # where the words begin among the arguments of `Denoise`


@dataclass
class Runtime:
    """One way to compute a world's steps.

    Attributes:
        name: of `RUNTIMES`.
        dynamics: the model, in the dtype and on the device of this runtime.
        autoencoder: the same.
        stages: what computes.
        parts: in how many parts the model adds up its long sums, see `models.layers.MLP`.
        find_sizes: finds the exact batch sizes when they are first asked for, which takes seconds.
        largest: the batch size beyond which a frame does not get cheaper.
    """

    name: str
    dynamics: DiT
    autoencoder: FrameAutoencoder
    stages: Stages
    parts: int
    find_sizes: Callable[[Runtime], Sizes]
    largest: int = ENOUGH

    @cached_property
    def sizes(self) -> Sizes:
        """Batch sizes at which a row has the bits that it has alone, for each stage by name."""
        return self.find_sizes(self)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and of what sessions remember."""
        return self.dynamics.embed.weight.dtype

    @property
    def identity(self) -> str:
        """What the bits of its frames depend on."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name}/{dtype}/{self.parts}/torch-{torch.__version__}"


def build(
    world: World,
    name: str,
    folder: Path,
    parts: int | None = None,
    find_sizes: Callable[[Runtime], Sizes] | None = None,
) -> Runtime:
    """A runtime.

    Args:
        world: is not changed.
        name: of `RUNTIMES`.
        folder: where what takes long to make is kept; what is there already is used.
        parts: of long sums; None finds out.
        find_sizes: how its exact batch sizes are found (default: tried).

    Raises:
        ConfigError: there is no such runtime.
        RuntimeUnavailable: this machine cannot build it.
    """
    builders: dict[str, Callable[[DiT, FrameAutoencoder, Path], Stages]] = {
        "eager": lambda dynamics, autoencoder, folder: eager(dynamics, autoencoder),
        "compiled": _compiled,
        "onnx": _onnx,
        "cudagraph": _cudagraph,
    }
    if name not in builders:
        raise ConfigError(f"there is no runtime {name!r}.{did_you_mean(name, builders)}")
    if name == "cudagraph" and not torch.cuda.is_available():
        raise RuntimeUnavailable("the runtime 'cudagraph' needs an NVIDIA GPU, and torch sees none here.")
    dynamics, autoencoder = copy.deepcopy(world.dynamics).requires_grad_(False), copy.deepcopy(world.autoencoder)
    if name == "onnx":
        dynamics, autoencoder = dynamics.float(), autoencoder.float()
    if name == "cudagraph":
        dynamics, autoencoder = dynamics.cuda(), autoencoder.cuda()
    if parts is None:  # tried on eager kernels, which are those of the others: trying is quick, and building is not
        parts = 1 if name == "onnx" else exact_parts(eager(dynamics, autoencoder), dynamics)
    set_parts(dynamics, parts)
    stages = builders[name](dynamics, autoencoder, folder / f"{name}-{parts}")
    return Runtime(name, dynamics, autoencoder, stages, parts, find_sizes or (lambda own: try_sizes(world, own)))


def try_sizes(world: World, runtime: Runtime) -> Sizes:
    """The exact batch sizes of a runtime, found by trying."""
    sampler = SamplerConfig.of(world.card.sampler)
    steps = {sampler.num_denoising_steps, sampler.first_frame_steps}
    passes = {1, *(count + (sampler.cache_sigma is not None) for count in steps)}
    return exact_sizes(runtime.stages, runtime.dynamics, tuple(sorted(passes)))


def _modules(dynamics: DiT, autoencoder: FrameAutoencoder) -> dict[str, nn.Module]:
    return {
        "prepare": Prepare(dynamics),
        "denoise": Denoise(dynamics),
        "judge": Judge(dynamics),
        "decode": Decode(autoencoder),
    }


def _compiled(dynamics: DiT, autoencoder: FrameAutoencoder, folder: Path) -> Stages:
    modules = _modules(dynamics, autoencoder)
    libraries = {stage: folder / f"{stage}.so" for stage in modules}
    if not all(path.is_file() for path in libraries.values()):
        if not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise RuntimeUnavailable("the runtime 'compiled' needs a C++ compiler (g++ or clang++); install one.")
        folder.mkdir(parents=True, exist_ok=True)
        for stage, module in modules.items():
            try:
                with torch.no_grad(), _quiet():  # with gradients on, the weights would not be laid out beforehand
                    package = torch._inductor.aoti_compile_and_package(
                        _export(stage, module, dynamics),
                        package_path=str(folder / f"{stage}.part.pt2"),
                        inductor_configs={"freezing": True, "cpp.threads": 1},
                    )
            except Exception as error:  # exporters and compilers raise many kinds
                raise RuntimeUnavailable(f"the {stage} stage does not compile here: {error!s:.300}") from error
            unpack(Path(package), libraries[stage])
            Path(package).unlink()
    return Stages(**{stage: Library(path) for stage, path in libraries.items()})


def _export(stage: str, module: nn.Module, dynamics: DiT) -> Any:
    """The stage as a graph for any number of rows."""
    rows, passes = torch.export.Dim("rows", min=1, max=MOST_ROWS), torch.export.Dim("passes", min=1, max=MOST_PASSES)
    own, shared = example(dynamics, 4, 3)[stage]
    dynamic: list[Any] = [{0: rows} for _ in own] + [None for _ in shared]
    if shared:
        dynamic[-1] = {0: passes}
    with torch.no_grad(), _quiet():
        if stage == "denoise":  # the words are one argument of any length
            return torch.export.export(module, own, dynamic_shapes=(*dynamic[:WORDS_AT], tuple(dynamic[WORDS_AT:])))
        return torch.export.export(module, (*own, *shared), dynamic_shapes=tuple(dynamic))


def _onnx(dynamics: DiT, autoencoder: FrameAutoencoder, folder: Path) -> Stages:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  -- torch's exporter needs it
    except ImportError as error:
        raise RuntimeUnavailable(
            f"the runtime 'onnx' needs the package {error.name!r}; run: pip install onnx onnxscript onnxruntime"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    stages = {}
    for stage, module in _modules(dynamics, autoencoder).items():
        path = folder / f"{stage}.onnx"
        if not path.is_file():
            program = _export(stage, module, dynamics)
            part = folder / f"{stage}.part.onnx"
            with _quiet():
                exported = torch.onnx.export(program, dynamo=True, optimize=True, verbose=False)
                assert exported is not None
                exported.save(str(part), external_data=False)
            part.replace(path)
        stages[stage] = _OnnxStage(onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"]))
    return Stages(**stages)


class _OnnxStage:
    def __init__(self, session: Any) -> None:
        self.session = session
        self.names = [value.name for value in session.get_inputs()]

    def __call__(self, *args: Tensor) -> Any:
        given = {name: arg.contiguous().numpy() for name, arg in zip(self.names, args, strict=True)}
        outs = [torch.from_numpy(out) for out in self.session.run(None, given)]
        return outs[0] if len(outs) == 1 else tuple(outs)


def _cudagraph(dynamics: DiT, autoencoder: FrameAutoencoder, folder: Path) -> Stages:
    return Stages(**{name: _Graph(module) for name, module in _modules(dynamics, autoencoder).items()})


class _Graph:
    """A stage as CUDA graphs, one for each set of shapes; recorded when first met."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.recorded: dict[tuple[torch.Size, ...], tuple[Any, list[Tensor], Any]] = {}

    def __call__(self, *args: Tensor) -> Any:
        key = tuple(arg.shape for arg in args)
        if key not in self.recorded:
            self.recorded[key] = self._record([arg.clone() for arg in args])
        graph, inputs, outs = self.recorded[key]
        for own, arg in zip(inputs, args, strict=True):
            own.copy_(arg)
        graph.replay()
        # The graph writes its outputs to the same place again, at the next call.
        return outs.clone() if isinstance(outs, Tensor) else tuple(out.clone() for out in outs)

    def _record(self, inputs: list[Tensor]) -> tuple[Any, list[Tensor], Any]:
        with torch.no_grad():
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):  # warm up outside of the recording, as libraries set themselves up
                for _ in range(3):
                    self.module(*inputs)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                outs = self.module(*inputs)
        return graph, inputs, outs


@contextmanager
def _quiet() -> Any:
    """Without the compilers' warnings and logs, which say nothing to a user."""
    import logging

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
