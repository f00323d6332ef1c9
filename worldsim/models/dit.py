"""The dynamics: a diffusion transformer over frames of latents, each frame with a noise level of its own.

Departures from the textbook DiT (Peebles & Xie 2022, arXiv:2212.09748):
- the conditioning of adaLN (noise level, actions) is per frame, not per video;
- every patch also gets the latents of the previous `history` frames at its place as extra channels, lightly noised:
  local evidence for local change (as in DIAMOND, Alonso et al. 2024, arXiv:2405.12399); attention along time on top
  remembers further back;
- layers attend either within a frame or along time at one place (factorised, as in ViViT, arXiv:2103.15691);
- the network predicts the clean latents (x-prediction), as a gated change of the newest frame: each token says how far
  to go from what was there to what it draws. What stands still then stays, where a model that draws every frame anew
  loses a little of it each time.

Legend: B batch, T frames, K history frames, C h w latent, P patches of a frame, D width, U distinct prompts, W words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worldsim.errors import ConfigError
from worldsim.models.attention import SpaceAttention, TextAttention, TimeAttention, Words
from worldsim.models.conditions import Conditions, Past, Prediction, Shared, Window
from worldsim.models.kv_cache import KVCache
from worldsim.models.layers import (
    MLP,
    Linear,
    OutLinear,
    SigmaEmbedder,
    in_fixed_rows,
    modulate,
    product,
    rope,
    rotate,
)

SPACE_THETA = 100.0  # slowest period of patch positions, in patches
TIME_THETA = 100.0  # the same of times, in frames; caches are tens of frames long
GATE_OPEN, GATE_START = 20.0, 2.0  # logits: all that is drawn, exactly (in float32); and mostly that
REWARD_BINS = 41


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """The shape of the dynamics."""

    latent_channels: int = 24
    latent_size: tuple[int, int] = (8, 8)  # of the frames it is trained on; other sizes run too
    patch: tuple[int, int, int] = (1, 1, 1)  # (time, height, width) latents in a token
    width: int = 192
    heads: int = 3
    pattern: str = "stssts"  # a layer each: s attends within a frame, t along time
    text_layers: tuple[int, ...] = (0, 3)  # layers that also look at the prompt
    mlp_ratio: float = 4.0
    history: int = 4  # previous frames given as channels
    action_size: int = 3  # numbers in a flattened action
    action_history: int = 4  # last actions given to each frame
    text_width: int = 384
    context: int = 8  # frames the cache remembers
    newest_base: bool = True  # whether frames begin as a gated change of the newest one; else the gate is left open

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        if self.width % (4 * self.heads):
            raise ConfigError(f"width {self.width} is not a multiple of 4 x heads ({self.heads}).")
        if not self.pattern or set(self.pattern) - set("st"):
            raise ConfigError(f"pattern {self.pattern!r} has other letters than 's' (space) and 't' (time).")
        if self.patch[0] != 1:
            raise ConfigError(f"patch {self.patch} spans several frames; only 1 is supported along time so far.")
        if any(layer >= len(self.pattern) for layer in self.text_layers):
            raise ConfigError(f"text_layers {self.text_layers} name layers past the pattern {self.pattern!r}.")

    def build(self) -> DiT:
        """A freshly initialised model."""
        return DiT(self)


class Block(nn.Module):
    """One layer: attention, perhaps a look at the prompt, an MLP; all gated, all starting as the identity."""

    def __init__(self, config: DiTConfig, layer: int) -> None:
        """`layer` says by the pattern what this block attends to."""
        super().__init__()
        width, heads = config.width, config.heads
        kind = config.pattern[layer]
        self.time_layer = config.pattern[:layer].count("t") if kind == "t" else -1
        self.attention = TimeAttention(width, heads) if kind == "t" else SpaceAttention(width, heads)
        self.text = TextAttention(width, heads, config.text_width) if layer in config.text_layers else None
        self.mlp = MLP(width, config.mlp_ratio)

    def forward(
        self, x: Tensor, modulation: Tensor, shared: Shared, words: Words | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """X (B, T, P, D) to (B, T, P, D), under this block's `modulation` (B, T, 6, 1, D).

        Returns:
            The frames; and of a time layer over a frame alone its key and value, for the cache.
        """
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.unbind(2)
        normed = modulate(_norm(x), shift_a, scale_a)
        kept: tuple[Tensor, Tensor] | None = None
        if isinstance(self.attention, SpaceAttention):
            mixed = self.attention(normed, shared.place)
        elif isinstance(shared.seen, Window):
            mixed = self.attention(normed, shared.seen.turn, shared.seen.mask)
        else:
            past, layer = shared.seen, self.time_layer
            mixed, key, value = self.attention.step(normed, past.keys[:, :, layer], past.values[:, :, layer], past.bias)
            kept = key, value
        x = torch.addcmul(x, gate_a, mixed)
        if self.text is not None and words is not None:
            x = x + self.text(_norm(x), words)
        return torch.addcmul(x, gate_m, self.mlp(modulate(_norm(x), shift_m, scale_m))), kept


def _norm(x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6)


class DiT(nn.Module):
    """The dynamics model; `forward` denoises frames, with or without a cache of earlier ones."""

    def __init__(self, config: DiTConfig) -> None:
        """Build the layers and initialise them."""
        super().__init__()
        self.config = config
        width, (_, height, patch_width) = config.width, config.patch
        patch_size = height * patch_width
        channels = (1 + config.history) * config.latent_channels * patch_size + config.history
        self.embed = Linear(channels, width)
        self.level = SigmaEmbedder(width)
        self.history_level = SigmaEmbedder(width)
        self.action = nn.Sequential(
            nn.Linear(config.action_history * (config.action_size + 1), width), nn.SiLU(), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(len(config.pattern)))
        self.modulation = Linear(width, (6 * len(config.pattern) + 2) * width)  # of all blocks and the output
        self.final = OutLinear(width, config.latent_channels * patch_size)
        self.gate = OutLinear(width, patch_size)
        self.reward_head = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, REWARD_BINS))
        self.end_head = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1))
        self._compiled: list[Callable[..., Any]] = []
        self._initialise()

    def compile_blocks(self) -> None:
        """Compile the blocks for training, which takes a minute or two once and then a third of the time.

        Only passes with gradients over windows use them; the runtimes of play compile whole stages instead.
        """
        self._compiled = [torch.compile(block, dynamic=False) for block in self.blocks]

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        # adaLN-zero: gates, prompt looks and outputs start at zero, so that every block starts as the identity.
        for block in self.blocks:
            assert isinstance(block, Block)
            if block.text is not None:
                nn.init.zeros_(block.text.out.weight)
        for last in (self.modulation, self.final, self.reward_head[-1], self.end_head[-1]):
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)
        self.open_gate(GATE_START if self.config.newest_base else GATE_OPEN)

    def open_gate(self, logit: float) -> None:
        """Let every token go as far from the newest frame to what it draws as `logit` says, whatever it sees."""
        nn.init.zeros_(self.gate.weight)
        nn.init.constant_(self.gate.bias, logit)
        self.gate.requires_grad_(self.config.newest_base)

    def muon_parameters(self) -> list[nn.Parameter]:
        """The hidden matrices, which Muon trains; everything else is AdamW's."""
        return [parameter for parameter in self.blocks.parameters() if parameter.ndim == 2]

    def empty_cache(self, batch: int, latent_size: tuple[int, int] | None = None) -> KVCache:
        """A cache for `batch` sessions that have seen nothing, in the dtype of the weights."""
        config = self.config
        height, width = latent_size or config.latent_size
        return KVCache.empty(
            layers=config.pattern.count("t"),
            batch=batch,
            patches=(height // config.patch[1]) * (width // config.patch[2]),
            heads=config.heads,
            frames=config.context,
            width=config.width // config.heads,
            dtype=self.embed.weight.dtype,
        )

    def words(self, text: Tensor, mask: Tensor) -> list[Words | None]:
        """Each layer's keys and values of the prompts; they depend on nothing else and can be kept."""
        text = text.to(self.embed.weight.dtype)
        return [None if block.text is None else block.text.words(text, mask) for block in self.blocks]  # type: ignore

    def forward(
        self, noisy: Tensor, sigma: Tensor, given: Conditions, *, cache: KVCache | None = None, causal: bool = True
    ) -> Prediction:
        """Predict the clean latents, the reward and the end of every frame.

        Args:
            noisy: latents at their noise levels, (B, T, C, h, w).
            sigma: noise level of each frame in 0..1, (B, T).
            given: history, actions and prompts.
            cache: earlier frames of the sessions; with one, T must be 1.
            causal: a frame sees only itself and `context` earlier frames; otherwise all (offline video).
        """
        shared = self.share(given, cache=cache, causal=causal)
        latents, features, written = self.denoise(noisy, self.modulate(self.level(sigma), shared.condition), shared)
        return Prediction(latents, *self.judge(features), written)

    def share(self, given: Conditions, *, cache: KVCache | None = None, causal: bool = True) -> Shared:
        """Do once what several passes over the same frames need; the arguments are those of `forward`."""
        index, device = given.prompt_index.flatten(), given.history.device
        words = self.words(given.text, given.text_mask)
        times = torch.arange(given.history.shape[1], device=device)
        if cache is None:
            cos, sin = rope(times.unsqueeze(-1), self.config.width // self.config.heads, TIME_THETA)  # (T, E)
            ages = times.unsqueeze(1) - times  # a frame remembers as many in a window as it does in play
            mask = (ages >= 0) & (ages <= self.config.context) if causal else torch.ones_like(ages, dtype=torch.bool)
            seen = Window((cos[:, None, None, None], sin[:, None, None, None]), mask.to(device))
        else:
            seen = self.past(cache)
        level = self.history_level(given.history_sigma)
        return Shared(
            embedded=self.embed_history(given.history, given.present),
            condition=self.embed_actions(given.actions, given.known) + level,
            words=[None if word is None else (word[0][index], word[1][index], word[2][index]) for word in words],
            place=self.places(given.history.shape[-2:], device),
            seen=seen,
            newest=given.newest,
            based=given.present[..., -1],
        )

    def embed_history(self, history: Tensor, present: Tensor) -> Tensor:
        """The history's part of the embedding, (B, T, P, D); see `Conditions` for the arguments."""
        own, weight = self._own, self.embed.weight
        known = self._patches((history * present[..., None, None, None]).flatten(2, 3))  # (B, T, P, K C high wide)
        exists = present.unsqueeze(2).expand(*known.shape[:3], -1)
        return product(torch.cat([known, exists], -1).to(weight.dtype), weight[:, own:], self.embed.bias)

    def embed_actions(self, actions: Tensor, known: Tensor) -> Tensor:
        """The embedding of the last actions, (B, T, D); see `Conditions` for the arguments."""
        known = known.unsqueeze(-1)
        flat = torch.cat([actions * known, known.expand_as(actions[..., :1])], dim=-1).flatten(-2)
        return in_fixed_rows(self.action, flat.to(self.embed.weight.dtype))

    def modulate(self, level: Tensor, condition: Tensor) -> Tensor:
        """The modulation of all layers (B, T, 6 L + 2, 1, D) from the embeddings of noise level and condition."""
        return self.modulation(nn.functional.silu(level + condition)).unflatten(-1, (-1, 1, self.config.width))

    def past(self, cache: KVCache) -> Past:
        """The cached keys turned by their age, the values, and a bias that hides what is not known."""
        ages = torch.arange(cache.frames, 0, -1, device=cache.keys.device)
        cos, sin = rope(-ages.unsqueeze(-1), self.config.width // self.config.heads, TIME_THETA)  # (N, E)
        keys = rotate(cache.keys, cos[:, None, None, None], sin[:, None, None, None])
        return Past(keys, cache.values, torch.where(ages <= cache.count.unsqueeze(-1), 0.0, float("-inf")))

    def denoise(
        self, noisy: Tensor, modulation: Tensor, shared: Shared
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor] | None]:
        """One pass.

        Returns:
            The clean latents (B, T, C, h, w); features (B, T, P, D) for `judge`; and of a frame alone its keys and
            values for the cache, each (B, L, P, H, E).
        """
        patches = self._patches(noisy).to(self.embed.weight.dtype)
        x = shared.embedded + product(patches, self.embed.weight[:, : self._own])  # (B, T, P, D)
        *parts, last = modulation.split([6] * len(self.blocks) + [2], dim=2)
        written = []
        blocks = self._compiled if self._compiled and torch.is_grad_enabled() else self.blocks
        for block, part, words in zip(blocks, parts, shared.words, strict=True):
            x, kept = block(x, part, shared, words)
            written += [] if kept is None else [kept]
        features = _norm(x)
        latents = self._unpatch(self.final(modulate(features, *last.unbind(2))), noisy.shape)
        latents = self._from_newest(latents, features, shared)
        if isinstance(shared.seen, Window):
            return latents, features, None
        none = shared.seen.keys[:, 0]  # the shape of it, where no layer attends along time
        keys, values = (torch.stack(parts, dim=1) for parts in zip(*written, strict=True)) if written else (none, none)
        return latents, features, (keys, values)

    def _from_newest(self, drawn: Tensor, features: Tensor, shared: Shared) -> Tensor:
        """The frames (B, T, C, h, w) as drawn, or where the gate closes as the newest frame was."""
        # Bits must not depend on the batch, and kernels compute the last numbers of a tensor by other code. A double
        # sigmoid differs by far less than is kept; sums and products are rounded alike, which a lerp is not.
        closed = 1 - torch.sigmoid(self.gate(features).double()).float()  # (B, T, P, high wide)
        closed = closed * shared.based[..., None, None].to(closed)  # a first frame has no newest one
        closed = self._unpatch(closed, torch.Size((*drawn.shape[:2], 1, *drawn.shape[3:])))
        drawn = drawn.float()
        return drawn + closed * (shared.newest.to(drawn) - drawn)

    def judge(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Reward logits (B, T, REWARD_BINS) and end logits (B, T) from the features of a pass over frames."""
        pooled = torch.cat([features.mean(dim=2), features.amax(dim=2)], dim=-1)  # (B, T, 2 D)
        return in_fixed_rows(self.reward_head, pooled), in_fixed_rows(self.end_head, pooled).squeeze(-1)

    @property
    def _own(self) -> int:
        """Columns of the embedding that a frame itself has, in front of its history's."""
        return self.config.latent_channels * self.config.patch[1] * self.config.patch[2]

    def _patches(self, frames: Tensor) -> Tensor:
        """Latents (B, T, c, h, w) as patches (B, T, P, c high wide)."""
        _, high, wide = self.config.patch
        parts = frames.unflatten(-1, (-1, wide)).unflatten(-3, (-1, high))  # (B, T, c, h', high, w', wide)
        return parts.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)

    def _unpatch(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Patches (B, T, P, C high wide) back to latents of `shape`."""
        _, high, wide = self.config.patch
        rows = shape[-2] // high
        parts = x.unflatten(2, (rows, -1)).unflatten(-1, (-1, high, wide))  # (B, T, h', w', C, high, wide)
        return parts.permute(0, 1, 4, 2, 5, 3, 6).reshape(shape)

    def places(self, size: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cos and sin of the patches' places, each (P, 1, 1, E)."""
        _, high, wide = self.config.patch
        rows = torch.arange(size[0] // high, device=device) * high
        columns = torch.arange(size[1] // wide, device=device) * wide
        places = torch.cartesian_prod(rows, columns).float()  # (P, 2)
        cos, sin = rope(places, self.config.width // self.config.heads, SPACE_THETA)
        return cos[:, None, None], sin[:, None, None]
