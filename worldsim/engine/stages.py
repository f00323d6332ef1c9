"""The tensor functions that a step is made of. Runtimes compile these four and nothing else.

All take and give a batch of rows, first axis first, and no row depends on another.
Legend: B rows, K history frames, A action history, S noise levels, N frames remembered, L time layers, P patches,
H heads, E head width, D width, C h w latent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldsim.diffusion.schedules import add_noise
from worldsim.models.attention import Words
from worldsim.models.autoencoder import FrameAutoencoder
from worldsim.models.conditions import Past, Shared
from worldsim.models.dit import DiT
from worldsim.models.heads import reward_mean
from worldsim.models.kv_cache import KVCache
from worldsim.models.text import WORDS


@dataclass
class Stages:
    """The four functions of one runtime; `Prepare`, `Denoise`, `Judge` and `Decode` say what they take and give."""

    prepare: Callable[..., Any]
    denoise: Callable[..., Any]
    judge: Callable[..., Any]
    decode: Callable[..., Any]


def eager(dynamics: DiT, autoencoder: FrameAutoencoder | None = None) -> Stages:
    """The stages as torch runs them, operator by operator."""
    decode = Decode(autoencoder) if autoencoder is not None else _no_decoder
    return Stages(Prepare(dynamics), Denoise(dynamics), Judge(dynamics), decode)


class Prepare(nn.Module):
    """What all passes over a frame share."""

    def __init__(self, dynamics: DiT) -> None:
        """Of this model."""
        super().__init__()
        self.dynamics = dynamics

    def forward(
        self,
        history: Tensor,
        noise: Tensor,
        present: Tensor,
        actions: Tensor,
        known: Tensor,
        keys: Tensor,
        count: Tensor,
        sigma: Tensor,
        sigma_vector: Tensor,
        levels: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Prepare a frame.

        Args:
            history: the last K frames, oldest first, (B, K, C, h, w).
            noise: mixed into these, (B, K, C, h, w).
            present: which of them exist, (B, K) of 0 or 1.
            actions: the last A flattened actions, (B, A, action_size).
            known: which of them exist, (B, A) of 0 or 1.
            keys: of the frames remembered, oldest first, not turned, (B, N, L, P, H, E).
            count: how many of these are known, the last ones, (B,).
            sigma: noise level of the history, (1,).
            sigma_vector: its embedding, (1, D).
            levels: embeddings of the noise levels of the passes to come, (S, D).

        Returns:
            The history's embedding (B, P, D), the modulations of the passes (B, S, 6 layers + 2, D), the keys turned
            by their age (B, N, L, P, H, E), and the bias of what is not known (B, N).
        """
        dynamics = self.dynamics
        noisy = add_noise(history, noise, sigma)
        embedded = dynamics.embed_history(noisy.unsqueeze(1), present.unsqueeze(1))
        condition = dynamics.embed_actions(actions.unsqueeze(1), known.unsqueeze(1)) + sigma_vector  # (B, 1, D)
        past = dynamics.past(KVCache(keys, keys, count))
        return embedded.squeeze(1), dynamics.modulate(levels, condition).squeeze(3), past.keys, past.bias


