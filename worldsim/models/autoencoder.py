"""Frames to latents and back, one frame at a time, so that every step can be shown at once.

Any diffusers autoencoder whose `encode` and `decode` work on single images fits (`AutoencoderTiny`, `AutoencoderKL`,
`AutoencoderDC`); those of clips are in `clip_autoencoder`. Legend: B batch, T frames, H W pixels, C h w latent.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim.errors import ConfigError

PART = 64  # frames of a clip that are encoded or decoded at once


class Autoencoder(Protocol):
    """What the rest of worldsim needs of an autoencoder.

    Attributes:
        temporal_stride: r, how many frames a latent stands for; the first latent of a clip always stands for one.
    """

    temporal_stride: int

    def encode(self, frames: Tensor) -> Tensor:
        """Uint8 frames (B, H, W, 3) to normalised latents (B, C, h, w), about zero mean and unit deviation."""
        ...

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) to uint8 frames (B, H, W, 3)."""
        ...

    def encode_clip(self, frames: Tensor) -> Tensor:
        """Uint8 frames of one clip (1 + n r, H, W, 3) to normalised latents (1 + n, C, h, w)."""
        ...

    def decode_clip(self, latents: Tensor) -> Tensor:
        """Normalised latents of one clip (1 + n, C, h, w) to uint8 frames (1 + n r, H, W, 3)."""
        ...


