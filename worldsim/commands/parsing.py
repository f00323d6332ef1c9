"""Options of a verb, made from the config dataclass of the function that it calls."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import TypeVar

from worldsim.renamed import refuse_old_options

Config = TypeVar("Config")


def parse(
    config: Callable[..., Config], verb: str, args: Sequence[str], description: str | None = None, flat: bool = False
) -> Config:
    """Call `config` (a dataclass, or a function) with what `args` say; what has no default needs no --name.

    `flat` drops the names of nested configs: --minutes, not --trainer.minutes.

    Raises:
        ConfigError: an option that has another name now.
        SystemExit: wrong words (2), or --help (0).
    """
    import tyro

    refuse_old_options(verb, args)
    return tyro.cli(
        config,
        prog=f"worldsim {verb}",
        description=description and inspect.cleandoc(description),
        args=list(args),
        config=(tyro.conf.PositionalRequiredArgs, *((tyro.conf.OmitArgPrefixes,) if flat else ())),
    )


def option(args: Sequence[str], name: str, default: str) -> str:
    """The value that `args` give to an option, read before the others as it decides what these are."""
    for word, after in zip(args, [*args[1:], ""], strict=True):
        if word == f"--{name}":
            return after
        if word.startswith(f"--{name}="):
            return word.partition("=")[2]
    return default
