"""Check, resize and extract frames."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image

from worldsim.errors import FrameError


def check_frames(frames: np.ndarray, name: str = "frame", dims: int = 3) -> np.ndarray:
    """Return `frames` if they are uint8 RGB with `dims` dimensions, (H, W, 3) or (T, H, W, 3).

    Raises:
        FrameError: another dtype or shape.
    """
    array = np.asarray(frames)
    if array.dtype != np.uint8 or array.ndim != dims or array.shape[-1] != 3:
        shape = "(H, W, 3)" if dims == 3 else "(T, H, W, 3)"
        raise FrameError(f"{name} has dtype {array.dtype} and shape {array.shape}; allowed: uint8 of shape {shape}.")
    return array


def resize_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an RGB frame to `size` (height, width): area average when shrinking, bicubic when growing.

    Raises:
        FrameError: `frame` is not uint8 (H, W, 3).
    """
    frame = check_frames(frame)
    if frame.shape[:2] == tuple(size):
        return frame.copy()
    shrink = frame.shape[0] >= size[0] and frame.shape[1] >= size[1]
    method = Image.Resampling.BOX if shrink else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(frame).resize((size[1], size[0]), method))


def see_frame(env: gym.Env, observation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the frame of `env`, at `size` (height, width): the observation if it is a frame, else the rendering.

    Raises:
        FrameError: neither is uint8 (H, W, 3).
    """
    array = observation if isinstance(observation, np.ndarray) else np.empty(0)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[-1] != 3:
        array = np.asarray(env.render())
    return resize_frame(array, size)
