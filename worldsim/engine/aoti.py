"""Stages that torch's ahead-of-time compiler made, called through their C interface.

torch's own loader holds Python's lock while a compiled graph runs, so that two threads take as long as one after the
other. The libraries themselves have a small C interface (torch/csrc/inductor/aoti_runtime/interface.h), and ctypes
lets go of the lock: two cores then do twice the work.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldsim.errors import RuntimeUnavailable

_aoti: Any = torch._C._aoti  # type: ignore[attr-defined]  -- tensors to handles and back; torch is pinned
_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_capsule_new = ctypes.pythonapi.PyCapsule_New
_capsule_new.restype, _capsule_new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


def unpack(package: Path, library: Path) -> None:
    """Take the library out of a package.

    Raises:
        RuntimeUnavailable: it needs more than its C interface offers.
    """
    with zipfile.ZipFile(package) as archive:
        names = archive.namelist()
        for name in names:
            # Operators that C cannot reach go through an executor that only torch's own loader has.
            if name.endswith(".cpp") and b"proxy_executor_call_function(" in archive.read(name):
                raise RuntimeUnavailable(f"the compiled {library.stem} has operators outside of the C interface.")
        (found,) = (name for name in names if name.endswith(".so"))
        part = library.with_suffix(".part")
        with archive.open(found) as source, part.open("wb") as target:
            shutil.copyfileobj(source, target)
    part.replace(library)


class Library:
    """A compiled stage: tensors in, tensors out. Threads may call it at the same time.

    Args:
        path: the library.
        dtypes: of its inputs, which it takes for granted: it would read other numbers as nonsense.

    Raises:
        RuntimeUnavailable: it cannot be loaded.
    """

    def __init__(self, path: Path, dtypes: Sequence[torch.dtype]) -> None:
        """Load it."""
        self.path, self.dtypes, self._handle = path, list(dtypes), ctypes.c_void_p()
        try:
            self._c = ctypes.CDLL(str(path))
            create = self._c.AOTInductorModelContainerCreateWithDevice
            create.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p]
            # One instance of the graph for each thread; they share the weights.
            self._check(create(ctypes.byref(self._handle), os.cpu_count() or 1, b"cpu", None))
            self._inputs = self._count("Inputs")
            self._outputs = self._count("Outputs")
            if self._inputs != len(self.dtypes):
                raise RuntimeUnavailable(
                    f"{path} takes {self._inputs} tensors, this version gives {len(self.dtypes)}; delete it, and tune "
                    "again."
                )
        except (OSError, AttributeError) as error:
            raise RuntimeUnavailable(f"{path} cannot be loaded ({error}); delete it, and tune again.") from error
        self._run = self._c.AOTInductorModelContainerRun
        self._run.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
                              ctypes.c_void_p, ctypes.c_void_p]  # fmt: skip

    def __call__(self, *args: Tensor) -> Any:
        """Run it. Inputs are made contiguous: the graph takes their layout for granted and would misread others."""
        if [arg.dtype for arg in args] != self.dtypes:
            got = [str(arg.dtype).removeprefix("torch.") for arg in args]
            raise TypeError(f"the compiled {self.path.stem} got tensors of {got}; allowed: {self.dtypes}.")
        capsules = _aoti.unsafe_alloc_void_ptrs_from_tensors([arg.contiguous() for arg in args])
        given = (ctypes.c_void_p * self._inputs)(*(_capsule_pointer(capsule, None) for capsule in capsules))
        taken = (ctypes.c_void_p * self._outputs)()
        self._check(self._run(self._handle, given, self._inputs, taken, self._outputs, None, None))
        outs = _aoti.alloc_tensors_by_stealing_from_void_ptrs([_capsule_new(out, None, None) for out in taken])
        return tuple(outs) if len(outs) > 1 else outs[0]

    def _count(self, what: str) -> int:
        count = ctypes.c_size_t()
        call = getattr(self._c, f"AOTInductorModelContainerGetNum{what}")
        call.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
        self._check(call(self._handle, ctypes.byref(count)))
        return count.value

    def _check(self, code: int) -> None:
        if code:
            raise RuntimeError(f"the compiled {self.path.stem} failed; see the message above. Try runtime='eager'.")

    def __del__(self) -> None:
        """Free the graph, not the weights' library, which Python does not unload."""
        if getattr(self, "_handle", None):
            delete = self._c.AOTInductorModelContainerDelete
            delete.argtypes = [ctypes.c_void_p]
            delete(self._handle)
