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

import torch
from torch import Tensor, nn

from worldsim.errors import ConfigError
from worldsim.models.attention import SpaceAttention, TextAttention, TimeAttention
from worldsim.models.cache import FrameCache
from worldsim.models.layers import MLP, LevelEmbedding, modulate, rope

SPACE_THETA = 100.0  # slowest period of patch positions, in patches
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
        self.modulation = nn.Linear(width, 6 * width)

    def forward(
        self,
        x: Tensor,  # (B, T, P, D)
        condition: Tensor,  # (B, T, D), after SiLU
        turn: tuple[Tensor, Tensor],
        words: tuple[Tensor, Tensor, Tensor] | None,
        prompt_index: Tensor,
        cache: FrameCache | None,
        causal: bool,
        write: bool,
    ) -> Tensor:
        """X (B, T, P, D) to (B, T, P, D)."""
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = (
            self.modulation(condition).unsqueeze(2).chunk(6, dim=-1)  # each (B, T, 1, D)
        )
        normed = modulate(_norm(x), shift_a, scale_a)
        if isinstance(self.attention, TimeAttention):
            mixed = self.attention(normed, cache, self.time_layer, causal=causal, write=write)
        else:
            mixed = self.attention(normed, turn)
        x = torch.addcmul(x, gate_a, mixed)
        if self.text is not None and words is not None:
            x = x + self.text(_norm(x), words, prompt_index)
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
        self.final_modulation = nn.Linear(width, 2 * width)
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
            nn.init.zeros_(block.modulation.weight)
            if block.text is not None:
                nn.init.zeros_(block.text.out.weight)
        for last in (self.final_modulation, self.final, self.reward_head[-1], self.end_head[-1]):
            assert isinstance(last, nn.Linear)
            nn.init.zeros_(last.weight)

    def muon_parameters(self) -> list[nn.Parameter]:
        """The hidden matrices, which Muon trains; everything else is AdamW's."""
        return [
            parameter
            for name, parameter in self.blocks.named_parameters()
            if parameter.ndim == 2 and "modulation" not in name
        ]

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

    def words(self, text: Tensor, mask: Tensor) -> list[tuple[Tensor, Tensor, Tensor] | None]:
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
        words: list[tuple[Tensor, Tensor, Tensor] | None] | None = None,
        causal: bool = True,
        write: bool = False,
    ) -> Prediction:
        """Predict the clean latents, the reward and the end of every frame.

        Args:
            noisy: latents at their noise levels, (B, T, C, h, w).
            sigma: noise level of each frame in 0..1, (B, T).
            given: history, actions and prompts.
            cache: earlier frames of the sessions, seen by all frames.
            words: `self.words(given.text, given.text_mask)` if it was kept.
            causal: a frame sees only itself and earlier frames; otherwise all (offline video).
            write: put the frame (T must be 1) into the cache.
        """
        dtype = self.embed.weight.dtype
        x = self.embed(self._tokens(noisy, given).to(dtype))  # (B, T, P, D)
        condition = self.level(sigma) + self.history_level(given.history_sigma) + self.action(_actions(given).to(dtype))
        condition = nn.functional.silu(condition)  # (B, T, D)
        turn = self._turn(noisy.shape[-2:], x.device)
        words = self.words(given.text, given.text_mask) if words is None else words
        for block, word in zip(self.blocks, words, strict=True):
            x = block(x, condition, turn, word, given.prompt_index, cache, causal, write)
        if write and cache is not None:
            cache.advance()
        shift, scale = self.final_modulation(condition).unsqueeze(2).chunk(2, dim=-1)
        normed = _norm(x)
        features = torch.cat([normed.mean(dim=2), normed.amax(dim=2)], dim=-1)  # (B, T, 2 D)
        return Prediction(
            latents=self._untoken(self.final(modulate(normed, shift, scale)), noisy.shape),
            reward=self.reward_head(features),
            ended=self.end_head(features).squeeze(-1),
        )

    def _tokens(self, noisy: Tensor, given: Conditions) -> Tensor:
        """The frame and its history as channels of each patch, (B, T, P, channels)."""
        present = given.present
        history = given.history * present[..., None, None, None]  # (B, T, K, C, h, w)
        stacked = torch.cat([noisy.unsqueeze(2), history], dim=2).flatten(2, 3)  # (B, T, (1 + K) C, h, w)
        _, high, wide = self.config.patch
        parts = stacked.unflatten(-1, (-1, wide)).unflatten(-3, (-1, high))  # (B, T, c, h', high, w', wide)
        patches = parts.permute(0, 1, 3, 5, 2, 4, 6).flatten(4).flatten(2, 3)  # (B, T, P, c high wide)
        return torch.cat([patches, present.unsqueeze(2).expand(-1, -1, patches.shape[2], -1)], dim=-1)

    def _untoken(self, x: Tensor, shape: torch.Size) -> Tensor:
        """Patches (B, T, P, C high wide) back to latents of `shape`."""
        _, high, wide = self.config.patch
        rows = shape[-2] // high
        parts = x.unflatten(2, (rows, -1)).unflatten(-1, (-1, high, wide))  # (B, T, h', w', C, high, wide)
        return parts.permute(0, 1, 4, 2, 5, 3, 6).reshape(shape)

    def _turn(self, size: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
        _, high, wide = self.config.patch
        rows = torch.arange(size[0] // high, device=device) * high
        columns = torch.arange(size[1] // wide, device=device) * wide
        places = torch.cartesian_prod(rows, columns).float()  # (P, 2)
        return rope(places, self.config.width // self.config.heads, SPACE_THETA)


def _actions(given: Conditions) -> Tensor:
    known = given.known.unsqueeze(-1)
    return torch.cat([given.actions * known, known.expand_as(given.actions[..., :1])], dim=-1).flatten(-2)
