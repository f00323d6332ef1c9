"""The training objectives, by name. A new one is a file here and a line below."""

from __future__ import annotations

from worldsim.diffusion.objective import ObjectiveConfig
from worldsim.diffusion.objectives.energy import EnergyConfig
from worldsim.diffusion.objectives.flow import FlowConfig

OBJECTIVES: dict[str, type[ObjectiveConfig]] = {"energy": EnergyConfig, "flow": FlowConfig}
