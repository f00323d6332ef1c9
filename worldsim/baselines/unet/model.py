"""A U-Net that predicts the next frame from the last ones stacked as channels: the baseline of the dynamics.

The recipe is DIAMOND's (Alonso et al. 2024, arXiv:2405.12399) on the U-Net of diffusers: diffusion of pixels with EDM's
preconditioning, the last frames beside the noisy one, actions and noise level through adaptive group norms.
Legend: B batch, K history frames, A numbers in an action, H W pixels, E width of the embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim.baselines.unet import edm
from worldsim.diffusion.schedules import euler, sample
from worldsim.errors import ConfigError

TIME_SCALE = 32.0  # c_noise is within -1.6..0.8, the sinusoids of diffusers are made for hundreds


@dataclass(frozen=True, kw_only=True)
class UNetConfig:
    """The shape of the U-Net."""

    widths: tuple[int, ...] = (64, 64, 64, 64)
    """Channels of each level, from full resolution down by halves."""
    layers: int = 2
    """Residual blocks of each level on the way down; one more on the way up."""
    groups: int = 8
    """Of the group norms."""
    embedding: int = 256
    """Width of what conditions the norms."""
    patch: int = 1
    """Side of pixel blocks that are moved into channels first; 1 is the textbook's."""
    history: int = 4
    """Previous frames, stacked as channels."""
    action_size: int = 3
    """Numbers in a flattened action; the last `history` actions are given."""
    text_width: int = 384
    """Of the states of prompts, whose mean conditions the norms too."""
    offset_noise: float = 0.3
    """See `edm.add_noise`."""
    steps: int = 3
    """Denoising steps of a frame."""

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        if not self.widths or any(width % self.groups for width in self.widths):
            raise ConfigError(f"widths {self.widths} must be one or more multiples of groups ({self.groups}).")
        for name in ("layers", "patch", "history", "steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")

    def build(self) -> UNetDynamics:
        """A freshly initialised model."""
        return UNetDynamics(self)


class UNetDynamics(nn.Module):
    """The next frame as the mean of what the noisy one may have been, given the past and the actions."""

    def __init__(self, config: UNetConfig) -> None:
        """Build it so that it begins as the preconditioning alone: every block starts as the identity."""
        super().__init__()
        from diffusers.models.unets.unet_2d import UNet2DModel

        self.config = config
        levels, block = len(config.widths), config.patch**2
        self.unet = UNet2DModel(
            in_channels=3 * (config.history + 1) * block,
            out_channels=3 * block,
            time_embedding_dim=config.embedding,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            block_out_channels=config.widths,
            layers_per_block=config.layers,
            norm_num_groups=config.groups,
            attn_norm_num_groups=config.groups,
            attention_head_dim=config.groups if config.widths[-1] % 32 else 32,
            resnet_time_scale_shift="scale_shift",
            class_embed_type="identity",
        )
        width = config.embedding
        self.actions = nn.Sequential(
            nn.Linear(config.history * config.action_size, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.text = nn.Linear(config.text_width, width, bias=False)
        lasts = [module.conv2 for module in self.unet.modules() if type(module).__name__ == "ResnetBlock2D"]
        for last in (*lasts, self.unet.conv_out):
            for parameter in last.parameters():  # type: ignore[union-attr]  -- all are convolutions
                nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._compiled: Callable[..., Any] | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.text.weight.device

    def compile_unet(self) -> None:
        """Compile the U-Net for training, when it first runs; only passes with gradients use that."""
        self._compiled = torch.compile(self.unet.forward, dynamic=False)  # a function: no submodule

    def forward(self, noisy: Tensor, sigma: Tensor, past: Tensor, actions: Tensor, text: Tensor) -> Tensor:
        """What the network itself says, of unit size: (B, 3, H, W); arguments as of `denoise`."""
        scales, dtype = edm.scales(sigma, self.config.offset_noise), self.unet.dtype
        stacked = torch.cat([noisy * scales.into.view(-1, 1, 1, 1), past / edm.DATA], dim=1).to(dtype)
        if self.config.patch > 1:
            stacked = F.pixel_unshuffle(stacked, self.config.patch)
        stacked = stacked.contiguous(memory_format=torch.channels_last)
        given = self.actions(actions.flatten(1).to(dtype)) + self.text(text.to(dtype))
        unet = self._compiled if self._compiled is not None and torch.is_grad_enabled() else self.unet
        out = unet(stacked, TIME_SCALE * scales.noise, given, return_dict=False)[0]
        return F.pixel_shuffle(out, self.config.patch).float()

    def denoise(self, noisy: Tensor, sigma: Tensor, past: Tensor, actions: Tensor, text: Tensor) -> Tensor:
        """The clean frame, (B, 3, H, W).

        Args:
            noisy: pixels in -1..1 plus noise, (B, 3, H, W).
            sigma: deviation of the noise, (B,).
            past: the last K frames, oldest first, (B, 3 K, H, W) as `to_pixels` makes them.
            actions: the last K flattened actions up to the one that leads to the frame, (B, K, A).
            text: mean state of the prompt in force, (B, text_width).
        """
        scales = edm.scales(sigma, self.config.offset_noise)
        out = self(noisy, sigma, past, actions, text)
        return scales.skip.view(-1, 1, 1, 1) * noisy + scales.out.view(-1, 1, 1, 1) * out

    @torch.no_grad()
    def draw(self, noise: Tensor, past: Tensor, actions: Tensor, text: Tensor) -> Tensor:
        """The next frames, uint8 (B, H, W, 3), from standard normal noise (B, 3, H, W); the rest as of `denoise`.

        What is given may be on any device; the frames are on the model's.
        """
        levels = edm.get_schedule(self.config.steps)
        noise, past, actions, text = (part.to(self.device) for part in (noise, past, actions, text))

        def predict(x: Tensor, sigma: float) -> Tensor:
            return self.denoise(x, torch.full((len(x),), sigma, device=x.device), past, actions, text).clamp(-1, 1)

        return to_frames(sample(euler(levels[0] * noise, levels), predict))


def to_pixels(frames: Tensor) -> Tensor:
    """Frames uint8 (B, K, H, W, 3) as pixels in -1..1, stacked as channels (B, 3 K, H, W) in channels_last memory."""
    return frames.permute(0, 2, 3, 1, 4).flatten(3).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_frames(pixels: Tensor) -> Tensor:
    """Pixels in -1..1, cut to that, (B, 3, H, W) as uint8 frames (B, H, W, 3)."""
    return ((pixels.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()
