"""What a session can begin from."""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.diffusion import noise
from worldsim.diffusion.sampler import RANGES
from worldsim.engine.records import SessionSpec
from worldsim.errors import ActionError, FrameError, InputError
from worldsim.types import Prompt
from worldsim.world import World


@dataclass(frozen=True, kw_only=True)
class ResolvedSpec(SessionSpec):
    """How a session begins, with nothing left open: `text` is the prompt, encoded; `start` None or a checked clip."""

    text: Prompt


def complete(spec: SessionSpec, world: World, keep: int) -> ResolvedSpec:
    """The same with its prompt encoded, and for a start the clip as `check_start` gives it.

    Raises:
        InputError: the start does not fit the world.
        PromptError: the world cannot take the prompt.
    """
    start, prompt, starts = spec.start, spec.prompt, world.starts
    if start is None and prompt is None and starts:
        start = int(np.random.default_rng(check_seed(spec.seed) % 2**64).integers(len(starts)))
    if isinstance(start, int):
        if not 0 <= start < len(starts):
            raise InputError(f"start is {start}; this world carries {len(starts)} clips, numbered from 0.")
        start = starts[start]
    guidance = check_guidance(spec.guidance)
    checked = None if start is None else check_start(start, world, keep)
    if prompt is None:
        known = world.card.prompts
        prompt = str((start or {}).get("prompt", known[0] if known else ""))
    clip = None if checked is None else {"frames": checked[0], "actions": checked[1]}
    changes = {"start": clip, "guidance": guidance, "seed": check_seed(spec.seed)}
    return ResolvedSpec(**{**vars(spec), **changes}, text=world.book.encode(prompt))


def check_guidance(strength: Any) -> float | None:
    """The guidance of a session as a float; None is the sampler's.

    Raises:
        InputError: it is no number, or out of range.
    """
    if strength is None:
        return None
    least, most = RANGES["guidance"]
    if isinstance(strength, bool) or not isinstance(strength, numbers.Real) or not least <= float(strength) <= most:
        raise InputError(f"guidance is {strength!r:.60}; allowed: a number from {least:g} to {most:g}.")
    return float(strength)


def check_seed(seed: Any) -> int:
    """A seed as an integer of at most 64 bits, which gives the same noise.

    Raises:
        InputError: it is no integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise InputError(f"seed is {seed!r:.60} of type {type(seed).__name__}; allowed: a whole number.")
    return noise.folded(int(seed))


def check_start(start: Any, world: World, keep: int) -> tuple[np.ndarray, Tensor]:
    """A clip's last `keep` frames and the flattened actions between them; older ones have no effect.

    Where a latent stands for r frames these are 1 + n r, as many as a whole number of latents has.

    Args:
        start: {"frames": uint8 (T, H, W, 3), "actions": the T - 1 actions between them}.
        world: whose frames and actions they must be.
        keep: how many frames a session can see.

    Raises:
        InputError: it is no such clip.
        FrameError: frames of the wrong size or dtype.
        ActionError: too many or too few actions, or actions of another space.
    """
    if not isinstance(start, Mapping) or "frames" not in start:
        raise InputError(f"start is {type(start).__name__}; allowed: a dict with 'frames' and 'actions'.")
    frames, (height, width) = np.asarray(start["frames"]), world.card.frame_size
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[1:] != (height, width, 3) or not len(frames):
        raise FrameError(
            f"start['frames'] has shape {frames.shape} and dtype {frames.dtype}; allowed: uint8 (T, {height}, {width}, "
            "3) with T >= 1. Resize with worldsim.data.frames.resize_frame."
        )
    actions = start.get("actions", [])
    try:
        part = actions
        while isinstance(part, dict):  # of a Dict space: each part has as many, also those within parts
            part = next(iter(part.values()))
        count = len(part)
    except (StopIteration, TypeError) as error:
        raise ActionError(
            f"start['actions'] are {actions!r:.80}; allowed: one action between each two frames."
        ) from error
    if count != len(frames) - 1:
        raise ActionError(
            f"start has {len(frames)} frames and {count} actions; there must be one action between each two frames: "
            f"{len(frames) - 1}."
        )
    flat = torch.zeros(0, world.codec.size)
    if count:
        try:
            world.codec.check_all(actions)
            flat = torch.from_numpy(world.codec.flatten(actions))
        except (IndexError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise ActionError(f"start['actions'] are not of the action space {world.action_space}: {error}") from error
        if flat.shape != (count, world.codec.size):
            raise ActionError(f"start['actions'] are not {count} actions of the space {world.action_space}.")
    stride = world.dynamics.config.frames_per_latent
    last = frames[-(1 + (min(keep, len(frames)) - 1) // stride * stride) :]
    return last, flat[count - (len(last) - 1) :]
