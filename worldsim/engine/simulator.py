"""The world's clock: from the state of some sessions and an action each to their next frames.

Everything here is batched over independent sessions, which may differ in age, seed, prompt and guidance, and works on
latents. A step is: mix a little noise into the last frames, then denoise the next one under the action. The last pass
also gives the reward and what the cache remembers of the frame, or one more over the finished frame does.
Legend: B sessions, K history frames, A action history, C h w latent, G sessions with guidance.
"""

from __future__ import annotations

import functools
from collections.abc import Generator
from dataclasses import dataclass

import torch
from torch import Tensor

from worldsim.diffusion.noise import CACHE, HISTORY, SAMPLE, SHARED, keys_of, normal, share_places, shared_channels
from worldsim.diffusion.objectives import objective_config
from worldsim.diffusion.sampler import SamplerConfig
from worldsim.diffusion.schedules import add_noise, with_pauses
from worldsim.engine.stages import Stages, eager, flat
from worldsim.errors import ConfigError
from worldsim.models.conditioning import text_kv
from worldsim.models.config import DiTConfig
from worldsim.models.dit import DiT
from worldsim.models.kv_cache import KVCache
from worldsim.threads import at_once
from worldsim.types import Prompt, TextContext
from worldsim.world import World

PROMPTS_STORED = 1024  # whose keys and values are stored


@dataclass
class State:
    """All that some sessions remember.

    Attributes:
        history: the last K frames, at least one, oldest first, (B, K, C, h, w).
        actions: the last A flattened actions, oldest first, (B, A, action_size).
        known: which of these actions exist, (B, A).
        step: how many frames each session has, (B,).
        cache: keys and values of earlier frames.
        keys: of the sessions' noise, see `noise.keys_of`, (B,).
        prompts: in force for the next frame.
        guidance: on the prompt; None is the sampler's.
    """

    history: Tensor
    actions: Tensor
    known: Tensor
    step: Tensor
    cache: KVCache
    keys: Tensor
    prompts: list[Prompt]
    guidance: list[float] | None = None

    def push(self, action: Tensor | None) -> None:
        """Note the action (B, action_size) that leads to the next frame; None where there was none."""
        new = torch.zeros_like(self.actions[:, 0]) if action is None else action.to(self.actions)
        self.actions = torch.cat([self.actions[:, 1:], new.unsqueeze(1)], dim=1)
        exists = torch.full_like(self.known[:, :1], 0.0 if action is None else 1.0)
        self.known = torch.cat([self.known[:, 1:], exists], dim=1)

    def remember(self, outcome: ModelOutput) -> None:
        """Note the frame that was drawn."""
        self.history = torch.cat([self.history[:, 1:], outcome.latents.unsqueeze(1)], dim=1)
        self.cache = self.cache.append(outcome.keys.unsqueeze(1), outcome.values.unsqueeze(1))
        self.step = self.step + 1


@dataclass
class ModelOutput:
    """What a step gave.

    Attributes:
        latents: the frames, (B, C, h, w).
        reward: (B,), or (B, r) where a latent stands for r frames.
        ended: probability that the episode ended, the same.
        keys: for the cache, (B, L, P, H, E).
        values: the same.
    """

    latents: Tensor
    reward: Tensor
    ended: Tensor
    keys: Tensor
    values: Tensor