class Denoise(nn.Module):
    """One pass over a frame."""

    cos: Tensor
    sin: Tensor

    def __init__(self, dynamics: DiT) -> None:
        """Of this model; places of its own latent size are computed once."""
        super().__init__()
        self.dynamics = dynamics
        weight, size = dynamics.embed.weight, torch.Size(dynamics.config.latent_size)
        for name, part in zip(("cos", "sin"), dynamics.places(size, weight.device), strict=True):
            self.register_buffer(name, part.to(weight.dtype), persistent=False)

    def forward(
        self,
        noisy: Tensor,
        embedded: Tensor,
        modulation: Tensor,
        keys: Tensor,
        values: Tensor,
        bias: Tensor,
        newest: Tensor,
        based: Tensor,
        *words: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Denoise.

        Args:
            noisy: the frame at its noise level, (B, C, h, w).
            embedded: from `Prepare`, (B, P, D).
            modulation: from `Prepare`, of this pass alone, (B, 6 layers + 2, D).
            keys: from `Prepare`, (B, N, L, P, H, E).
            values: of the frames remembered, (B, N, L, P, H, E).
            bias: from `Prepare`, (B, N).
            newest: the frame before, without noise, (B, C, h, w).
            based: whether there is one, (B,) of 0 or 1.
            words: keys, values and mask for each layer that looks at the prompt, see `flat`.

        Returns:
            The clean latents (B, C, h, w), features for `Judge` (B, P, D), and the frame's own keys and values, each
            (B, L, P, H, E).
        """
        dynamics, size = self.dynamics, noisy.shape[-2:]
        own = size == torch.Size(dynamics.config.latent_size)
        triples = iter(zip(words[::3], words[1::3], words[2::3], strict=True))
        shared = Shared(
            embedded=embedded.unsqueeze(1),
            condition=modulation,
            words=[next(triples) if block.text is not None else None for block in dynamics.blocks],  # type: ignore
            place=(self.cos, self.sin) if own else dynamics.places(size, noisy.device),
            seen=Past(keys, values, bias),
            newest=newest.unsqueeze(1),
            based=based.unsqueeze(1),
        )
        passed = dynamics.denoise(noisy.unsqueeze(1), modulation[:, None, :, None], shared)
        assert passed[2] is not None  # a frame alone always has keys and values
        return passed[0].squeeze(1).float(), passed[1].squeeze(1), *passed[2]


class Judge(nn.Module):
    """Reward and end of a frame."""

    def __init__(self, dynamics: DiT) -> None:
        """Of this model."""
        super().__init__()
        self.dynamics = dynamics

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Of features (B, P, D): the expected reward (B,) and the probability that the episode ended (B,)."""
        reward, ended = self.dynamics.judge(features.unsqueeze(1))
        return reward_mean(reward).squeeze(1), ended.float().sigmoid().squeeze(1)


class Decode(nn.Module):
    """Latents to pixels."""

    def __init__(self, autoencoder: FrameAutoencoder) -> None:
        """Of this autoencoder."""
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) to uint8 frames (B, H, W, 3)."""
        return self.autoencoder.decode(latents)


def flat(words: list[Words | None]) -> list[Tensor]:
    """The words of all layers that have any, as `Denoise` takes them."""
    return [part for word in words if word is not None for part in word]


def example(
    dynamics: DiT, rows: int, passes: int = 2, seed: int = 0
) -> dict[str, tuple[tuple[Tensor, ...], tuple[Tensor, ...]]]:
    """Random inputs of all stages by name, on which a runtime can be built and tried.

    Returns:
        For each stage the inputs that have a row each, and those that all rows share.
    """
    config, weight = dynamics.config, dynamics.embed.weight
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int, like: Tensor = weight) -> Tensor:
        return torch.randn(*shape, generator=generator).to(like)

    frame = (config.latent_channels, *config.latent_size)
    cache, full = dynamics.empty_cache(rows), torch.zeros((), device=weight.device)
    keys, values = (random(*part.shape) for part in (cache.keys, cache.values))
    width, patches = config.width, keys.shape[3]
    words: list[Tensor] = []
    for _ in config.text_layers:
        prompt = (rows, config.heads, WORDS + 1, width // config.heads)
        mask = (torch.arange(WORDS + 1) < 8).expand(rows, 1, 1, -1).contiguous().to(weight.device)
        words += [random(*prompt), random(*prompt), mask]
    known = torch.ones(rows, config.action_history).to(full)
    present = torch.ones(rows, config.history).to(full)
    count = (torch.arange(rows) % (config.context + 1)).to(weight.device)
    bias = torch.where(torch.arange(config.context, 0, -1).to(count) <= count.unsqueeze(1), 0.0, float("-inf"))
    history = [random(rows, config.history, *frame, like=full) for _ in range(2)]
    actions = random(rows, config.action_history, config.action_size, like=full)
    sigma = torch.full((1,), 0.1, device=weight.device)
    modulation = 0.3 * random(rows, 6 * len(config.pattern) + 2, width)
    return {
        "prepare": (
            (*history, present, actions, known, keys, count),
            (sigma, random(1, width), random(passes, width)),
        ),
        "denoise": (
            (
                random(rows, *frame, like=full),
                random(rows, patches, width),
                modulation,
                keys,
                values,
                bias,
                random(rows, *frame, like=full),
                present[:, 0].contiguous(),
                *words,
            ),
            (),
        ),
        "judge": ((random(rows, patches, width),), ()),
        "decode": ((random(rows, *frame, like=full),), ()),
    }


def _no_decoder(latents: Tensor) -> Tensor:
    raise NotImplementedError("these stages were made without an autoencoder")
