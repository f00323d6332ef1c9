"""worldsim turns recorded gameplay into a world you can step.

The names below are the public surface. They load when first used, so that `import worldsim` is cheap and a machine that
only steps a remote world needs no torch.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldsim.data.episodes import Dataset, Episode
    from worldsim.data.record import RecordConfig, record
    from worldsim.diffusion.sampler import SamplerConfig
    from worldsim.engine.simulator import Simulator
    from worldsim.errors import WorldsimError
    from worldsim.training.autoencoder import AutoencoderTraining, train_autoencoder
    from worldsim.training.configs import DynamicsTraining
    from worldsim.training.run import train_dynamics
    from worldsim.world import World

    __version__: str

_HOME = {
    "AutoencoderTraining": "worldsim.training.autoencoder",
    "Dataset": "worldsim.data.episodes",
    "DynamicsTraining": "worldsim.training.configs",
    "Episode": "worldsim.data.episodes",
    "RecordConfig": "worldsim.data.record",
    "SamplerConfig": "worldsim.engine.simulator",
    "Simulator": "worldsim.engine.simulator",
    "World": "worldsim.world",
    "WorldsimError": "worldsim.errors",
    "record": "worldsim.data.record",
    "train_autoencoder": "worldsim.training.autoencoder",
    "train_dynamics": "worldsim.training.run",
}

__all__ = [
    "AutoencoderTraining",
    "Dataset",
    "DynamicsTraining",
    "Episode",
    "RecordConfig",
    "SamplerConfig",
    "Simulator",
    "World",
    "WorldsimError",
    "record",
    "train_autoencoder",
    "train_dynamics",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("worldsim-engine")
    if name not in _HOME:
        raise AttributeError(f"module 'worldsim' has no attribute {name!r}; it has: {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
