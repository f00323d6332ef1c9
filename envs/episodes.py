"""The beginning of an episode, with the same draws in single, vector and remote environments."""

from __future__ import annotations

from typing import Any

import numpy as np

from worldsim.engine.records import SessionSpec
from worldsim.errors import InputError

OPTIONS = ("prompt", "start", "snapshot")


def sample_spec(
    clips: int, rng: np.random.Generator, prompt: str | None, start: Any, default_prompt: str | None
) -> SessionSpec:
    """Specify how an episode begins: its seed and, by default, its clip are drawn from `rng`."""
    prompt = default_prompt if prompt is None else prompt
    seed = int(rng.integers(2**62))
    if start is None and prompt is None and clips:
        start = int(rng.integers(clips))
    return SessionSpec(seed=seed, prompt=prompt, start=start)


def check_options(options: dict[str, Any], also: tuple[str, ...] = ()) -> None:
    """Check the names of reset options.

    Raises:
        InputError: an unknown one.
    """
    allowed = (*OPTIONS, *also)
    unknown = set(options) - set(allowed)
    if unknown:
        raise InputError(f"reset got the options {sorted(unknown)}; allowed: {', '.join(map(repr, allowed))}.")
