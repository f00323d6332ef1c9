"""The shape of the dynamics."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from worldsim.errors import ConfigError, check_ranges

if TYPE_CHECKING:
    from worldsim.models.dit import DiT

RANGES: dict[str, tuple[float, float]] = {  # far beyond any use: what lies outside is a mistake, or an attack
    "latent_channels": (1, 1024),
    "latent_size": (1, 4096),
    "patch": (1, 64),
    "width": (1, 16384),
    "heads": (1, 256),
    "mlp_ratio": (0.01, 64),
    "history": (0, 256),
    "action_size": (1, 262_144),
    "action_history": (1, 1024),
    "text_width": (1, 16384),
    "text_tokens": (1, 4096),
    "context": (1, 65_536),
    "frames_per_latent": (1, 64),
    "camera_size": (0, 16384),
    "image_width": (0, 16384),
    "memory_width": (0, 16384),
}
MOST_LAYERS = 256
GATE_OPEN, GATE_START = 20.0, 2.0  # logits: all that is predicted, exactly (in float32); and mostly that


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
    history: int = 4  # previous frames given as channels; 0 is none
    action_size: int = 3  # numbers in a flattened action
    action_history: int = 4  # last actions given to each frame
    text_width: int = 384
    text_tokens: int = 20  # most tokens of a prompt
    context: int = 8  # frames the cache remembers
    newest_base: bool = True  # whether frames begin as a gated change of the newest one; else the gate is left open
    output: Literal["x", "v", "eps"] = "x"  # what is predicted: clean latents, the velocity, or the noise
    learned_variance: bool = False  # whether there is a log-variance beside it (arXiv:2102.09672)
    frames_per_latent: int = 1  # of an autoencoder with a stride in time; so many rewards a latent
    fresh_noise: bool = False  # whether passes below noise level 1 take fresh noise (arXiv:2502.02483)
    camera_size: int = 0  # numbers of a camera's pose; 0 is none
    image_width: int = 0  # of the embedding of a picture of what is wanted; 0 is none
    memory_width: int = 0  # of tokens of old frames, which layers that look at the prompt read; 0 is none

    def __post_init__(self) -> None:
        """Check the ranges, and that the parts fit together."""
        if len(self.patch) != 3 or len(self.latent_size) != 2:
            raise ConfigError(
                f"patch is {self.patch} and latent_size {self.latent_size}; allowed: three numbers (time, height, "
                "width) and two (height, width)."
            )
        check_ranges(self, RANGES)
        if self.width % (4 * self.heads):
            raise ConfigError(f"width {self.width} is not a multiple of 4 x heads ({self.heads}).")
        if not 0 < len(self.pattern) <= MOST_LAYERS or set(self.pattern) - set("st"):
            raise ConfigError(
                f"pattern is {self.pattern!r:.100}; allowed: 1 to {MOST_LAYERS} of the letters 's' (space), 't' (time)."
            )
        if any(size % side for size, side in zip(self.latent_size, self.patch[1:], strict=True)):
            raise ConfigError(f"patch {self.patch} does not divide the latent size {self.latent_size}.")
        if any(not 0 <= layer < len(self.pattern) for layer in self.text_layers):
            raise ConfigError(f"text_layers {self.text_layers} name layers past the pattern {self.pattern!r}.")
        if self.output not in ("x", "v", "eps"):
            raise ConfigError(f"output is {self.output!r}; allowed: 'x', 'v', 'eps'.")
        if self.output != "x" and self.newest_base:
            raise ConfigError(f"newest_base needs output 'x', as its base is a frame; output is {self.output!r}.")

    def patches(self, latent_size: tuple[int, int] | None = None) -> int:
        """How many patches a frame of latents has."""
        height, width = latent_size or self.latent_size
        return (height // self.patch[1]) * (width // self.patch[2])

    def build(self) -> DiT:
        """A freshly initialised model."""
        from worldsim.models.dit import DiT

        return DiT(self)
