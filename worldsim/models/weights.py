"""Weights from a file that may be a stranger's."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from worldsim.untrusted import Untrusted


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a safetensors file, all of them finite numbers.

    Raises:
        OSError, SafetensorError: the file is missing or damaged.
        Untrusted: it has integers, or numbers that are not finite.
    """
    weights = load_file(path)
    if not all(tensor.is_floating_point() and tensor.isfinite().all() for tensor in weights.values()):
        raise Untrusted(f"{path.parent.name}/{path.name} has weights that are not finite numbers")
    return weights
