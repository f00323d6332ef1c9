"""The world's clock: from the state of some sessions and an action each to their next frames.

Everything here is batched over independent sessions, which may differ in age, seed and prompt, and works on latents.
A step is: mix a little noise into the last frames, denoise the next one under the action, then pass over the finished
frame once to read the reward and to write the cache.
Legend: B sessions, K history frames, A action history, C h w latent.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from worldsim.diffusion.flow import euler, mix, schedule
from worldsim.engine.noise import HISTORY, SAMPLE, keyed_noise
from worldsim.errors import ConfigError
from worldsim.models.attention import Words
from worldsim.models.cache import FrameCache
from worldsim.models.dit import Conditions, DiT, Shared
from worldsim.models.heads import reward_mean
from worldsim.models.text import PromptBook
from worldsim.world import World


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How frames are drawn."""

    steps: int = 2  # denoising steps of a frame
    shift: float = 0.5  # of their noise levels, see `schedule`: below 1 gives fine detail more of the steps
    first_steps: int = 12  # equal steps, of the first frame of a session that begins from its prompt alone
    history_sigma: float = 0.1  # noise mixed into the history: hides small faults, so that they do not grow
    guidance: float = 1.0  # classifier-free guidance on the prompt; 1 is off and half the work
    first_guidance: float = 2.0  # the same for the first frame

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.steps, self.first_steps) < 1:
            raise ConfigError(f"steps are {self.steps} and {self.first_steps}; allowed: at least 1.")
        if not self.shift > 0:
            raise ConfigError(f"shift is {self.shift}; it must be above 0.")
        if not 0 <= self.history_sigma < 1:
            raise ConfigError(f"history_sigma is {self.history_sigma}; allowed: 0 <= history_sigma < 1.")


@dataclass
class State:
    """All that some sessions remember.

    Attributes:
        history: the last K frames, oldest first, (B, K, C, h, w).
        actions: the last A flattened actions, oldest first, (B, A, action_size).
        known: which of these actions exist, (B, A).
        step: how many frames each session has, (B,).
        cache: keys and values of earlier frames.
        seeds: of the sessions' noise.
        prompts: in force for the next frame.
    """

    history: Tensor
    actions: Tensor
    known: Tensor
    step: Tensor
    cache: FrameCache
    seeds: list[int]
    prompts: list[str]


@dataclass
class Outcome:
    """What a step gave: latents (B, C, h, w), rewards (B,), probabilities that the episode ended (B,)."""

    latents: Tensor
    reward: Tensor
    ended: Tensor


