"""How frames are sampled: what a world's card says, and what a user may change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from worldsim.errors import ConfigError, check_ranges
from worldsim.renamed import SAMPLER, with_new_names
from worldsim.untrusted import Untrusted, convert

RANGES: dict[str, tuple[float, float]] = {
    "num_denoising_steps": (1, 1000),
    "first_frame_steps": (1, 1000),
    "shift": (1e-6, 1e6),
    "guidance": (-100, 100),
    "first_guidance": (-100, 100),
    "noise_scale": (0, 1000),
    "spatially_shared_noise": (0, 1),
}


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How frames are sampled."""

    solver: str = "flow"
    """The objective whose solver samples, see `objectives`: "flow" is Euler steps on the straight path."""
    prediction: str = "x"
    """What the model predicts: the frame (x), the velocity (v) or the noise (eps)."""
    num_denoising_steps: int = 2
    """Of a frame."""
    shift: float = 0.5
    """Of their noise levels, see `schedules.get_schedule`: below 1 gives fine detail more of the steps."""
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
    """Fraction of the noise's channels that are the same at every place, see `noise.share_places`."""
    cache_sigma: float | None = 0.0
    """Noise level at which finished frames are passed through the model once more, for reward and cache; None: both
    come from the last denoising pass."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_ranges(self, RANGES)
        if self.prediction not in ("x", "v", "eps"):
            raise ConfigError(f"prediction is {self.prediction!r}; allowed: 'x', 'v', 'eps'.")
        for name in ("history_sigma", "cache_sigma"):
            sigma = getattr(self, name)
            if sigma is not None and not 0 <= sigma < 1:
                raise ConfigError(f"{name} is {sigma}; allowed: 0 <= {name} < 1.")

    @staticmethod
    def of(card: Mapping[str, Any], **changes: Any) -> SamplerConfig:
        """The sampler that a world's card describes, under names of today or of before.

        Args:
            card: its `sampler`.
            changes: fields to change; None keeps the card's.

        Raises:
            ConfigError: a field that is not known, or out of range.
        """
        fields = with_new_names(card, SAMPLER)
        if (clean := fields.pop("clean_pass", None)) is not None:  # what it was called while it was a yes or no
            fields.setdefault("cache_sigma", 0.0 if clean else None)
        try:
            return convert(fields | {k: v for k, v in changes.items() if v is not None}, SamplerConfig)
        except Untrusted as error:
            raise ConfigError(f"the sampler cannot be: {error}.") from error
