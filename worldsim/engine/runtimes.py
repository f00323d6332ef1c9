"""Runtimes: ways to compute the stages of a step, behind one function.

- eager: torch, operator by operator. Needs nothing, begins at once.
- compiled: torch's ahead-of-time compiler (AOTInductor). Needs a C++ compiler and a minute, once; the result is stored.
- onnx: ONNX Runtime in float32. Needs the packages onnx, onnxscript and onnxruntime.
- cudagraph: eager operators recorded once and replayed, on an NVIDIA GPU.

All give what eager gives but for rounding. Bits are promised within one runtime, not between them.
"""

from __future__ import annotations

import shutil
import threading
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from worldsim.engine.aoti import Library, unpack
from worldsim.engine.batch_invariance.modules import PADDED_ROWS, batch_invariant, set_split_k
from worldsim.engine.batch_invariance.sizes import ENOUGH, Sizes, exact_sizes, exact_split
from worldsim.engine.stages import Decode, Denoise, Encode, Stages, eager, example
from worldsim.errors import ConfigError, RuntimeUnavailable, did_you_mean
from worldsim.models.autoencoder import DiffusersAutoencoder
from worldsim.models.dit import DiT
from worldsim.world import World

RUNTIMES = ("eager", "compiled", "onnx", "cudagraph")
MOST_ROWS = PADDED_ROWS  # that a compiled stage takes at once
TEXT_AT = 9  # where the text begins among the arguments of `Denoise`


@dataclass
class Runtime:
    """One way to compute a world's steps.

    Attributes:
        name: of `RUNTIMES`.
        dynamics: the model, in the dtype and on the device of this runtime.
        autoencoder: the same.
        stages: what computes.
        split_k: in how many parts the model adds up its long sums, see `batch_invariance.modules.SplitMLP`.
        find_sizes: finds the exact batch sizes when they are first asked for, which takes seconds.
        largest: the batch size beyond which a frame does not get cheaper.
    """

    name: str
    dynamics: DiT
    autoencoder: DiffusersAutoencoder
    stages: Stages
    split_k: int
    find_sizes: Callable[[Runtime], Sizes]
    largest: int = ENOUGH

    @cached_property
    def sizes(self) -> Sizes:
        """Batch sizes at which a row has the bits that it has alone, for each stage by name."""
        return self.find_sizes(self)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights and of what sessions remember."""
        return self.dynamics.dtype

    @property
    def identity(self) -> str:
        """What the bits of its frames depend on."""
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.name}/{dtype}/{self.split_k}/torch-{torch.__version__}"


def build(
    world: World,
    name: str,
    folder: Path,
    split_k: int | None = None,
    find_sizes: Callable[[Runtime], Sizes] | None = None,
) -> Runtime:
    """A runtime.

    Args:
        world: is not changed.
        name: of `RUNTIMES`.
        folder: where what takes long to make is stored; what is there already is used.
        split_k: of long sums; None finds out.
        find_sizes: how its exact batch sizes are found (default: tried).

    Raises:
        ConfigError: there is no such runtime.
        RuntimeUnavailable: this machine cannot build it.
    """
    builders: dict[str, Callable[[DiT, DiffusersAutoencoder, Path], Stages]] = {
        "eager": lambda dynamics, autoencoder, folder: eager(dynamics, autoencoder),
        "compiled": _compiled,
        "onnx": _onnx,
        "cudagraph": _cudagraph,
    }
    if name not in builders:
        raise ConfigError(f"there is no runtime {name!r}.{did_you_mean(name, builders)}")
    if world.autoencoder.temporal_stride > 1 and name != "eager":
        raise RuntimeUnavailable(
            f"the runtime {name!r} takes worlds whose latents stand for one frame each; allowed here: 'eager'."
        )
    if name == "cudagraph" and not torch.cuda.is_available():
        raise RuntimeUnavailable("the runtime 'cudagraph' needs an NVIDIA GPU, and torch sees none here.")
    dynamics, autoencoder = batch_invariant(world.dynamics), batch_invariant(world.autoencoder)
    if name == "onnx":
        dynamics, autoencoder = dynamics.float(), autoencoder.float()
    if name == "cudagraph":
        dynamics, autoencoder = dynamics.cuda(), autoencoder.cuda()
    if split_k is None:  # tried on eager kernels, which are those of the others: trying is quick, and building is not
        split_k = 1 if name == "onnx" else exact_split(eager(dynamics, autoencoder), dynamics)
    set_split_k(dynamics, split_k)
    stages = builders[name](dynamics, autoencoder, folder / f"{name}-{split_k}")
    return Runtime(name, dynamics, autoencoder, stages, split_k, find_sizes or try_sizes)


def try_sizes(runtime: Runtime) -> Sizes:
    """The exact batch sizes of a runtime, found by trying."""
    return exact_sizes(runtime.stages, runtime.dynamics)


def _modules(dynamics: DiT, autoencoder: DiffusersAutoencoder) -> dict[str, nn.Module]:
    return {"encode": Encode(dynamics), "denoise": Denoise(dynamics), "decode": Decode(autoencoder)}


def _compiled(dynamics: DiT, autoencoder: DiffusersAutoencoder, folder: Path) -> Stages:
    modules = _modules(dynamics, autoencoder)
    libraries = {stage: folder / f"{stage}.so" for stage in modules}
    if not all(path.is_file() for path in libraries.values()):
        if not any(map(shutil.which, ("c++", "g++", "clang++"))):
            raise RuntimeUnavailable("the runtime 'compiled' needs a C++ compiler (g++ or clang++); install one.")
        folder.mkdir(parents=True, exist_ok=True)
        for stage, module in tqdm(modules.items(), desc="compiling, once", unit="stage", leave=False):
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
    given = example(dynamics, 1)
    dtypes = {stage: [part.dtype for part in given[stage]] for stage in libraries}
    return Stages(**{stage: Library(path, dtypes[stage]) for stage, path in libraries.items()})


def _export(stage: str, module: nn.Module, dynamics: DiT) -> Any:
    """The stage as a graph for any number of rows."""
    rows, inputs = torch.export.Dim("rows", min=1, max=MOST_ROWS), example(dynamics, 4)[stage]
    dynamic: list[Any] = [{0: rows} for _ in inputs]
    if stage == "denoise":  # the text is one argument of any length
        dynamic = [*dynamic[:TEXT_AT], tuple(dynamic[TEXT_AT:])]
    with torch.no_grad(), _quiet():
        return torch.export.export(module, inputs, dynamic_shapes=tuple(dynamic))


def _onnx(dynamics: DiT, autoencoder: DiffusersAutoencoder, folder: Path) -> Stages:
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


def _cudagraph(dynamics: DiT, autoencoder: DiffusersAutoencoder, folder: Path) -> Stages:
    return Stages(**{name: _Graph(module) for name, module in _modules(dynamics, autoencoder).items()})


class _Graph:
    """A stage as CUDA graphs, one for each set of shapes; recorded when first met."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.lock = module, threading.Lock()
        self.recorded: dict[tuple[torch.Size, ...], tuple[Any, list[Tensor], Any]] = {}

    def __call__(self, *args: Tensor) -> Any:
        key = tuple(arg.shape for arg in args)
        with self.lock:  # an engine's threads share the places that a graph reads from and writes to
            if key not in self.recorded:
                self.recorded[key] = self._record([arg.clone() for arg in args])
            graph, inputs, outs = self.recorded[key]
            for own, arg in zip(inputs, args, strict=True):
                own.copy_(arg)
            graph.replay()
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
