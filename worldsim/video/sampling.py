"""Sample clips whose frames see one another in both directions.

Legend: B clips, T frames, C h w latent, A action history.
"""

from __future__ import annotations

import torch
from torch import Tensor

from worldsim.diffusion.noise import SAMPLE, keys_of, normal
from worldsim.diffusion.schedules import euler, get_schedule, sample
from worldsim.models.conditioning import ContextInputs
from worldsim.models.dit import DiT
from worldsim.models.masks import Mask
from worldsim.types import TextContext


@torch.no_grad()
def sample_clips(
    dit: DiT,
    clips: Tensor,
    given: Tensor,
    text: TextContext,
    *,
    seeds: list[int] | None = None,
    steps: int = 20,
    shift: float = 1.0,
    mask: Mask = "full",
) -> Tensor:
    """Sample the frames of clips that are not given, (B, T, C, h, w).

    Args:
        dit: trained with `FlowConfig.clip_prob`; it predicts clean latents.
        clips: latents, of which the given ones are kept, (B, T, C, h, w).
        given: which frames, bool (T,) or (B, T); see `patterns`.
        text: the prompt in force at each frame.
        seeds: of each clip's noise (default: 0, 1, ...).
        steps: Euler steps.
        shift: see `schedules.get_schedule`.
        mask: which frames see which.
    """
    batch, frames = clips.shape[:2]
    given = given.expand(batch, frames).to(clips.device)
    keep = given[..., None, None, None]
    context = dit.encode_context(clip_inputs(dit, clips, text.to(clips.device)))
    noise = normal(keys_of(seeds or list(range(batch))), torch.zeros(batch, dtype=torch.long), SAMPLE, clips.shape[1:])

    def predict(x: Tensor, sigma: float) -> Tensor:
        levels = torch.where(given, 0.0, sigma)
        return dit(torch.where(keep, clips, x), levels, context, mask=mask).sample

    return torch.where(keep, clips, sample(euler(noise.to(clips), get_schedule(steps, shift)), predict))


def clip_inputs(dit: DiT, clips: Tensor, text: TextContext) -> ContextInputs:
    """Condition clips on their prompts alone: no history, no actions, no frame before."""
    config, (batch, frames) = dit.config, clips.shape[:2]
    found = ContextInputs(
        actions=clips.new_zeros(batch, frames, config.action_history, config.action_size),
        action_mask=clips.new_zeros(batch, frames, config.action_history),
        text=text,
        previous=torch.zeros_like(clips),
        previous_mask=clips.new_zeros(batch, frames),
    )
    if config.history:
        found.history = clips.new_zeros(batch, frames, config.history, *clips.shape[2:])
        found.history_mask = clips.new_zeros(batch, frames, config.history)
        found.history_sigma = clips.new_zeros(batch, frames)
    return found
