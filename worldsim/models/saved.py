"""Saved dynamics, under names of today or of before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from worldsim.models.config import DiTConfig
from worldsim.models.dit import DiT
from worldsim.models.weights import load_weights
from worldsim.untrusted import check_shapes, convert, read_json

RENAMED = {  # beginnings of weights' names
    "level.": "sigma.",
    "history_level.": "history.sigma.",
    "action.": "actions.mlp.",
    "reward_head.": "heads.reward.",
    "end_head.": "heads.termination.",
}


def read_dynamics(folder: Path) -> DiT:
    """Read a model from its folder; its memory is bounded by the size of its file.

    Raises:
        OSError, SafetensorError: a file is missing or damaged.
        Untrusted: a config that cannot be, or weights of another model.
    """
    return load_dynamics(read_json(folder / "config.json"), load_weights(folder / "model.safetensors"))


def load_dynamics(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> DiT:
    """A model with its saved weights, in float32.

    Raises:
        Untrusted: a config that cannot be, or weights of another model.
    """
    older = "gate.bias" not in weights  # from before frames were a change of the newest one
    shape = convert({**config, "newest_base": False} if older else config, DiTConfig)
    found = renamed_weights(weights, shape.latent_channels * math.prod(shape.patch))
    with torch.device("meta"):  # a model as large as the config says, without its memory
        wanted = {name: tensor.shape for name, tensor in shape.build().state_dict().items()}
    check_shapes(
        {name: tuple(tensor.shape) for name, tensor in found.items()},
        {name: tuple(size) for name, size in wanted.items() if not (older and name.startswith("gate."))},
    )
    dynamics = shape.build()
    if older:
        found |= {f"gate.{name}": tensor for name, tensor in dynamics.gate.state_dict().items()}
    dynamics.load_state_dict({name: tensor.float() for name, tensor in found.items()})
    return dynamics


def renamed_weights(weights: Mapping[str, Tensor], own: int) -> dict[str, Tensor]:
    """Weights under their names of today; those of before there was one forward pass, and those that have them.

    Args:
        weights: by name.
        own: columns of the embedding that a frame itself had, in front of its history's.
    """
    found = {}
    for name, tensor in weights.items():
        old = next((old for old in RENAMED if name.startswith(old)), None)
        found[name if old is None else RENAMED[old] + name.removeprefix(old)] = tensor
    if "embed.weight" in found:  # one matrix for a frame and for its history
        both = found.pop("embed.weight")
        found |= {"patch.weight": both[:, :own], "patch.bias": found.pop("embed.bias")}
        found |= {"history.tokens.weight": both[:, own:]} if both.shape[1] > own else {}
    return found
