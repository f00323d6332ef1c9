"""Verbs that train: train autoencoder, train dynamics."""

from __future__ import annotations

from collections.abc import Sequence

from worldsim.commands.parsing import option, parse


def train_autoencoder(args: Sequence[str]) -> None:
    """Train an autoencoder on a dataset, the first half of a world.

    Example: worldsim train autoencoder data/car-racing --minutes 10
    A run that was stopped goes on when the same command is run again.
    """
    from worldsim.training.autoencoder import AutoencoderTraining
    from worldsim.training.autoencoder import train_autoencoder as run

    config = parse(AutoencoderTraining, "train autoencoder", args, train_autoencoder.__doc__, flat=True)
    run(config)
    print(f"the autoencoder is in {config.folder()}")


def train_dynamics(args: Sequence[str]) -> None:
    """Train the dynamics on a dataset and its autoencoder, and export the world.

    Example: worldsim train dynamics data/car-racing --minutes 60
    A run that was stopped goes on when the same command is run again.
    """
    from worldsim.training.configs import training_of
    from worldsim.training.run import train_dynamics as run

    kind = training_of(option(args, "objective", "energy"))
    config = parse(kind, "train dynamics", args, train_dynamics.__doc__, flat=True)
    run(config)
    print(f"the world is in {config.folder() / 'world'}; play it with: worldsim play {config.folder() / 'world'}")