class Simulator:
    """Steps sessions of one dynamics model.

    Args:
        dynamics: the model; its weights' dtype is the dtype of the work.
        sampler: how frames are drawn.
        stages: what computes; None is eager torch.
        frozen: whether the weights stay as they are, so that what depends on them alone can be stored.
    """

    def __init__(
        self,
        dynamics: DiT,
        sampler: SamplerConfig | None = None,
        stages: Stages | None = None,
        frozen: bool = True,
    ) -> None:
        """Keep the parts; nothing is computed yet."""
        self.dynamics, self.sampler = dynamics, sampler or SamplerConfig()
        check_sampler(self.sampler, dynamics.config)
        self.stages = stages or eager(dynamics)
        self.frozen = frozen
        self._no_prompt = Prompt("", torch.zeros(0, dynamics.config.text_width))
        project = functools.partial(_project, dynamics)
        self._project = functools.lru_cache(PROMPTS_STORED)(project) if frozen else project

    @staticmethod
    def of(world: World, sampler: SamplerConfig | None = None) -> Simulator:
        """The simulator of a world; the default sampler is its card's."""
        return Simulator(world.dynamics, sampler or SamplerConfig.of(world.card.sampler))

    @property
    def device(self) -> torch.device:
        """Where the work is done."""
        return self.dynamics.device

    def begin(self, seeds: list[int], prompts: list[Prompt], latent_size: tuple[int, int] | None = None) -> State:
        """Sessions that have seen nothing yet."""
        config, batch, device = self.dynamics.config, len(seeds), self.device
        size = latent_size or config.latent_size
        return State(
            history=torch.zeros(batch, max(config.history, 1), config.latent_channels, *size, device=device),
            actions=torch.zeros(batch, config.action_history, config.action_size, device=device),
            known=torch.zeros(batch, config.action_history, device=device),
            step=torch.zeros(batch, dtype=torch.long),
            cache=KVCache.empty(config, batch, size, self.dynamics.dtype, device),
            keys=keys_of(seeds),
            prompts=list(prompts),
        )

    def step(self, state: State, action: Tensor | None) -> ModelOutput:
        """Draw the next frame of every session and remember it.

        Args:
            state: is changed in place.
            action: flattened, (B, action_size); None where there was none: the first frame of all sessions.
        """
        state.push(action)
        outcome = self.draw(state, first=action is None)
        state.remember(outcome)
        return outcome

    def observe(self, state: State, latents: Tensor, action: Tensor | None) -> ModelOutput:
        """Take given frames (B, C, h, w) as the sessions' next ones, as if they had been drawn."""
        state.push(action)
        outcome = self.take(state, latents)
        state.remember(outcome)
        return outcome

    def draw(self, state: State, *, first: bool = False) -> ModelOutput:
        """The next frame of every session, whose last action is in the state; the state is not changed."""
        return at_once(self.drawing(state, first=first))

    @torch.no_grad()
    def drawing(self, state: State, *, first: bool = False) -> Generator[None, None, ModelOutput]:
        """Draw as `draw` does, and pause after each pass of the sampler."""
        sampler, batch = self.sampler, len(state.prompts)
        guidance = [sampler.guidance] * batch if state.guidance is None else state.guidance
        guidance = [sampler.first_guidance] * batch if first else guidance
        guided = [row for row, strength in enumerate(guidance) if strength != 1]
        # Sessions with guidance have a second row, without their prompt.
        inputs = self._encode(state, state.keys, state.prompts + [self._no_prompt] * len(guided), guided)
        strengths = torch.tensor([guidance[row] for row in guided], device=self.device)[:, None, None, None]
        outcome: list[Tensor] = []

        def predict(x: Tensor, sigma: float) -> Tensor:
            nonlocal outcome
            found, *outcome = self._pass(x, sigma, inputs, guided)
            if guided:
                both = found[:batch]
                both[guided] = torch.lerp(found[batch:], both[guided], strengths)
                return both
            return found

        noise = self.noise(state, first=first).to(self.device) * sampler.noise_scale
        latents = yield from with_pauses(objective_config(sampler.solver).solve(noise, sampler, first), predict)
        if sampler.cache_sigma is not None:
            finished = latents
            if sampler.cache_sigma > 0:
                noise = normal(state.keys, state.step, CACHE, tuple(latents.shape[1:])).to(latents)
                finished = add_noise(latents, noise, torch.tensor(sampler.cache_sigma, device=self.device))
            _, *outcome = self._pass(finished, sampler.cache_sigma, inputs, guided)
        return ModelOutput(latents, *(part[:batch] for part in outcome))

    def noise(self, state: State, *, first: bool = False) -> Tensor:
        """The noise (B, C, h, w) that the sessions' next frames are drawn from, before it is scaled."""
        frame = tuple(state.history.shape[2:])  # (C, h, w)
        noise = normal(state.keys, state.step, SAMPLE, frame)
        if (count := shared_channels(frame[0], self.sampler.spatially_shared_noise)) and not first:
            noise = share_places(noise, normal(state.keys, state.step, SHARED, (count, 1, 1)))
        return noise

    @torch.no_grad()
    def take(self, state: State, latents: Tensor) -> ModelOutput:
        """Given frames (B, C, h, w) as the next ones; the state, which has their last action, is not changed.

        What is remembered does not depend on the sessions' seeds, so that sessions that begin alike can share it.
        """
        inputs = self._encode(state, torch.zeros_like(state.keys), state.prompts, [])
        _, *outcome = self._pass(latents, 0.0, inputs, [])
        return ModelOutput(latents, *outcome)

    def _encode(self, state: State, noise_keys: Tensor, prompts: list[Prompt], again: list[int]) -> list[Tensor]:
        """What the passes over a frame share, for all rows and once more for the rows `again`; then the text."""
        frames, cache = state.history.shape[1], state.cache
        noise = normal(noise_keys, state.step, HISTORY, tuple(state.history.shape[1:])).to(self.device)
        mask = (torch.arange(frames, 0, -1) <= state.step.unsqueeze(1)).to(noise)
        sigma = torch.full((len(noise),), self.sampler.history_sigma, device=self.device)
        count = cache.count.to(self.device)
        tokens, frame, keys, bias = self.stages.encode(
            state.history, noise, sigma, mask, state.actions, state.known, cache.keys, count
        )
        # Contiguous, as a compiled graph takes the strides of its inputs for granted.
        before = [state.history[:, -1].contiguous(), mask[:, -1].contiguous()]
        parts = [tokens, frame, keys, cache.values, bias, *before]
        return [*(torch.cat([part, part[again]]) if again else part for part in parts), *self.text(prompts)]

    def _pass(self, x: Tensor, sigma: float, inputs: list[Tensor], again: list[int]) -> list[Tensor]:
        x = torch.cat([x, x[again]]) if again else x
        return self.stages.denoise(x, torch.full((len(x),), sigma, device=self.device), *inputs)

    def text(self, prompts: list[Prompt]) -> list[Tensor]:
        """The dynamics' keys, values and masks of some prompts, a row each."""
        found = {prompt: self._project(prompt) for prompt in dict.fromkeys(prompts)}
        if len(prompts) == 1:
            return found[prompts[0]]
        return [torch.cat(parts) for parts in zip(*(found[prompt] for prompt in prompts), strict=True)]


@torch.no_grad()
def _project(dynamics: DiT, prompt: Prompt) -> list[Tensor]:
    """The keys, values and masks of one prompt, computed by itself: who else is there must not matter."""
    text = TextContext.of([prompt], dynamics.config.text_tokens)
    found = text_kv(dynamics, text.states.to(dynamics.device), text.mask.to(dynamics.device))
    return [part.contiguous() for part in flat(found)]  # as a compiled graph takes it for granted


def check_sampler(sampler: SamplerConfig, config: DiTConfig) -> None:
    """Check that a sampler can sample what a model predicts, frame by frame.

    Raises:
        ConfigError: it cannot.
    """
    solver = objective_config(sampler.solver)
    if config.patch[0] != 1:
        raise ConfigError(f"the model's patch is {config.patch}; allowed in play: patches of one latent in time.")
    wanted = solver.output(sampler.prediction)
    if (config.output, config.learned_variance) != wanted:
        raise ConfigError(
            f"the model predicts {config.output!r} (learned_variance {config.learned_variance}), the sampler's solver "
            f"{sampler.solver!r} takes {wanted[0]!r} (learned_variance {wanted[1]}). Export the world again."
        )
