"""The dynamics: a diffusion transformer over frames of latents, each frame with a noise level of its own.

Departures from the textbook DiT (Peebles & Xie 2022, arXiv:2212.09748):
- the conditioning of adaLN (noise level, actions) is per frame, not per video;
- every patch also gets the latents of the previous `history` frames at its place as extra channels, lightly noised:
  local evidence for local change (as in DIAMOND, Alonso et al. 2024, arXiv:2405.12399); attention along time on top
  remembers further back;
- layers attend either within a frame or along time at one place (factorised, as in ViViT, arXiv:2103.15691);
- the network predicts the clean latents (x-prediction).

Legend: B batch, T frames, K history frames, C h w latent, P patches of a frame, D width, U distinct prompts, W words.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from worldsim.errors import ConfigError
from worldsim.models.attention import SpaceAttention, TextAttention, TimeAttention, Words
from worldsim.models.cache import FrameCache
from worldsim.models.layers import MLP, LevelEmbedding, modulate, rope, rotate

SPACE_THETA = 100.0  # slowest period of patch positions, in patches
TIME_THETA = 100.0  # the same of times, in frames; caches are tens of frames long
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


@dataclass
class Conditions:
    """What the frames are predicted from.

    Attributes:
        history: the previous K frames of each frame, oldest first, (B, T, K, C, h, w).
        present: which of them exist, (B, T, K) of 0 or 1; where 0 the history is ignored.
        history_sigma: the noise level that was mixed into the history, (B, T).
        actions: the last A flattened actions up to the one that led to the frame, oldest first, (B, T, A, action_size).
        known: which of these actions exist, (B, T, A) of 0 or 1.
        text: states of the distinct prompts, (U, W, text_width).
        text_mask: which words exist, bool (U, W).
        prompt_index: which prompt is in force at each frame, (B, T).
    """

    history: Tensor
    present: Tensor
    history_sigma: Tensor
    actions: Tensor
    known: Tensor
    text: Tensor
    text_mask: Tensor
    prompt_index: Tensor


@dataclass
class Prediction:
    """What the dynamics says of each frame.

    Attributes:
        latents: the clean latents, (B, T, C, h, w).
        reward: logits over the reward bins (see `heads`), (B, T, REWARD_BINS).
        ended: logit that the episode terminated at the frame, (B, T).
    """

    latents: Tensor
    reward: Tensor
    ended: Tensor


@dataclass
class Shared:
    """What all passes over the same frames have in common, whatever their noise: see `DiT.share`.

    Attributes:
        embedded: the embedding of the history, (B, T, P, D).
        condition: the embedding of the actions and of the history's noise level, (B, T, D).
        words: of each layer that looks at the prompt, those in force at each frame.
        place: cos and sin of the patches' places.
        time: cos and sin of the frames' times.
        mask: which frames each frame sees, (B P or 1, 1, T, N + T).
        past: keys, turned by their age, and values of the cached frames, each (L, B, P, H, N, E); None without a cache.
        cache: where they came from.
    """

    embedded: Tensor
    condition: Tensor
    words: list[Words | None]
    place: tuple[Tensor, Tensor]
    time: tuple[Tensor, Tensor]
    mask: Tensor
    past: tuple[Tensor, Tensor] | None
    cache: FrameCache | None


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

    def forward(self, x: Tensor, modulation: Tensor, shared: Shared, words: Words | None, write: bool) -> Tensor:
        """X (B, T, P, D) to (B, T, P, D), under this block's `modulation` (B, T, 6, 1, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation.unbind(2)
        normed = modulate(_norm(x), shift_a, scale_a)
        if isinstance(self.attention, TimeAttention):
            layer, cache, past = self.time_layer, shared.cache, shared.past
            keep = partial(cache.write, layer) if write and cache is not None else None
            own = None if past is None else (past[0][layer], past[1][layer])
            mixed = self.attention(normed, shared.time, shared.mask, own, keep)
        else:
            mixed = self.attention(normed, shared.place)
        x = torch.addcmul(x, gate_a, mixed)
        if self.text is not None and words is not None:
            x = x + self.text(_norm(x), words)
        return torch.addcmul(x, gate_m, self.mlp(modulate(_norm(x), shift_m, scale_m)))


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
        self.embed = nn.Linear(channels, width)
        self.level = LevelEmbedding(width)
        self.history_level = LevelEmbedding(width)
        self.action = nn.Sequential(
            nn.Linear(config.action_history * (config.action_size + 1), width), nn.SiLU(), nn.Linear(width, width)
        )
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(len(config.pattern)))
        self.modulation = nn.Linear(width, (6 * len(config.pattern) + 2) * width)  # of all blocks and the output
        self.final = nn.Linear(width, config.latent_channels * patch_size)
        self.reward_head = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, REWARD_BINS))
        self.end_head = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 1))
        self._initialise()

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

    def muon_parameters(self) -> list[nn.Parameter]:
        """The hidden matrices, which Muon trains; everything else is AdamW's."""
        return [parameter for parameter in self.blocks.parameters() if parameter.ndim == 2]

    def empty_cache(self, batch: int, latent_size: tuple[int, int] | None = None) -> FrameCache:
        """A cache for `batch` sessions that have seen nothing, in the dtype of the weights."""
        config = self.config
        height, width = latent_size or config.latent_size
        patches = (height // config.patch[1]) * (width // config.patch[2])
        return FrameCache.empty(
            max(1, config.pattern.count("t")),
            batch,
            patches,
            config.heads,
            config.context,
            config.width // config.heads,
            self.embed.weight.dtype,
        )

    def words(self, text: Tensor, mask: Tensor) -> list[Words | None]:
        """Each layer's keys and values of the prompts; they depend on nothing else and can be kept."""
        text = text.to(self.embed.weight.dtype)
        return [None if block.text is None else block.text.words(text, mask) for block in self.blocks]  # type: ignore

    def forward(
        self,
        noisy: Tensor,
        sigma: Tensor,
        given: Conditions,
        *,
        cache: FrameCache | None = None,
        causal: bool = True,
        write: bool = False,
    ) -> Prediction:
        """Predict the clean latents, the reward and the end of every frame.

        Args:
            noisy: latents at their noise levels, (B, T, C, h, w).
            sigma: noise level of each frame in 0..1, (B, T).
            given: history, actions and prompts.
            cache: earlier frames of the sessions, seen by all frames.
            causal: a frame sees only itself and earlier frames; otherwise all (offline video).
            write: put the frame (T must be 1) into the cache.
        """
        latents, features = self.denoise(noisy, sigma, self.share(given, cache=cache, causal=causal), write=write)
        return Prediction(latents, *self.judge(features))

    def share(
        self,
        given: Conditions,
        *,
        cache: FrameCache | None = None,
        words: list[Words | None] | None = None,
        causal: bool = True,
    ) -> Shared:
        """Do once what several passes over the same frames need; the arguments are those of `forward`.

        Args:
            given: history, actions and prompts.
            cache: earlier frames of the sessions.
            words: `self.words(given.text, given.text_mask)` if it was kept.
            causal: whether a frame sees only itself and earlier ones.
        """
        dtype, (_, high, wide) = self.embed.weight.dtype, self.config.patch
        exists = given.present[..., None, None, None]  # (B, T, K, 1, 1, 1)
        history = self._patches((given.history * exists).flatten(2, 3))  # (B, T, P, K C high wide)
        exists = given.present.unsqueeze(2).expand(*history.shape[:3], -1)
        own = self.config.latent_channels * high * wide  # columns of the frame itself, in front
        known = torch.cat([history, exists], dim=-1).to(dtype)
        past, mask = self._past(given.history, cache, causal)
        words = self.words(given.text, given.text_mask) if words is None else words
        index = given.prompt_index.flatten()
        times = torch.arange(given.history.shape[1], device=mask.device)
        cos, sin = rope(times.unsqueeze(-1), self.config.width // self.config.heads, TIME_THETA)  # (T, E)
        return Shared(
            embedded=nn.functional.linear(known, self.embed.weight[:, own:], self.embed.bias),
            condition=self.action(_actions(given).to(dtype)) + self.history_level(given.history_sigma),
            words=[None if word is None else (word[0][index], word[1][index], word[2][index]) for word in words],
            place=self._places(given.history.shape[-2:], mask.device),
            time=(cos[:, None, None, None], sin[:, None, None, None]),
            mask=mask,
            past=past,
            cache=cache,
        )

    def denoise(self, noisy: Tensor, sigma: Tensor, shared: Shared, *, write: bool = False) -> tuple[Tensor, Tensor]:
        """One pass: the clean latents (B, T, C, h, w), and features (B, T, P, D) for `judge`."""
        patches = self._patches(noisy).to(self.embed.weight.dtype)
        x = shared.embedded + nn.functional.linear(patches, self.embed.weight[:, : patches.shape[-1]])  # (B, T, P, D)
        condition = nn.functional.silu(self.level(sigma) + shared.condition)  # (B, T, D)
        modulation = self.modulation(condition).unflatten(-1, (-1, 1, self.config.width))  # (B, T, 6 L + 2, 1, D)
        *parts, last = modulation.split([6] * len(self.blocks) + [2], dim=2)
        for block, part, words in zip(self.blocks, parts, shared.words, strict=True):
            x = block(x, part, shared, words, write)
        if write and shared.cache is not None:
            shared.cache.advance()
        normed = _norm(x)
        return self._unpatch(self.final(modulate(normed, *last.unbind(2))), noisy.shape), normed

    def judge(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Reward logits (B, T, REWARD_BINS) and end logits (B, T) from the features of a pass over finished frames."""
        pooled = torch.cat([features.mean(dim=2), features.amax(dim=2)], dim=-1)  # (B, T, 2 D)
        return self.reward_head(pooled), self.end_head(pooled).squeeze(-1)

    def _past(
        self, history: Tensor, cache: FrameCache | None, causal: bool
    ) -> tuple[tuple[Tensor, Tensor] | None, Tensor]:
        """The cached keys, turned by their age, and values; and which frames each of `history` (B, T, ...) sees."""
        batch, frames = history.shape[:2]
        times = torch.arange(frames, device=history.device)
        seen = times.unsqueeze(1) >= times if causal else torch.ones_like(times, dtype=torch.bool).expand(frames, -1)
        if cache is None:
            return None, seen[None, None]  # (1, 1, T, T)
        ages = cache.ages().to(history.device)  # (B, N)
        turn = rope(-ages.unsqueeze(-1), self.config.width // self.config.heads, TIME_THETA)  # (B, N, E)
        keys = rotate(cache.keys, *(part[:, None, None] for part in turn))
        known = (ages <= cache.frames).unsqueeze(1).expand(-1, frames, -1)  # (B, T, N)
        mask = torch.cat([known, seen.expand(batch, -1, -1)], dim=-1)  # (B, T, N + T)
        return (keys, cache.values), mask.unsqueeze(1).repeat_interleave(keys.shape[2], dim=0)

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

    def _places(self, size: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
        _, high, wide = self.config.patch
        rows = torch.arange(size[0] // high, device=device) * high
        columns = torch.arange(size[1] // wide, device=device) * wide
        places = torch.cartesian_prod(rows, columns).float()  # (P, 2)
        cos, sin = rope(places, self.config.width // self.config.heads, SPACE_THETA)
        return cos[:, None, None], sin[:, None, None]


def _actions(given: Conditions) -> Tensor:
    known = given.known.unsqueeze(-1)
    return torch.cat([given.actions * known, known.expand_as(given.actions[..., :1])], dim=-1).flatten(-2)
