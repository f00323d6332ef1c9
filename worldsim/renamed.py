"""What things were called before: options of the command line, and fields of files that were saved.

An old option is refused by a message that names the new one: a recipe in a user's notes should not fail like a typing
error. An old field of a saved world, recording or agent is read under its new name.
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
    "record": {"idle": "no-op-fraction"},
    "train autoencoder": {"sheet-minutes": "sample-grid-minutes"},
    "eval": {
        "steps": "num-denoising-steps",
        "temperature": "noise-scale",
        "fresh": "prompt-starts",
        "horizon": "long-rollout",
        "horizon-starts": "long-rollout-starts",
    },
    "agent train": {
        "temperature": "noise-scale",
        "sampler-steps": "num-denoising-steps",
        "grey": "grayscale",
        "no-grey": "no-grayscale",
        "hold": "action-repeat",
        "start": "init-from",
    },
    "serve": {"alone": "isolated", "no-alone": "no-isolated"},
    "bench": {"denoise": "num-denoising-steps"},
    "agent eval": {"temperature": "noise-scale"},
    "agent plan": {"temperature": "noise-scale", "planner.hold": "planner.action-repeat"},
}
SAMPLER = {  # of `sampler` in world.json
    "steps": "num_denoising_steps",
    "first_steps": "first_frame_steps",
    "temperature": "noise_scale",
    "shared_noise": "spatially_shared_noise",
}
LATENTS = {"told": "event_onset"}  # of the latents that are kept beside a recording


RECORDING = {"idle": "no_op_fraction"}  # of `provenance` in dataset.json
AGENT = {"choices": "actions", "grey": "grayscale", "hold": "action_repeat"}  # of agent.json
AGENT_TRAINING = {"grey": "grayscale", "hold": "action_repeat", "start": "init_from"}  # of `training` in it
VALUES = {"policy": {"explorer": "recipe"}}  # name of a setting of a recording -> old value -> new value


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


def with_new_options(verb: str, args: Sequence[str]) -> list[str]:
    """Words that were once given to a verb, with the names that its options have today."""
    renamed = {f"--{old}": f"--{new}" for old, new in OPTIONS.get(verb, {}).items()}
    return [renamed.get(word, word) for word in args]


def with_new_names(fields: Mapping[str, Any], renamed: Mapping[str, str]) -> dict[str, Any]:
    """Fields of a saved file under their names of today; a new name that is there as well has the say."""
    old = {renamed[name]: value for name, value in fields.items() if name in renamed}
    return old | {name: value for name, value in fields.items() if name not in renamed}


def recording_of_today(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recording under their names, and with the values, of today; in the order of the file."""
    settings = {RECORDING.get(name, name): value for name, value in provenance.items()}
    for name, values in VALUES.items():
        if isinstance(settings.get(name), str):
            settings[name] = values.get(settings[name], settings[name])
    return settings


def renamed_value(setting: str, value: str) -> str:
    """The tail of a message about a setting's value: what it is called today, if it had another name."""
    today = VALUES.get(setting, {}).get(value)
    return "" if today is None else f" {value!r} is called {today!r} now."
