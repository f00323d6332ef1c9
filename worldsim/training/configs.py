"""What a training run of the dynamics is: a tree of configs, each beside what it configures.

The command line is made from the tree, its options without the names of the branches: `--frames`, not
`--batch.frames`; the objective that `--objective` names brings its own.
"""

from __future__ import annotations

import dataclasses
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldsim.data.segments import BatchConfig
from worldsim.diffusion.objective import ObjectiveConfig
from worldsim.diffusion.objectives import OBJECTIVES, objective_config
from worldsim.errors import ConfigError
from worldsim.models.config import DiTConfig
from worldsim.training.self_forcing import SelfForcingConfig
from worldsim.training.trainer import TrainerConfig


@dataclass(frozen=True, kw_only=True)
class DynamicsTraining:
    """What `worldsim train dynamics` does."""

    data: Path
    """A recorded dataset."""
    extra_data: tuple[Path, ...] = ()
    """Further recordings of the same game to train on: another player's, say."""
    autoencoder: Path | None = None
    """The run folder of a trained autoencoder (default: runs/DATASET-autoencoder)."""
    out: Path | None = None
    """The run folder (default: runs/DATASET); a run that was stopped there goes on."""
    init_from: Path | None = None
    """A world to go on from: its autoencoder, its model and its weights."""
    text_encoder: str | None = None
    """What reads prompts: "minilm", or a folder or hub id of a text encoder of transformers, such as CLIP, T5 or UMT5
    (default: minilm, or that of the world to go on from)."""
    batch: BatchConfig = field(default_factory=BatchConfig)
    self_forcing: SelfForcingConfig = field(default_factory=SelfForcingConfig)
    objective: ObjectiveConfig = field(default_factory=lambda: OBJECTIVES["energy"]())  # type: ignore[call-arg]
    model: DiTConfig = field(default_factory=DiTConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    compile: bool | None = None
    """Compile the transformer's blocks: two minutes once, then a step takes less than half. It needs a C++ compiler
    (default: for runs of 1000 steps or ten minutes and more, where there is one)."""

    def __post_init__(self) -> None:
        """Check what belongs together; a run that is told no end takes an hour."""
        object.__setattr__(self, "trainer", self.trainer.or_minutes(60))
        rollouts, segments = self.self_forcing.rollout_segments, self.batch.segments
        if rollouts > segments:
            raise ConfigError(f"rollout_segments is {rollouts} of {segments} segments; allowed: at most all.")

    def compiles(self) -> bool:
        """Whether the blocks are compiled."""
        if self.compile is not None:
            return self.compile
        steps, minutes = self.trainer.steps, self.trainer.minutes
        long = steps >= 1000 if steps is not None else (minutes or 0) >= 10
        return long and any(map(shutil.which, ("g++", "clang++")))

    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / self.data.name

    def autoencoder_folder(self) -> Path:
        """The run folder of the autoencoder."""
        return self.autoencoder or Path("runs") / f"{self.data.name}-autoencoder"


def training_of(objective: str) -> type[DynamicsTraining]:
    """The config class of runs with this objective, whose options are then those of its own config.

    Raises:
        ConfigError: there is no such objective.
    """
    kind: Any = objective_config(objective)
    # A subclass that says which objective it has: so the command line knows the options.
    return dataclasses.make_dataclass(
        DynamicsTraining.__name__,
        [("objective", kind, field(default_factory=kind))],
        bases=(DynamicsTraining,),
        namespace={"__doc__": DynamicsTraining.__doc__},
        frozen=True,
        kw_only=True,
    )
