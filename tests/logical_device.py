"""A device that is not there: finds tensors that code makes on, or moves to, the wrong device, on any machine.

Tensors "on" it are CPU tensors with a mark, by their storage. Under `logical()` whatever asks for cuda gets a marked
tensor; results of marked tensors are marked; what mixes marked and unmarked tensors raises `WrongDevice`. 0-dim tensors
may be mixed, as on a GPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

CUDA, CPU = torch.device("cuda"), torch.device("cpu")
MOVES = {"_to_copy", "copy_", "_copy_from"}  # may take tensors of two devices
INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_"}
READS = {"_local_scalar_dense"}  # a number for the host: allowed, and slow on a GPU


class WrongDevice(RuntimeError):
    """Tensors of two devices met."""


class Marks:
    """Which storages are on the device. They are held to the end, so that none gets the address of another."""

    def __init__(self) -> None:
        self.held: dict[int, torch.UntypedStorage] = {}

    def add(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr():
            self.held[storage.data_ptr()] = storage
        return tensor

    def drop(self, tensor: Tensor) -> Tensor:
        self.held.pop(tensor.untyped_storage().data_ptr(), None)
        return tensor

    def has(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self.held


MARKS = Marks()


class Devices(TorchFunctionMode):
    """Turns requests for cuda into marked CPU tensors, and says of these that they are on cuda."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self.marks = marks

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == Tensor.device.__get__:  # type: ignore[attr-defined]
            return CUDA if self.marks.has(args[0]) else func(*args, **kwargs)
        if func is torch.device or getattr(func, "__name__", "") == "_parse_to":  # only reads what `Module.to` is given
            return func(*args, **kwargs)
        if func is Tensor.numpy and self.marks.has(args[0]):
            raise WrongDevice("numpy reads a tensor of the device.")
        if func is Tensor.cuda:
            return self._moved(args[0].clone(), True)
        if func is Tensor.cpu:
            return self._moved(args[0].clone(), False) if self.marks.has(args[0]) else func(*args, **kwargs)
        if func is Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):  # `x.to(y)`
            out = func(*args, **kwargs)
            there = self.marks.has(args[1])
            return out if self.marks.has(out) == there else self._moved(out.clone(), there)
        wanted = [found for value in (*args, kwargs.get("device")) if (found := _device(value)) is not None]
        if not wanted:
            return func(*args, **kwargs)
        clean = [CPU if _device(value) is not None else value for value in args]
        if "device" in kwargs:
            kwargs["device"] = CPU if kwargs["device"] is not None else None
        out = func(*clean, **kwargs)
        if not isinstance(out, Tensor):
            return out
        moved = func is Tensor.to and self.marks.has(args[0]) != (wanted[0].type == "cuda")
        return self._moved(out.clone() if moved else out, wanted[0].type == "cuda")

    def _moved(self, tensor: Tensor, there: bool) -> Tensor:
        return self.marks.add(tensor) if there else self.marks.drop(tensor)


class Mixing(TorchDispatchMode):
    """Marks what is computed from marked tensors, and raises where these meet others."""

    def __init__(self, marks: Marks) -> None:
        super().__init__()
        self.marks = marks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [part for part in tree_flatten((args, kwargs))[0] if isinstance(part, Tensor)]
        there = [part for part in tensors if part.numel() and self.marks.has(part)]
        name = func._schema.name.split("::")[-1]
        here = [part for part in tensors if part.numel() and part.dim() and not self.marks.has(part)]
        if name in INDEXED and self.marks.has(tensors[0]):  # torch moves places that are on the host
            here = [part for part in here if part.is_floating_point()]
        if there and here and name not in MOVES and any(part.dim() for part in there):
            shapes = [tuple(part.shape) for part in (*there[:2], *here[:2])]
            raise WrongDevice(f"{name} mixes tensors of two devices: shapes {shapes}.")
        out = func(*args, **kwargs)
        if there and name not in READS and (name not in MOVES or self.marks.has(tensors[0])):
            tree_map(lambda part: self.marks.add(part) if isinstance(part, Tensor) else part, out)
        return out


@contextlib.contextmanager
def logical() -> Iterator[Marks]:
    """Let there be a device cuda within the block; what was made on it stays there in later blocks."""
    with Devices(MARKS), Mixing(MARKS):
        yield MARKS


def _device(value: Any) -> torch.device | None:
    if isinstance(value, torch.device):
        return value
    if isinstance(value, str) and value.split(":")[0] in ("cuda", "cpu"):
        return torch.device(value)
    return None
