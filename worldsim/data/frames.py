"""Check, resize and extract frames."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from PIL import Image

from worldsim.errors import FrameError

SMALLEST_PICTURE = 8  # pixels a side


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


def is_picture(observation: Any, space: spaces.Space) -> bool:
    """Say whether an observation is a picture: uint8 RGB, as its space says, from 0 to 255, at least 8 pixels a side.

    A grid of symbols (MiniGrid's 7 x 7 x 3) is none.
    """
    return (
        isinstance(observation, np.ndarray)
        and isinstance(space, spaces.Box)
        and observation.dtype == space.dtype == np.uint8
        and observation.shape == space.shape
        and observation.ndim == 3
        and observation.shape[-1] == 3
        and min(observation.shape[:2]) >= SMALLEST_PICTURE
        and not space.low.any()
        and bool((space.high == 255).all())
    )


def see_frame(env: gym.Env, observation: Any, size: tuple[int, int]) -> np.ndarray:
    """Return the frame of `env`, at `size` (height, width): the observation if it is a picture, else the rendering.

    An environment without a render mode shows its observation.

    Raises:
        FrameError: neither is uint8 (H, W, 3).
    """
    if is_picture(observation, env.observation_space) or (env.render_mode is None and np.ndim(observation) == 3):
        return resize_frame(observation, size)  # what does not render has no other picture than what it observes
    rendered = np.asarray(env.render())
    if rendered.dtype == np.uint8 and rendered.ndim == 3 and rendered.shape[-1] == 4:
        rendered = rendered[..., :3]  # without its opacity
    try:
        return resize_frame(rendered, size)
    except FrameError as error:
        raise FrameError(
            f"{error} The observation is no picture (uint8 RGB from 0 to 255, as the observation space says, at least "
            f"{SMALLEST_PICTURE} pixels a side), so render() must return one: wrap the environment."
        ) from error
