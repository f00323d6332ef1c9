"""The tensor functions that a step is made of. Runtimes compile these three and nothing else.

All take and give a batch of rows, first axis first, and no row depends on another.
Legend: B rows, K history frames, A action history, N frames remembered, L time layers, P patches, D width, H heads,
E head width, C h w latent, W text tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldsim.diffusion.schedules import add_noise
from worldsim.models.attention import TextKV
from worldsim.models.autoencoder import DiffusersAutoencoder, rounded
from worldsim.models.conditioning import Context, ContextInputs
from worldsim.models.dit import DiT
from worldsim.models.heads import reward_mean
from worldsim.models.kv_cache import KVCache, RotatedCache


@dataclass
class Stages:
    """The functions of one runtime; `Encode`, `Denoise` and `Decode` say what they take and give."""

    encode: Callable[..., Any]
    denoise: Callable[..., Any]
    decode: Callable[..., Any]

    def frames(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to uint8 frames (B, H, W, 3), or clips of them."""
        return rounded(self.decode(latents))


def eager(dynamics: DiT, autoencoder: DiffusersAutoencoder | None = None) -> Stages:
    """The stages as torch runs them, operator by operator."""
    decode = Decode(autoencoder) if autoencoder is not None else _no_decoder
    return Stages(Encode(dynamics), Denoise(dynamics), decode)


