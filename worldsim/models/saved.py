"""Saved dynamics, under names of today or of before."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from worldsim.models.config import DiTConfig
from worldsim.models.dit import DiT

RENAMED = {  # beginnings of weights' names
    "level.": "sigma.",
    "history_level.": "history.sigma.",
    "action.": "actions.mlp.",
    "reward_head.": "heads.reward.",
    "end_head.": "heads.termination.",
}


def load_dynamics(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> DiT:
    """A model with its saved weights, in float32.

    Raises:
        ConfigError: a config that cannot be.
        KeyError, RuntimeError, TypeError: weights or settings that are missing, or of another model.
    """
    settings: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in config.items()}
    older = "gate.bias" not in weights  # from before frames were a change of the newest one
    if older:
        settings["newest_base"] = False
    dynamics = DiTConfig(**settings).build()
    own = dynamics.config.latent_channels * math.prod(dynamics.config.patch)
    found = renamed_weights(weights, own)
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
