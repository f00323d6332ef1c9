"""What things were called before: options of the command line, and fields of worlds that were saved.

An old option is refused by a message that names the new one: a recipe in a user's notes should not fail like a typing
error. An old field of a saved world is read under its new name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from worldsim.errors import ConfigError

OPTIONS: dict[str, dict[str, str]] = {  # verb -> old name -> new name, without the dashes
    "train dynamics": {
        "more": "extra-data",
        "start": "init-from",
        "windows": "segments",
        "fresh": "no-history",
        "ends": "terminal-segments",
        "events": "event-segments",
        "stills": "image-samples",
        "reach": "start-frames",
        "given": "context-prob",
        "draw-steps": "num-denoising-steps",
        "own": "rollout-segments",
        "own-after": "rollout-start",
        "own-frames": "rollout-length",
        "own-pool": "rollout-buffer",
        "own-reuse": "rollout-reuse",
        "own-rests": "rollout-rests",
        "own-trust": "rollout-trust",
        "end-weight": "termination-weight",
        "errors": "error-prob",
        "draws-after": "second-sample-start",
        "picture": "pixel-metric",
        "no-picture": "no-pixel-metric",
        "focus": "saliency-weight",
        "shared-noise": "spatially-shared-noise",
        "temperature": "noise-scale",
        "clean-pass": "cache-sigma",
        "no-clean-pass": "cache-sigma",
        "sheet-minutes": "sample-grid-minutes",
    },
    "train autoencoder": {"sheet-minutes": "sample-grid-minutes"},
    "eval": {"steps": "num-denoising-steps", "temperature": "noise-scale"},
    "agent train": {"temperature": "noise-scale", "sampler-steps": "num-denoising-steps"},
    "serve": {"alone": "isolated"},
    "bench": {"denoise": "num-denoising-steps"},
    "agent eval": {"temperature": "noise-scale"},
    "agent plan": {"temperature": "noise-scale"},
}
SAMPLER = {  # of `sampler` in world.json
    "steps": "num_denoising_steps",
    "first_steps": "first_frame_steps",
    "temperature": "noise_scale",
    "shared_noise": "spatially_shared_noise",
}
LATENTS = {"told": "event_onset"}  # of the latents that are kept beside a recording


def refuse_old_options(verb: str, args: Sequence[str]) -> None:
    """Refuse an option that has another name now.

    Raises:
        ConfigError: names it.
    """
    renamed = OPTIONS.get(verb, {})
    for word in args:
        old = word.removeprefix("--").partition("=")[0].replace("_", "-")
        if word.startswith("--") and old in renamed:
            raise ConfigError(f"worldsim {verb}: --{old} is called --{renamed[old]} now.")


def with_new_names(fields: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Fields of a saved world under their names of today; a new name that is there as well has the say."""
    old = {renamed[name]: value for name, value in fields.items() if name in renamed}
    return old | {name: value for name, value in fields.items() if name not in renamed}