class Encode(nn.Module):
    """What all passes over the next frame of each row share: `DiT.encode_context` and the cache, in flat tensors."""

    def __init__(self, dynamics: DiT) -> None:
        """Of this model."""
        super().__init__()
        self.dynamics = dynamics

    def forward(
        self,
        history: Tensor,
        history_noise: Tensor,
        history_sigma: Tensor,
        history_mask: Tensor,
        actions: Tensor,
        action_mask: Tensor,
        keys: Tensor,
        count: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Encode.

        Args:
            history: the last K frames, oldest first, (B, K, C, h, w); at least the frame before.
            history_noise: what is mixed into these, (B, K, C, h, w).
            history_sigma: how much of it, the same for all rows, (B,).
            history_mask: which of them exist, (B, K) of 0 or 1.
            actions: the last A flattened actions, (B, A, action_size).
            action_mask: which of them exist, (B, A) of 0 or 1.
            keys: of the frames remembered, oldest first, not rotated, (B, N, L, P, H, E).
            count: how many of these are known, the last ones, (B,).

        Returns:
            What the history adds to each token (B, P, D), what modulates the frame (B, D), the keys rotated by their
            age (B, N, L, P, H, E), and the bias of what is not known (B, N).
        """
        dynamics, size = self.dynamics, (history.shape[-2], history.shape[-1])
        no_text: list[TextKV | None] = [None] * len(dynamics.config.pattern)
        given = ContextInputs(
            actions=actions.unsqueeze(1),
            action_mask=action_mask.unsqueeze(1),
            text=no_text,
            previous=history[:, -1:],
            previous_mask=history_mask[:, -1:],
        )
        if dynamics.config.history:
            given.history = add_noise(history, history_noise, history_sigma).unsqueeze(1)
            given.history_mask, given.history_sigma = history_mask.unsqueeze(1), history_sigma[:1].unsqueeze(1)
        context = dynamics.encode_context(given)
        frame = context.frame.squeeze(1)
        tokens = context.tokens
        if tokens is None:
            tokens = frame.new_zeros(frame.shape[0], 1, dynamics.config.patches(size), frame.shape[1])
        rotated = KVCache(keys, keys, count).rotated()
        return tokens.squeeze(1), frame, rotated.keys, rotated.bias


class Denoise(nn.Module):
    """One denoising pass over the next frame of each row: `DiT.forward` in flat tensors."""

    def __init__(self, dynamics: DiT) -> None:
        """Of this model."""
        super().__init__()
        self.dynamics = dynamics

    def forward(
        self,
        noisy: Tensor,
        sigma: Tensor,
        tokens: Tensor,
        frame: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor,
        previous: Tensor,
        previous_mask: Tensor,
        *text: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Denoise.

        Args:
            noisy: the frame at its noise level, (B, C, h, w).
            sigma: this noise level, the same for all rows, (B,).
            tokens: from `Encode`, (B, P, D).
            frame: from `Encode`, (B, D).
            keys: from `Encode`, (B, N, L, P, H, E).
            values: of the frames remembered, (B, N, L, P, H, E).
            bias: from `Encode`, (B, N).
            previous: the frame before, without noise, (B, C, h, w).
            previous_mask: whether there is one, (B,) of 0 or 1.
            text: keys, values and mask for each layer that looks at the prompt, see `flat`.

        Returns:
            What the model predicts (B, C, h, w), with a learned variance (B, 2 C, h, w); the expected reward (B,), the
            probability that the episode terminated (B,), each (B, r) where a latent stands for r frames, and the
            latent's own keys and values, each (B, L, P, H, E).
        """
        dynamics = self.dynamics
        triples = iter(zip(text[::3], text[1::3], text[2::3], strict=True))
        text_layers, layers = dynamics.config.text_layers, len(dynamics.config.pattern)
        context = Context(
            frame=frame.unsqueeze(1),
            text=[TextKV(*next(triples)) if i in text_layers else None for i in range(layers)],
            previous=previous.unsqueeze(1),
            previous_mask=previous_mask.unsqueeze(1),
            tokens=tokens.unsqueeze(1),
        )
        cache = RotatedCache(keys, values, bias)
        out = dynamics(noisy.unsqueeze(1), sigma[:1].unsqueeze(1), context, cache=cache)
        # In double, as the gate of `DiT`: a kernel computes the last numbers of a tensor by other code.
        reward, terminated = reward_mean(out.reward).squeeze(1), out.termination.double().sigmoid().float().squeeze(1)
        sample = out.sample if out.log_var is None else torch.cat([out.sample, out.log_var], dim=2)
        return sample.squeeze(1), reward, terminated, out.kv[0].squeeze(1), out.kv[1].squeeze(1)


class Decode(nn.Module):
    """Latents to pixels; not rounded, as rounding would hide that a batch has other bits in all but a few places."""

    def __init__(self, autoencoder: DiffusersAutoencoder) -> None:
        """Of this autoencoder."""
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to grey levels (B, H, W, 3), or clips of them, both with a time axis after B."""
        return self.autoencoder.pixels(latents)


def flat(text: list[TextKV | None]) -> list[Tensor]:
    """The keys, values and masks of all layers that have any, as `Denoise` takes them."""
    return [part for layer in text if layer is not None for part in layer]


def example(dynamics: DiT, rows: int, seed: int = 0) -> dict[str, tuple[Tensor, ...]]:
    """Random inputs of all stages by name, on which a runtime can be built and tried."""
    config, device = dynamics.config, dynamics.device
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    frame = (config.latent_channels, *config.latent_size)
    cache = KVCache.empty(config, rows, dtype=dynamics.dtype, device=device)
    keys, values = (random(*part.shape, dtype=dynamics.dtype) for part in (cache.keys, cache.values))
    text: list[Tensor] = []
    for _ in config.text_layers:
        prompt = (rows, config.heads, config.text_tokens + 1, config.width // config.heads)
        mask = (torch.arange(config.text_tokens + 1) < 8).expand(rows, 1, 1, -1).contiguous().to(device)
        text += [random(*prompt, dtype=dynamics.dtype), random(*prompt, dtype=dynamics.dtype), mask]
    seen = max(config.history, 1)
    count = (torch.arange(rows) % (config.context + 1)).to(device)
    levels = torch.full((rows,), 0.1, device=device)
    encode = (
        random(rows, seen, *frame), random(rows, seen, *frame), levels, torch.ones(rows, seen, device=device),
        random(rows, config.action_history, config.action_size),
        torch.ones(rows, config.action_history, device=device), keys, count,
    )  # fmt: skip
    bias = torch.where(torch.arange(config.context, 0, -1).to(count) <= count.unsqueeze(1), 0.0, float("-inf"))
    denoise = (
        random(rows, *frame), levels + 0.6, random(rows, config.patches(), config.width, dtype=dynamics.dtype),
        random(rows, config.width, dtype=dynamics.dtype), keys, values, bias, random(rows, *frame),
        torch.ones(rows, device=device), *text,
    )  # fmt: skip
    return {"encode": encode, "denoise": denoise, "decode": (random(rows, *frame),)}


def _no_decoder(latents: Tensor) -> Tensor:
    raise NotImplementedError("these stages were made without an autoencoder")
