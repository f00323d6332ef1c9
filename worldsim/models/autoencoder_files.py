"""An autoencoder on disk: the layout of diffusers, and its linear path beside it if it has one."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from worldsim.errors import WorldError
from worldsim.models.autoencoder import FrameAutoencoder


def describe_autoencoder(autoencoder: FrameAutoencoder) -> dict[str, Any]:
    """Describe an autoencoder for the card of its world or run: its class, and the settings of its wrapper."""
    return {
        "class": type(autoencoder.model).__name__,
        "unshuffle": autoencoder.unshuffle,
        "linear": autoencoder.linear,
    }


def save_autoencoder(autoencoder: FrameAutoencoder, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write an autoencoder's folder: diffusers layout, plus the linear path beside the model."""
    model = copy.deepcopy(autoencoder.model)
    nn.Module.to(model, dtype)  # diffusers' own `to` warns of nothing
    model.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    config.pop("_name_or_path", None)  # where it was once loaded from is no one's business
    (path / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    parts = {
        f"{name}.{key}": tensor.to(dtype).contiguous()
        for name, module in zip(("down", "up"), autoencoder.linear_path(), strict=False)
        for key, tensor in module.state_dict().items()
    }
    if parts:
        save_file(parts, path / "linear.safetensors")


def load_autoencoder(about: dict[str, Any], mean: list[float], std: list[float], path: Path) -> FrameAutoencoder:
    """Read an autoencoder's folder, with the latent statistics that the card of its world or run names.

    Args:
        about: what `describe_autoencoder` said of it.
        mean: of each latent channel.
        std: of each latent channel.
        path: the folder.

    Raises:
        WorldError: `about` names no autoencoder of diffusers.
    """
    import diffusers

    name = about["class"]
    if not name.startswith("Autoencoder") or not hasattr(diffusers, name):
        raise WorldError(f"the card names the autoencoder class {name!r}; allowed: diffusers' Autoencoder classes.")
    model = getattr(diffusers, name).from_pretrained(path, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    autoencoder = FrameAutoencoder(model, about["unshuffle"], about["linear"])
    if autoencoder.linear:
        parts = load_file(path / "linear.safetensors")
        for part, module in zip(("down", "up"), autoencoder.linear_path(), strict=True):
            module.load_state_dict({key: parts[f"{part}.{key}"].float() for key in ("weight", "bias")})
    autoencoder.set_statistics(torch.tensor(mean), torch.tensor(std))
    return autoencoder
