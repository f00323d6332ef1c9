"""How frames are sampled: what a world's card says, and what a user may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worldsim.errors import ConfigError
from worldsim.renamed import SAMPLER, with_new_names


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How frames are sampled."""

    num_denoising_steps: int = 2
    """Of a frame."""
    shift: float = 0.5
    """Of their noise levels, see `flow.get_schedule`: below 1 gives fine detail more of the steps."""
    first_frame_steps: int = 12
    """Equal steps, of the first frame of a session that begins from its prompt alone."""
    history_sigma: float = 0.1
    """Noise mixed into the history: hides small faults, so that they do not grow."""
    guidance: float = 1.0
    """Classifier-free guidance on the prompt (Ho & Salimans 2022, arXiv:2207.12598); 1 is off and half the work."""
    first_guidance: float = 2.0
    """The same for the first frame."""
    noise_scale: float = 1.0
    """Of the noise that frames are sampled from: below 1 the likelier ones, above 1 stranger."""
    spatially_shared_noise: float = 0.0
    """Fraction of the noise's channels that are the same at every place, see `energy.share_places`."""
    clean_pass: bool = True
    """Whether reward and cache come from one more pass, over the finished frame."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if min(self.num_denoising_steps, self.first_frame_steps) < 1:
            raise ConfigError(
                f"num_denoising_steps is {self.num_denoising_steps} and first_frame_steps {self.first_frame_steps}; "
                "allowed: at least 1."
            )
        if not self.shift > 0:
            raise ConfigError(f"shift is {self.shift}; it must be above 0.")
        if not 0 <= self.spatially_shared_noise <= 1:
            raise ConfigError(f"spatially_shared_noise is {self.spatially_shared_noise}; allowed: 0 to 1.")
        if not self.noise_scale >= 0:
            raise ConfigError(f"noise_scale is {self.noise_scale}; it must be at least 0.")
        if not 0 <= self.history_sigma < 1:
            raise ConfigError(f"history_sigma is {self.history_sigma}; allowed: 0 <= history_sigma < 1.")

    @staticmethod
    def of(card: Mapping[str, Any], **changes: Any) -> SamplerConfig:
        """The sampler that a world's card describes, under names of today or of before.

        Args:
            card: its `sampler`.
            changes: fields to change; None keeps the card's.
        """
        return SamplerConfig(**(with_new_names(card, SAMPLER) | {k: v for k, v in changes.items() if v is not None}))
