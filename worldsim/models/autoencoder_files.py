"""An autoencoder on disk: the layout of diffusers, and its linear path beside it if it has one."""

from __future__ import annotations

import copy
import inspect
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from worldsim.errors import WorldError, check_ranges
from worldsim.models.autoencoder import DiffusersAutoencoder, FrameAutoencoder
from worldsim.models.clip_autoencoder import ClipAutoencoder, is_of_clips
from worldsim.models.weights import load_weights
from worldsim.untrusted import Untrusted, check_finite, check_shapes, convert, read_json, tensor_shapes

WEIGHTS = "diffusion_pytorch_model.safetensors"
LARGEST_SIDE, MOST_LAYERS, LARGEST_NUMBER = 64, 64, 65_536  # of what a config says


@dataclass(frozen=True, kw_only=True)
class _About:
    """What `describe_autoencoder` says."""

    unshuffle: int = 1
    linear: int = 0
    temporal_stride: Any = None  # compared with what the model itself does
    frame_size: tuple[int, int] | None = None  # of frames that are padded

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float]] = {"unshuffle": (1, LARGEST_SIDE), "linear": (0, LARGEST_SIDE)}
        check_ranges(self, ranges | {"frame_size": (1, 4096)})


def describe_autoencoder(autoencoder: DiffusersAutoencoder) -> dict[str, Any]:
    """Describe an autoencoder for the card of its world or run: its class, and the settings of its wrapper."""
    about: dict[str, Any] = {"class": type(autoencoder.model).__name__}
    if isinstance(autoencoder, FrameAutoencoder):
        padded = {} if autoencoder.frame_size is None else {"frame_size": list(autoencoder.frame_size)}
        return about | {"unshuffle": autoencoder.unshuffle, "linear": autoencoder.linear, **padded}
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
        OSError, Untrusted: a file is missing, or is not what it should be.
    """
    settings = convert({name: value for name, value in about.items() if name not in ("class", "mean", "std")}, _About)
    model = _read_untrusted(about.get("class"), path)
    if is_of_clips(model):
        autoencoder: DiffusersAutoencoder = ClipAutoencoder(model, settings.temporal_stride)
    else:
        autoencoder = FrameAutoencoder(model, settings.unshuffle, settings.linear, settings.frame_size)
    if autoencoder.linear_path():
        modules = zip(("down", "up"), autoencoder.linear_path(), strict=True)
        own = {f"{part}.{key}": value for part, module in modules for key, value in module.state_dict().items()}
        check_shapes(
            tensor_shapes(path / "linear.safetensors"), {key: tuple(value.shape) for key, value in own.items()}
        )
        for key, value in load_weights(path / "linear.safetensors").items():
            own[key].copy_(value)
    if len(mean) != autoencoder.latent_channels or len(std) != autoencoder.latent_channels:
        raise Untrusted(
            f"it has statistics of {len(mean)} latent channels; the model has {autoencoder.latent_channels}"
        )
    autoencoder.set_statistics(torch.tensor(mean), torch.tensor(std))
    return autoencoder


def _read_untrusted(kind: Any, path: Path) -> Any:
    """Read a model of diffusers as data: its config says nothing but sizes, its weights are as many as the file has.

    Raises:
        WorldError: `kind` names no autoencoder of diffusers.
        OSError, Untrusted: a file is missing, or is not what it should be.
    """
    cls, config = _autoencoder_class(kind, path), read_json(path / "config.json")
    config = {name: value for name, value in config.items() if not name.startswith("_")}
    known = inspect.signature(cls.__init__).parameters
    if unknown := [name for name in config if name not in known]:
        raise Untrusted(f"the config of its {kind} has {unknown[0]!r:.64}, which that class does not take")
    _check_sizes(config)
    found = tensor_shapes(path / WEIGHTS)
    with torch.device("meta"):  # a model as large as the config says, without its memory
        wanted = {name: tuple(part.shape) for name, part in _from_config(cls, config).state_dict().items()}
    check_shapes(found, wanted)
    weights = load_weights(path / WEIGHTS)
    model = _from_config(cls, config)
    model.load_state_dict({name: part.float() for name, part in weights.items()})
    return model.eval()


def _from_config(cls: Any, config: Mapping[str, Any]) -> Any:
    try:
        with warnings.catch_warnings():  # torch warns of sizes of 0; that the weights do not fit is said soon
            warnings.simplefilter("ignore")
            return cls.from_config(config)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise Untrusted(f"{cls.__name__} cannot be made of its config ({error!s:.200})") from error


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Check that no number of a config makes a model that takes long to build; the weights say how wide it is.

    Raises:
        Untrusted: one does.
    """
    check_finite(config)
    for name, value in config.items():
        most = MOST_LAYERS if "layers" in name or name.startswith("num_") else LARGEST_NUMBER
        waiting, seen = [value], 0
        while waiting:
            part, seen = waiting.pop(), seen + 1
            if isinstance(part, list | tuple):
                waiting += part
            if (isinstance(part, int | float) and abs(part) > most) or seen > MOST_LAYERS:
                raise Untrusted(f"the autoencoder's {name!r:.64} is {value!r:.64}; allowed: numbers up to {most}")


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
    cls = _autoencoder_class(kind, path)
    return cls.from_pretrained(path, torch_dtype=torch.float32, low_cpu_mem_usage=False).eval()


def _autoencoder_class(kind: Any, path: str | Path) -> Any:
    import diffusers

    if not isinstance(kind, str) or not kind.startswith("Autoencoder") or not hasattr(diffusers, kind):
        raise WorldError(f"{path} names the autoencoder class {kind!r:.64}; allowed: diffusers' Autoencoder classes.")
    return getattr(diffusers, kind)