class Simulator:
    """Steps sessions of one dynamics model.

    Args:
        dynamics: the model; its weights' dtype is the dtype of the work.
        book: where prompts are looked up.
        sampler: how frames are drawn.
    """

    def __init__(self, dynamics: DiT, book: PromptBook, sampler: SamplerConfig | None = None) -> None:
        """Keep the parts; nothing is computed yet."""
        self.dynamics, self.book, self.sampler = dynamics, book, sampler or SamplerConfig()
        self._words: dict[tuple[str, ...], list[Words | None]] = {}
        self.keep_words = True  # training changes the weights at every step and must not

    @staticmethod
    def of(world: World, sampler: SamplerConfig | None = None) -> Simulator:
        """The simulator of a world; the default sampler is its card's."""
        return Simulator(world.dynamics, world.book, sampler or SamplerConfig(**world.card.sampler))

    def begin(self, seeds: list[int], prompts: list[str], latent_size: tuple[int, int] | None = None) -> State:
        """Sessions that have seen nothing yet."""
        config, batch = self.dynamics.config, len(seeds)
        size = latent_size or config.latent_size
        return State(
            history=torch.zeros(batch, config.history, config.latent_channels, *size),
            actions=torch.zeros(batch, config.action_history, config.action_size),
            known=torch.zeros(batch, config.action_history),
            step=torch.zeros(batch, dtype=torch.long),
            cache=self.dynamics.empty_cache(batch, size),
            seeds=list(seeds),
            prompts=list(prompts),
        )

    @torch.no_grad()
    def step(self, state: State, action: Tensor | None) -> Outcome:
        """Draw the next frame of every session and remember it.

        Args:
            state: is changed in place.
            action: flattened, (B, action_size); None where there was none: the first frame of all sessions.
        """
        sampler, first = self.sampler, action is None
        self._push_action(state, action)
        given, words = self._given(state)
        shared = self.dynamics.share(given, cache=state.cache, words=words)
        guidance = sampler.first_guidance if first else sampler.guidance
        blank = None
        if guidance != 1:
            unprompted = replace(given, prompt_index=torch.zeros_like(given.prompt_index))
            blank = self.dynamics.share(unprompted, cache=state.cache, words=words)

        def predict(x: Tensor, sigma: float) -> Tensor:
            clean = self._pass(x, sigma, shared)[0]
            if blank is not None:
                clean = torch.lerp(self._pass(x, sigma, blank)[0], clean, guidance)
            return clean[:, 0].float()

        noise = keyed_noise(state.seeds, state.step, SAMPLE, tuple(state.history.shape[2:]))
        levels = schedule(sampler.first_steps) if first else schedule(sampler.steps, sampler.shift)
        latents = euler(predict, noise, levels)
        return self._remember(state, latents, shared)

    @torch.no_grad()
    def observe(self, state: State, latents: Tensor, action: Tensor | None) -> Outcome:
        """Take given frames (B, C, h, w) as the sessions' next ones, as if they had been drawn."""
        self._push_action(state, action)
        given, words = self._given(state)
        return self._remember(state, latents, self.dynamics.share(given, cache=state.cache, words=words))

    def _remember(self, state: State, latents: Tensor, shared: Shared) -> Outcome:
        """The pass over finished frames: reward and end from it, and the cache is written."""
        reward, ended = self.dynamics.judge(self._pass(latents, 0.0, shared, write=True)[1])
        state.history = torch.cat([state.history[:, 1:], latents.unsqueeze(1)], dim=1)
        state.step = state.step + 1
        return Outcome(latents, reward_mean(reward[:, 0]), ended[:, 0].float().sigmoid())

    def _pass(self, x: Tensor, sigma: float, shared: Shared, write: bool = False) -> tuple[Tensor, Tensor]:
        levels = torch.full((len(x), 1), sigma)
        return self.dynamics.denoise(x.unsqueeze(1), levels, shared, write=write)

    def _push_action(self, state: State, action: Tensor | None) -> None:
        new = torch.zeros_like(state.actions[:, 0]) if action is None else action.float()
        state.actions = torch.cat([state.actions[:, 1:], new.unsqueeze(1)], dim=1)
        exists = torch.full_like(state.known[:, :1], 0.0 if action is None else 1.0)
        state.known = torch.cat([state.known[:, 1:], exists], dim=1)

    def _given(self, state: State) -> tuple[Conditions, list[Words | None]]:
        sigma = self.sampler.history_sigma
        batch, frames = state.history.shape[:2]
        noise = keyed_noise(state.seeds, state.step, HISTORY, tuple(state.history.shape[1:]))
        history = mix(state.history, noise, torch.full((batch,), sigma))
        ages = torch.arange(frames, 0, -1)
        distinct = tuple(dict.fromkeys(["", *state.prompts]))  # the empty prompt is always there, for guidance
        index = torch.tensor([[distinct.index(prompt)] for prompt in state.prompts])
        given = Conditions(
            history=history.unsqueeze(1),
            present=(ages <= state.step.unsqueeze(1)).float().unsqueeze(1),
            history_sigma=torch.full((batch, 1), sigma),
            actions=state.actions.unsqueeze(1),
            known=state.known.unsqueeze(1),
            text=torch.empty(0),
            text_mask=torch.empty(0),
            prompt_index=index,
        )
        return given, self.words(distinct)

    def words(self, prompts: tuple[str, ...]) -> list[Words | None]:
        """The dynamics' keys and values of some prompts, kept for the last few sets of prompts."""
        if not self.keep_words:
            return self.dynamics.words(*self.book.batch(list(prompts)))
        if prompts not in self._words:
            while len(self._words) >= 64:
                self._words.pop(next(iter(self._words)))
            self._words[prompts] = self.dynamics.words(*self.book.batch(list(prompts)))
        return self._words[prompts]
