"""The dynamics: a diffusion transformer over frames of latents, each frame with a noise level of its own.

Departures from the textbook DiT (Peebles & Xie 2022, arXiv:2212.09748):
- the conditioning of adaLN (noise level, actions) is per frame, not per video;
- layers attend either within a frame or along time at one place (factorised, as in ViViT, arXiv:2103.15691);
- a frame of noise level 0 is context: tasks are patterns of noise levels (diffusion forcing, arXiv:2407.01392);
- with `newest_base` the output is a gated change of the frame before: each token says how far to go from what was there
  to what it predicts. What stands still then stays, where a model that draws every frame anew loses a little of it.

Legend: B batch, T frames, C h w latent, P patches of a frame, D width, N frames in the cache, L time layers, H heads,
E head width, U distinct prompts, W text tokens. `pt` is a patch's size in time; of T frames there are T / pt of tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldsim.models import conditioning as inputs
from worldsim.models.attention import TIME, Attention, CrossAttention, LayerCache, TextKV
from worldsim.models.conditioning import Context, ContextInputs, optional, text_kv
from worldsim.models.config import DiTConfig
from worldsim.models.heads import Heads
from worldsim.models.initialise import initialise
from worldsim.models.kv_cache import KVCache, RotatedCache
from worldsim.models.layers import MLP, FrameLinear, Linear, NarrowLinear, modulate, norm
from worldsim.models.masks import Mask, time_mask
from worldsim.models.patch import patchify, unpatchify
from worldsim.models.rope import Rotation, space_rotation, time_rotation


@dataclass
class DiTOutput:
    """What the dynamics predict of each frame.

    Attributes:
        sample: the clean latents, the velocity or the noise, as the config's `output` says, float32 (B, T, C, h, w).
        reward: logits over the reward bins (see `heads`), (B, T, REWARD_BINS).
        termination: logit that the episode ended with the frame, (B, T).
        log_var: what the config's `learned_variance` adds, (B, T, C, h, w).
        kv: with a cache, the frames' keys and values to append to it, each (B, T / pt, L, P, H, E).
    """

    sample: Tensor
    reward: Tensor
    termination: Tensor
    log_var: Tensor | None = None
    kv: tuple[Tensor, Tensor] | None = None


class Block(nn.Module):
    """One layer: attention, perhaps a look at the prompt and at memory, an MLP; all starting as the identity."""

    compiled: Callable[..., Any] | None = None  # the same, for passes with gradients

    def __getstate__(self) -> dict[str, Any]:
        """Copies compute with weights of their own: what was compiled has those of the original."""
        return {name: part for name, part in super().__getstate__().items() if name != "compiled"}

    def __init__(self, config: DiTConfig, layer: int) -> None:
        """`layer` says by the config's pattern what this block attends to."""
        super().__init__()
        width, heads, reads = config.width, config.heads, layer in config.text_layers
        self.attention = Attention(width, heads, config.pattern[layer])  # type: ignore[arg-type]
        self.text = CrossAttention(width, heads, config.text_width) if reads else None
        self.memory = CrossAttention(width, heads, config.memory_width) if reads and config.memory_width else None
        self.mlp = MLP(width, config.mlp_ratio)

    def forward(
        self, x: Tensor, modulation: Tensor, rotation: Rotation, mask: Tensor | None, past: LayerCache | None,
        text: TextKV | None, memory: TextKV | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """X (B, T, P, D) to the same, under this block's `modulation` (B, T, 6, 1, D); and its keys and values."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.unbind(2)
        mixed, keys, values = self.attention(modulate(norm(x), shift_a, scale_a), rotation, mask, past)
        x = torch.addcmul(x, gate_a, mixed)
        if self.text is not None and text is not None:
            x = x + self.text(norm(x), text)
        if self.memory is not None and memory is not None:
            x = x + self.memory(norm(x), memory)
        return torch.addcmul(x, gate_m, self.mlp(modulate(norm(x), shift_m, scale_m))), keys, values


class DiT(nn.Module):
    """The dynamics model: `encode_context` once for some frames, `forward` for every pass over them."""

    def __init__(self, config: DiTConfig) -> None:
        """Build the layers and initialise them."""
        super().__init__()
        self.config, width, channels = config, config.width, config.latent_channels
        patch = channels * config.patch[0] * config.patch[1] * config.patch[2]
        self.patch = Linear(patch, width)
        self.noise = optional(patch if config.fresh_noise else 0, width)
        self.sigma = inputs.SigmaEmbedder(width)
        self.actions = inputs.ActionEmbedder(config.action_history, config.action_size, width)
        self.history = inputs.HistoryEmbedder(config.history, channels, config.patch, width) if config.history else None
        self.camera, self.image = optional(config.camera_size, width), optional(config.image_width, width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(len(config.pattern)))
        self.silu = nn.SiLU()
        self.modulation = FrameLinear(width, (6 * len(config.pattern) + 2) * width)  # of all blocks and the output
        self.final = NarrowLinear(width, patch * (2 if config.learned_variance else 1))
        self.gate = NarrowLinear(width, patch // channels)
        self.heads = Heads(width, config.patch[0] * config.frames_per_latent)
        initialise(self)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return self.patch.weight.dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.patch.weight.device

    def encode_context(self, given: ContextInputs) -> Context:
        """Encode what several passes over the same frames share, whatever their noise level."""
        step = self.config.patch[0]  # several frames in a patch: it has the actions of its last, the past of its first
        frame = self.actions(given.actions[:, step - 1 :: step], given.action_mask[:, step - 1 :: step])
        tokens = None
        if self.history is not None and given.history is not None:
            frame = frame + self.history.sigma(given.history_sigma[:, ::step])  # type: ignore[index]
            tokens = self.history(given.history[:, ::step], given.history_mask[:, ::step])  # type: ignore[index]
        for embedder, extra in ((self.camera, given.camera), (self.image, given.image)):
            if embedder is not None and extra is not None:
                frame = frame + embedder(extra[:, ::step].to(self.dtype))
        text = given.text
        if not isinstance(text, list):
            index, projected = text.index[:, ::step], text_kv(self, text.states, text.mask)
            text = [None if one is None else inputs.at_frames(one, index) for one in projected]
        memory = None
        if given.memory is not None:
            projected = text_kv(self, given.memory, torch.ones_like(given.memory[..., 0], dtype=torch.bool), "memory")
            memory = [None if one is None else inputs.every_frame(one, frame.shape[1]) for one in projected]
        before = given.previous, given.previous_mask
        previous, exists = (part[:, ::step].repeat_interleave(step, 1) for part in before) if step > 1 else before
        return Context(frame, text, previous, exists, tokens, memory)

    def forward(
        self, x: Tensor, sigma: Tensor, context: Context, *, mask: Mask = "causal",
        cache: KVCache | RotatedCache | None = None, noise: Tensor | None = None,
    ) -> DiTOutput:  # fmt: skip
        """Predict frames from themselves at their noise levels, from one another, and from their context.

        Args:
            x: latents at their noise levels, (B, T, C, h, w).
            sigma: noise level of each frame in 0..1, (B, T), or (1, T) for all rows alike; 0 is a context frame. Equal
                within a patch.
            context: from `encode_context`.
            mask: which frames see which: "causal" (itself and `context` earlier ones), "full", or bool (T/pt, T/pt).
            cache: earlier frames, which all frames see too as far as the mask reaches; it is not changed.
            noise: fresh noise like x for passes below noise level 1, where the model has such an input.
        """
        config, size, step = self.config, (x.shape[-2], x.shape[-1]), self.config.patch[0]
        tokens = self.patch(patchify(x, config.patch).to(self.dtype))  # (B, T, P, D)
        if context.tokens is not None:
            tokens = tokens + context.tokens
        if self.noise is not None and noise is not None:
            tokens = tokens + self.noise(patchify(noise, config.patch).to(self.dtype))
        modulation = self.modulation(self.silu(self.sigma(sigma[:, ::step]) + context.frame))
        *parts, last = modulation.unflatten(-1, (-1, 1, config.width)).split([6] * len(self.blocks) + [2], dim=2)
        frames, head = tokens.shape[1], config.width // config.heads
        space = space_rotation(size, config.patch[1:], head, x.device)
        time = time_rotation(0, frames, head, x.device)
        cache = cache.rotated() if isinstance(cache, KVCache) else cache
        pasts, kv = iter(cache.layers() if cache is not None else []), []
        seen = time_mask(mask, frames, config.context, x.device, None if cache is None else cache.keys.shape[1])
        for i, (block, part) in enumerate(zip(self.blocks, parts, strict=True)):
            run = block.compiled if block.compiled is not None and torch.is_grad_enabled() else block
            along_time, memory = config.pattern[i] == TIME, None if context.memory is None else context.memory[i]
            axis = (time, seen, next(pasts, None)) if along_time else (space, None, None)
            tokens, keys, values = run(tokens, part, *axis, context.text[i], memory)  # type: ignore[operator]
            kv += [(keys, values)] if along_time and cache is not None else []
        features = norm(tokens)
        out = unpatchify(self.final(modulate(features, *last.unbind(2))), config.patch, size).float()
        out, *log_var = out.chunk(2, dim=2) if config.learned_variance else (out,)
        stored = None
        if cache is not None:  # without time layers there is nothing to store
            both = [torch.stack(side, dim=2) for side in zip(*kv, strict=True)] if kv else [cache.keys[:, :frames]] * 2
            stored = both[0], both[1]
        sample, (reward, termination) = self._from_newest(out, features, context), self.heads(features)
        return DiTOutput(sample, reward, termination, log_var[0] if log_var else None, stored)

    def _from_newest(self, sample: Tensor, features: Tensor, context: Context) -> Tensor:
        """Frames (B, T, C, h, w) as predicted, or as the frame before was where the gate closes."""
        # Bits must not depend on the batch, and kernels compute the last numbers of a tensor by other code. A double
        # sigmoid differs by far less than is kept; sums and products are rounded alike, which a lerp is not.
        closed = 1 - torch.sigmoid(self.gate(features).double()).float()  # (B, T, P, pt ph pw)
        closed = unpatchify(closed, self.config.patch, (sample.shape[-2], sample.shape[-1]))  # (B, T, 1, h, w)
        closed = closed * context.previous_mask[..., None, None, None].to(closed)  # a first frame has none before it
        return sample + closed * (context.previous.to(sample) - sample)
