"""Clips to latents and back, by diffusers' causal video autoencoders: `AutoencoderKLWan` and its like.

The first latent of a clip stands for its first frame, every further one for the next r frames. A clip encodes each of
its frames from itself and earlier ones only, so that it can be gone on with.
Legend: B clips, T = 1 + n r frames, t = 1 + n latents, H W pixels, C h w latent.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from worldsim.errors import WorldError
from worldsim.models.autoencoder import DiffusersAutoencoder, grey_levels

PROBE_SIDE, PROBE_FRAMES = 64, 8  # of a clip that shows an autoencoder's stride
_ALONE = threading.Lock()  # diffusers keeps what a causal convolution has seen in the model, between two of its steps
CHANNELS = ("latent_channels", "z_dim")  # what diffusers' configs call the channels of a latent


class ClipAutoencoder(DiffusersAutoencoder):
    """A causal video autoencoder of diffusers.

    Args:
        model: its `encode` takes pixels in -1..1, (B, 3, T, H, W).
        temporal_stride: what a card says r is; None finds out, by a short clip.

    Raises:
        WorldError: no causal video autoencoder with a stride in time, or not with this one.
    """

    def __init__(self, model: Any, temporal_stride: int | None = None) -> None:
        """Wrap `model`."""
        channels = [int(model.config[name]) for name in CHANNELS if name in model.config]
        if not channels:
            raise WorldError(f"{type(model).__name__} names no latent channels; allowed: a config with {CHANNELS}.")
        super().__init__(model, channels[0])
        self.temporal_stride = self._find_stride()
        if temporal_stride not in (None, self.temporal_stride):
            raise WorldError(
                f"the card says that a latent of the autoencoder stands for {temporal_stride!r} frames; it stands for "
                f"{self.temporal_stride}."
            )

    def encode_raw(self, pixels: Tensor) -> Tensor:
        """Pixels in -1..1 of shape (B, 3, T, H, W) to latents (B, C, t, h, w) as the model makes them."""
        with _ALONE:
            return self.model.encode(pixels).latent_dist.mode()

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Latents to pixels, not clamped: (B, C, t, h, w) to (B, 3, T, H, W), or single frames without a time axis."""
        if latents.dim() == 4:
            return self.decode_raw(latents.unsqueeze(2))[:, :, 0]
        with _ALONE:
            return self.model.decode(latents).sample

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Uint8 clips (B, T, H, W, 3) to normalised latents (B, t, C, h, w) in float32; frames alike, without time."""
        if frames.dim() == 4:
            return self.encode(frames.unsqueeze(1))[:, 0]
        parameter = next(self.model.parameters())
        pixels = frames.to(parameter.device).permute(0, 4, 1, 2, 3).to(parameter.dtype) / 127.5 - 1  # (B, 3, T, H, W)
        raw = self.encode_raw(pixels.contiguous()).float().transpose(1, 2)  # (B, t, C, h, w)
        return (raw - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, t, C, h, w) to grey levels (B, T, H, W, 3); single frames alike, without time."""
        if latents.dim() == 4:
            return self.pixels(latents.unsqueeze(1))[:, 0]
        parameter = next(self.model.parameters())
        raw = latents.float() * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1)
        pixels = self.decode_raw(raw.to(parameter.dtype).transpose(1, 2).contiguous())  # (B, 3, T, H, W)
        return grey_levels(pixels).permute(0, 2, 3, 4, 1)

    def encode_clip(self, frames: Tensor) -> Tensor:
        """Uint8 frames of one clip (T, H, W, 3) to normalised latents (t, C, h, w)."""
        return self.encode(frames.unsqueeze(0))[0]

    def decode_clip(self, latents: Tensor) -> Tensor:
        """Normalised latents of one clip (t, C, h, w) to uint8 frames (T, H, W, 3)."""
        return self.decode(latents.unsqueeze(0))[0]

    @torch.no_grad()
    def _find_stride(self) -> int:
        pixels = next(self.model.parameters()).new_zeros(1, 3, 1 + PROBE_FRAMES, PROBE_SIDE, PROBE_SIDE)
        try:
            latents = self.encode_raw(pixels).shape[2]
            stride = PROBE_FRAMES // max(1, latents - 1)
            fits = stride > 1 and self.encode_raw(pixels[:, :, : 1 + stride]).shape[2] == 2
        except (AttributeError, RuntimeError, TypeError, ValueError) as error:
            raise WorldError(
                f"{type(self.model).__name__} does not encode a clip of {1 + PROBE_FRAMES} frames ({error!s:.200}); "
                "allowed: diffusers' causal video autoencoders."
            ) from error
        if not fits or stride * (latents - 1) != PROBE_FRAMES:
            raise WorldError(
                f"{type(self.model).__name__} makes {latents} latents of {1 + PROBE_FRAMES} frames, and others of "
                "shorter clips; allowed: one of the first frame, and one of each 2, 4 or 8 after it."
            )
        return stride


def is_of_clips(model: nn.Module) -> bool:
    """Whether a diffusers autoencoder convolves along time."""
    return any(isinstance(module, nn.Conv3d) for module in model.modules())