def fingerprint(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """A hash of named tensors, 16 hexadecimal digits; bf16 and float32 of equal values have the same."""
    digest = hashlib.sha256()
    for name, tensor in tensors:
        digest.update(name.encode())
        digest.update(tensor.float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def grey_levels(pixels: Tensor) -> Tensor:
    """Pixels in about -1..1 to grey levels 0..255, float32."""
    return (pixels.float().clamp(-1, 1) + 1) * 127.5


def rounded(levels: Tensor) -> Tensor:
    """Grey levels 0..255 to uint8."""
    return levels.round().to(torch.uint8).contiguous()


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """A small `diffusers.AutoencoderDC` (Chen et al. 2024, arXiv:2410.10733) behind a pixel unshuffle.

    The unshuffle moves `unshuffle` x `unshuffle` pixels into channels first, so that all convolutions run at a low
    resolution with many channels: on a CPU that learned far more per second than few channels at full resolution.
    """

    unshuffle: int = 8
    widths: tuple[int, ...] = (192,)  # channels of each level, from the unshuffled frame down to the latent
    encoder_blocks: tuple[int, ...] = (2,)
    decoder_blocks: tuple[int, ...] = (3,)
    latent_channels: int = 24

    def __post_init__(self) -> None:
        """Check that the levels fit together."""
        if not len(self.widths) == len(self.encoder_blocks) == len(self.decoder_blocks):
            raise ConfigError(
                f"widths {self.widths}, encoder_blocks {self.encoder_blocks} and decoder_blocks "
                f"{self.decoder_blocks} must be equally many."
            )
        if self.widths[-1] % self.latent_channels:
            raise ConfigError(f"the last of widths {self.widths} is no multiple of {self.latent_channels} channels.")
        if self.unshuffle < 1:
            raise ConfigError(f"unshuffle is {self.unshuffle}; it must be at least 1.")

    def build(self, frame_size: tuple[int, int] | None = None) -> FrameAutoencoder:
        """A freshly initialised autoencoder, for frames of this height and width if it is given."""
        from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC

        none = ((),) * len(self.widths)
        model = AutoencoderDC(
            in_channels=3 * self.unshuffle**2,
            latent_channels=self.latent_channels,
            encoder_block_out_channels=self.widths,
            decoder_block_out_channels=self.widths,
            encoder_layers_per_block=self.encoder_blocks,
            decoder_layers_per_block=self.decoder_blocks,
            encoder_qkv_multiscales=none,
            decoder_qkv_multiscales=none,
            encoder_out_shortcut=False,
        )
        for last in (model.encoder.conv_out, model.decoder.conv_out):  # the linear path alone, to begin with
            for parameter in last.parameters():  # type: ignore[union-attr]  -- both are convolutions here
                nn.init.zeros_(parameter)
        block = self.unshuffle * 2 ** (len(self.widths) - 1)
        return FrameAutoencoder(model, unshuffle=self.unshuffle, linear=block, frame_size=frame_size)


class DiffusersAutoencoder(nn.Module):
    """A diffusers autoencoder with latents normalised per channel: what those of frames and of clips have in common.

    Args:
        model: a diffusers autoencoder.
        channels: of a latent.
    """

    mean: Tensor
    std: Tensor
    temporal_stride = 1

    def __init__(self, model: Any, channels: int) -> None:
        """Wrap `model`; the latent statistics start as zero mean, unit deviation."""
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.zeros(channels), persistent=False)
        self.register_buffer("std", torch.ones(channels), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.mean.device

    @property
    def latent_channels(self) -> int:
        """Channels of a latent."""
        return self.mean.numel()

    def linear_path(self) -> list[nn.Conv2d]:
        """The linear maps down and up beside the model, or none."""
        return []

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the per-channel statistics that `encode` and `decode` normalise with, each of shape (C,)."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def fingerprint(self) -> str:
        """A hash of weights and statistics: which latents are its own."""
        return fingerprint([*self.state_dict().items(), ("mean", self.mean), ("std", self.std)])

    def encode(self, frames: Tensor) -> Tensor:
        """Uint8 frames (B, H, W, 3) to normalised latents (B, C, h, w) in float32."""
        raise NotImplementedError

    def pixels(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) to grey levels 0..255 float32 (B, H, W, 3)."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) to uint8 frames (B, H, W, 3)."""
        return rounded(self.pixels(latents.to(self.device)))

    def decode_raw(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) as the model makes them to pixels (B, 3, H, W), about -1..1, with gradients."""
        raise NotImplementedError

    def encode_clip(self, frames: Tensor) -> Tensor:
        """Uint8 frames of one clip (T, H, W, 3) to normalised latents (T, C, h, w)."""
        return torch.cat([self.encode(part) for part in frames.split(PART)])

    def decode_clip(self, latents: Tensor) -> Tensor:
        """Normalised latents of one clip (T, C, h, w) to uint8 frames (T, H, W, 3)."""
        return torch.cat([self.decode(part) for part in latents.split(PART)])


class FrameAutoencoder(DiffusersAutoencoder):
    """A diffusers autoencoder of single images, with a pixel unshuffle before it.

    Args:
        model: a diffusers autoencoder.
        unshuffle: pixels of a block moved into channels; 1 for models that take RGB.
        linear: side of the pixel blocks of a linear path beside the model, 0 for none. What is linear has a closed form
            (`start_linear`), and the network learns only the rest, which saves most of the training.
        frame_size: height and width of frames that are no multiple of a block: they are padded by their last row and
            column before they are encoded, and what is decoded is cropped to this size. None for all others.
    """

    def __init__(
        self, model: Any, unshuffle: int = 1, linear: int = 0, frame_size: tuple[int, int] | None = None
    ) -> None:
        """Wrap `model`."""
        channels = int(model.config.get("latent_channels", 4))
        super().__init__(model, channels)
        self.unshuffle, self.linear = unshuffle, linear
        odd = frame_size is not None and any(side % max(linear, unshuffle) for side in frame_size)
        self.frame_size = frame_size if odd else None
        if linear:
            self.down = nn.Conv2d(3 * linear**2, channels, 1)
            self.up = nn.Conv2d(channels, 3 * linear**2, 1)

    def linear_path(self) -> list[nn.Conv2d]:
        """The linear maps down and up, or none."""
        return [self.down, self.up] if self.linear else []

    @torch.no_grad()
    def start_linear(self, pixels: Tensor) -> None:
        """Set the linear path to the principal components of the blocks of `pixels` (B, 3, H, W) in -1..1."""
        blocks = (
            F.pixel_unshuffle(self._padded(pixels), self.linear).movedim(1, -1).flatten(0, -2).double()
        )  # (N, 3 u u)
        mean = blocks.mean(dim=0)
        values, vectors = torch.linalg.eigh((blocks - mean).T @ (blocks - mean) / len(blocks))
        channels = self.latent_channels
        scale = values[-channels:].clamp(min=1e-8).sqrt()
        down = vectors[:, -channels:].T / scale.unsqueeze(1)  # (C, 3 u u): whitened
        up = vectors[:, -channels:] * scale
        self.down.load_state_dict({"weight": down[:, :, None, None], "bias": -(down @ mean)})
        self.up.load_state_dict({"weight": up[:, :, None, None], "bias": mean})

    def encode_raw(self, pixels: Tensor) -> Tensor:
        """Pixels in -1..1 of shape (B, 3, H, W) to latents (B, C, h, w) as the model makes them."""
        pixels = self._padded(pixels)
        out = self.model.encode(F.pixel_unshuffle(pixels, self.unshuffle))
        found = [getattr(out, name) for name in ("latents", "latent") if hasattr(out, name)]
        latents = found[0] if found else out.latent_dist.mode()
        return latents + self.down(F.pixel_unshuffle(pixels, self.linear)) if self.linear else latents

    def decode_raw(self, latents: Tensor) -> Tensor:
        """The inverse of `encode_raw`, not clamped."""
        pixels = F.pixel_shuffle(self.model.decode(latents).sample, self.unshuffle)
        pixels = pixels + F.pixel_shuffle(self.up(latents), self.linear) if self.linear else pixels
        if self.frame_size is None:
            return pixels
        height, width = self.frame_size
        return pixels[..., :height, :width]

    def _padded(self, pixels: Tensor) -> Tensor:
        """Repeat the last row and column of pixels (B, 3, H, W) until blocks fit in."""
        if self.frame_size is None:
            return pixels
        block = max(self.linear, self.unshuffle)
        down, right = (-side % block for side in pixels.shape[-2:])
        return F.pad(pixels, (0, right, 0, down), mode="replicate")

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Uint8 frames (B, H, W, 3) to normalised latents (B, C, h, w) in float32."""
        parameter = next(self.model.parameters())
        pixels = frames.to(parameter.device).permute(0, 3, 1, 2).to(parameter.dtype) / 127.5 - 1  # (B, 3, H, W)
        raw = self.encode_raw(pixels.contiguous(memory_format=torch.channels_last)).float()
        return (raw - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)

    @torch.no_grad()
    def pixels(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, h, w) to grey levels 0..255 float32 (B, H, W, 3)."""
        parameter = next(self.model.parameters())
        raw = latents.float() * self.std.view(-1, 1, 1) + self.mean.view(-1, 1, 1)
        raw = raw.to(parameter.dtype).contiguous(memory_format=torch.channels_last)
        return grey_levels(self.decode_raw(raw)).permute(0, 2, 3, 1)
