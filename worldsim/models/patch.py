"""Latents to patches and back. A patch may span several latents in time (tubelets, arXiv:2103.15691).

Legend: B batch, T frames, c channels, h w latent, pt ph pw size of a patch, P patches of a frame.
"""

from __future__ import annotations

from torch import Tensor


def patchify(frames: Tensor, patch: tuple[int, int, int]) -> Tensor:
    """Latents (B, T, c, h, w) as patches (B, T / pt, P, pt c ph pw)."""
    time, high, wide = patch
    parts = frames.unflatten(-1, (-1, wide)).unflatten(-3, (-1, high)).unflatten(1, (-1, time))
    # (B, T', pt, c, h', ph, w', pw)
    return parts.permute(0, 1, 4, 6, 2, 3, 5, 7).flatten(4).flatten(2, 3)


def unpatchify(patches: Tensor, patch: tuple[int, int, int], size: tuple[int, int]) -> Tensor:
    """Patches (B, T / pt, P, pt c ph pw) back to latents (B, T, c, h, w) of `size` (h, w)."""
    time, high, wide = patch
    parts = patches.unflatten(2, (size[0] // high, -1)).unflatten(-1, (time, -1, high, wide))
    # (B, T', h', w', pt, c, ph, pw)
    frames = parts.permute(0, 1, 4, 5, 2, 6, 3, 7)
    return frames.flatten(-2).flatten(-3, -2).flatten(1, 2)
