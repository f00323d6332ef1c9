"""Which frames of a clip are given: a task of offline video is a pattern (diffusion forcing, arXiv:2407.01392).

A given frame has noise level 0 in every pass; all others fall from 1 to 0 together.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldsim.errors import ConfigError


def given_frames(frames: int, *indices: int) -> Tensor:
    """Give some frames of a clip, bool (T,); negative indices count from the end.

    One index is image-to-video: `given_frames(8, 0)` goes on from a picture, `given_frames(8, -1)` leads up to it.

    Raises:
        ConfigError: an index outside of the clip.
    """
    found = torch.zeros(frames, dtype=torch.bool)
    for index in indices:
        if not -frames <= index < frames:
            raise ConfigError(f"frame {index} is not in a clip of {frames}; allowed: {-frames} to {frames - 1}.")
        found[index] = True
    return found


def extension(frames: int, known: int, *, before: bool = False) -> Tensor:
    """Give `known` frames in a row and extend the clip after them, or before them, bool (T,).

    Raises:
        ConfigError: there would be none to give, or none to sample.
    """
    if not 0 < known < frames:
        raise ConfigError(f"{known} of {frames} frames are known; allowed: 1 to {frames - 1}.")
    found = torch.arange(frames) < known
    return found.flip(0) if before else found


def between(frames: int, first: int = 1, last: int = 1) -> Tensor:
    """Give the first and the last frames of a clip, bool (T,): what lies between is sampled.

    Raises:
        ConfigError: nothing would lie between.
    """
    if min(first, last) < 0 or first + last >= frames:
        raise ConfigError(f"{first} first and {last} last of {frames} frames leave none between.")
    places = torch.arange(frames)
    return (places < first) | (places >= frames - last)
