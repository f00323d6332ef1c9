"""The training objectives, by name. A new one is a file here and a line below."""

from __future__ import annotations

from worldsim.diffusion.objective import ObjectiveConfig
from worldsim.diffusion.objectives.ddpm import DDPMConfig
from worldsim.diffusion.objectives.energy import EnergyConfig
from worldsim.diffusion.objectives.flow import FlowConfig
from worldsim.errors import ConfigError, did_you_mean

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {"energy": EnergyConfig, "flow": FlowConfig, "ddpm": DDPMConfig}


def objective_config(name: str) -> type[ObjectiveConfig]:
    """The config class of that name.

    Raises:
        ConfigError: there is no such objective.
    """
    if name not in OBJECTIVES:
        raise ConfigError(f"there is no objective {name!r}.{did_you_mean(name, OBJECTIVES)}")
    return OBJECTIVES[name]
