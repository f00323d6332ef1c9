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
from worldsim.models.autoencoder import DiffusersAutoencoder, FrameAutoencoder
from worldsim.models.clip_autoencoder import ClipAutoencoder, is_of_clips


def describe_autoencoder(autoencoder: DiffusersAutoencoder) -> dict[str, Any]:
    """Describe an autoencoder for the card of its world or run: its class, and the settings of its wrapper."""
    about: dict[str, Any] = {"class": type(autoencoder.model).__name__}
    if isinstance(autoencoder, FrameAutoencoder):
        return about | {"unshuffle": autoencoder.unshuffle, "linear": autoencoder.linear}
    return about | {"temporal_stride": autoencoder.temporal_stride}


def save_autoencoder(autoencoder: DiffusersAutoencoder, path: Path, dtype: torch.dtype = torch.bfloat16) -> None:
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


def load_autoencoder(about: dict[str, Any], mean: list[float], std: list[float], path: Path) -> DiffusersAutoencoder:
    """Read an autoencoder's folder, with the latent statistics that the card of its world or run names.

    Args:
        about: what `describe_autoencoder` said of it.
        mean: of each latent channel.
        std: of each latent channel.
        path: the folder.

    Raises:
        WorldError: `about` names no autoencoder of diffusers.
    """
    model = _read_model(about["class"], path)
    if is_of_clips(model):
        autoencoder: DiffusersAutoencoder = ClipAutoencoder(model, about["temporal_stride"])
    else:
        autoencoder = FrameAutoencoder(model, about["unshuffle"], about["linear"])
    if autoencoder.linear_path():
        parts = load_file(path / "linear.safetensors")
        for part, module in zip(("down", "up"), autoencoder.linear_path(), strict=True):
            module.load_state_dict({key: parts[f"{part}.{key}"].float() for key in ("weight", "bias")})
    autoencoder.set_statistics(torch.tensor(mean), torch.tensor(std))
    return autoencoder


def load_pretrained(name: str | Path) -> DiffusersAutoencoder:
    """Read an autoencoder of diffusers that is no part of a world yet; its latent statistics are not set.

    Args:
        name: a folder that `save_pretrained` wrote, or a hub id.

    Raises:
        WorldError: there is none, or it is no autoencoder of images or of causal clips.
    """
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    try:
        about: Any = AutoencoderKL.load_config(str(name))  # as it is, whichever class it names
        model = _read_model(about.get("_class_name"), name)
    except (OSError, ValueError) as error:
        if isinstance(error, WorldError):
            raise
        raise WorldError(f"cannot load the autoencoder {str(name)!r} ({error!s:.300}).") from error
    return ClipAutoencoder(model) if is_of_clips(model) else FrameAutoencoder(model)


def _read_model(kind: Any, path: str | Path) -> Any:
    import diffusers

    if not isinstance(kind, str) or not kind.startswith("Autoencoder") or not hasattr(diffusers, kind):
        raise WorldError(f"{path} names the autoencoder class {kind!r}; allowed: diffusers' Autoencoder classes.")
    return getattr(diffusers, kind).from_pretrained(path, torch_dtype=torch.float32, low_cpu_mem_usage=False).eval()
