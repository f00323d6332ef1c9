"""A world: a trained simulator with all that is needed to step it, in memory and on disk.

car-racing/
world.json               the card
autoencoder/             config.json + safetensors, as diffusers writes them; linear.safetensors if it has that path
dynamics/                config.json + safetensors
prompts.safetensors      prompts and their states, so that these need no text encoder
starts.npz               a few recorded clips to begin from
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from worldsim.diffusion.sampler import SamplerConfig
from worldsim.errors import ConfigError, WorldError, WorldFormatError, WorldNotFound, check_ranges, printable
from worldsim.files import replacing
from worldsim.models.autoencoder import DiffusersAutoencoder, fingerprint
from worldsim.models.autoencoder_files import load_autoencoder, save_autoencoder
from worldsim.models.clip_autoencoder import is_of_clips
from worldsim.models.dit import DiT
from worldsim.models.saved import read_dynamics
from worldsim.models.text import PromptBook
from worldsim.models.text_encoders import DEFAULT_ENCODER
from worldsim.spaces import ActionCodec, actions_from_arrays, actions_to_arrays, space_from_json
from worldsim.threads import OwnThreads
from worldsim.untrusted import NAME, Untrusted, convert, read_json, read_npz

FORMAT_VERSION = 1
LONGEST, MOST_PROMPTS, MOST_STARTS = 10_000, 10_000, 10_000
_OWN = OwnThreads()  # where worlds are loaded, whatever the caller has set torch to
FILES = ["*.json", "autoencoder/*", "dynamics/*", "prompts.safetensors", "starts.npz"]  # of a world on a hub


@dataclass(frozen=True, kw_only=True)
class WorldCard:
    """What a world says of itself; `world.json`.

    Raises:
        ConfigError: a field that no world can have. A card may be a stranger's: what it says is bounded.
    """

    name: str
    frame_size: tuple[int, int]  # (height, width)
    fps: float
    action_space: dict[str, Any]  # see worldsim.spaces
    latent_mean: list[float]
    latent_std: list[float]
    autoencoder: dict[str, Any]  # class name and wrapper settings
    keys: dict[str, Any] = field(default_factory=dict)  # "left+up" -> action; "" is no key
    prompts: list[str] = field(default_factory=list)  # examples; the first is the default
    text_encoder: str | None = DEFAULT_ENCODER
    sampler: dict[str, Any] = field(default_factory=dict)
    episode_steps: int | None = None  # after so many steps the environment truncates
    notices: list[str] = field(default_factory=list)  # licences of what the frames show
    provenance: dict[str, Any] = field(default_factory=dict)  # recording, training
    quality: dict[str, Any] = field(default_factory=dict)  # measured by `worldsim eval`
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Check the fields."""
        if not NAME.fullmatch(self.name):
            raise ConfigError(f"name is {self.name!r:.100}; allowed: up to 128 characters without '/', not from '.'.")
        ranges: dict[str, tuple[float, float]] = {"frame_size": (1, 4096), "fps": (1e-3, 1e4)}
        check_ranges(self, ranges | {"episode_steps": (1, 1e12), "latent_mean": (-1e6, 1e6), "latent_std": (1e-9, 1e6)})
        if not len(self.latent_mean) == len(self.latent_std) > 0:
            raise ConfigError(f"latent_mean has {len(self.latent_mean)} numbers, latent_std {len(self.latent_std)}.")
        if len(self.prompts) > MOST_PROMPTS or any(len(text) > LONGEST for text in self.prompts):
            raise ConfigError(f"prompts are {len(self.prompts)}; allowed: {MOST_PROMPTS} of {LONGEST} characters each.")
        SamplerConfig.of(self.sampler)
        space_from_json(self.action_space)


class World:
    """Parts and card of a world.

    Attributes:
        card: what the world says of itself.
        autoencoder: frames to latents and back.
        dynamics: the model that predicts latents.
        book: prompts and their states.
        starts: recorded clips to begin from, {"frames": uint8 (T, H, W, 3), "actions": (T - 1, ...), "prompt": str}.
        action_space: the Gymnasium action space.
    """

    def __init__(
        self,
        card: WorldCard,
        autoencoder: DiffusersAutoencoder,
        dynamics: DiT,
        book: PromptBook,
        starts: list[dict[str, Any]] | None = None,
    ) -> None:
        """Put the parts together."""
        self.card, self.autoencoder, self.dynamics, self.book = card, autoencoder.eval(), dynamics.eval(), book
        self.starts = starts or []
        self.action_space: spaces.Space = space_from_json(card.action_space)
        self.codec = ActionCodec(self.action_space)
        stride, config = autoencoder.temporal_stride, dynamics.config
        if (config.frames_per_latent, config.action_size) != (stride, stride * self.codec.size):
            raise WorldError(
                f"a latent of the dynamics stands for {config.frames_per_latent} frames with actions of "
                f"{config.action_size} numbers in all; the autoencoder's stands for {stride}, and an action has "
                f"{self.codec.size}. The parts are not of one world."
            )
        self.path: Path | None = None

    def to(self, dtype: torch.dtype) -> World:
        """The same world with the weights in `dtype`."""
        for module in (self.autoencoder.model, *self.autoencoder.linear_path()):
            nn.Module.to(module, dtype)  # not the model's own `to`, which warns
            if not is_of_clips(module):  # torch has this layout for images alone
                nn.Module.to(module, memory_format=torch.channels_last)  # type: ignore  -- a third faster on a CPU
        self.dynamics.to(dtype)
        return self

    def save_pretrained(self, path: str | Path, dtype: torch.dtype = torch.bfloat16) -> None:
        """Write the world to a folder, weights in `dtype`."""
        path = Path(path)
        (path / "dynamics").mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.to(dtype).contiguous() for name, tensor in self.dynamics.state_dict().items()}
        save_file(weights, path / "dynamics" / "model.safetensors")
        config = json.dumps(dataclasses.asdict(self.dynamics.config), indent=2)
        (path / "dynamics" / "config.json").write_text(config + "\n")
        save_autoencoder(self.autoencoder, path / "autoencoder", dtype)
        prompts = [*self.card.prompts, *(start["prompt"] for start in self.starts)]
        self.book.save(path / "prompts.safetensors", prompts)
        arrays = {
            f"{i}.{name}": array
            for i, start in enumerate(self.starts)
            for name, array in {
                "frames": start["frames"],
                "prompt": np.asarray(start["prompt"]),
                **actions_to_arrays("actions", start["actions"]),
            }.items()
        }
        np.savez_compressed(path / "starts.npz", **arrays)  # type: ignore[arg-type]
        write_card(self.card, path)

    @staticmethod
    def from_pretrained(name: str | Path, dtype: torch.dtype | None = None) -> World:
        """Load a world from a folder, or from a hub id where one can be reached.

        Args:
            name: folder or hub id ("user/name").
            dtype: of the weights; None keeps bfloat16 where the machine computes in it, float32 elsewhere.

        Raises:
            WorldNotFound: nothing there.
            WorldFormatError: a card of another format version.
            WorldError: a damaged or incomplete folder.
        """
        path = find_world(name)
        return _OWN.call(lambda: _load(path, read_card(path), dtype))

    def fingerprint(self) -> str:
        """A hash of the weights: what a replay or a snapshot belongs to."""
        return fingerprint(item for part in (self.autoencoder, self.dynamics) for item in part.state_dict().items())


def _load(path: Path, card: WorldCard, dtype: torch.dtype | None) -> World:
    try:
        autoencoder = load_autoencoder(card.autoencoder, card.latent_mean, card.latent_std, path / "autoencoder")
        dynamics = read_dynamics(path / "dynamics")
        starts = _read_starts(path / "starts.npz")
        book = PromptBook(dynamics.config.text_width, card.text_encoder, dynamics.config.text_tokens)
        book.load(path / "prompts.safetensors")
        world = World(card, autoencoder, dynamics, book, starts)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        reason = f"is incomplete: there is no {error.filename}" if missing else f"cannot be read: {error}"
        hint = "Fetch or export it again." if missing else "The disk or its permissions are the cause."
        raise WorldError(f"world {path} {printable(reason)}. {hint}") from error
    except (SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, WorldError):
            raise
        reason = printable(f"there is no {error}" if isinstance(error, KeyError) else str(error))
        raise WorldError(f"world {path} is damaged or incomplete: {reason}. Fetch or export it again.") from error
    world.path = path
    return world.to(dtype or default_dtype())


def default_dtype() -> torch.dtype:
    """Bfloat16 where the CPU multiplies it in hardware (about twice as fast), float32 elsewhere."""
    return torch.bfloat16 if torch.backends.mkldnn.is_available() and _has_bf16() else torch.float32


def _has_bf16() -> bool:
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()) and torch.cpu._is_avx512_bf16_supported()


def find_world(name: str | Path) -> Path:
    """The folder of a world: a path that has a `world.json`, or a snapshot of a hub id.

    Raises:
        WorldNotFound: neither.
    """
    path = Path(name)
    if (path / "world.json").is_file():
        return path
    text = str(name)
    hint = "Allowed: a folder with a world.json, or a hub id such as user/name. Make one with: worldsim train"
    if path.exists() or text.count("/") != 1 or text.startswith((".", "/", "~")):
        raise WorldNotFound(f"there is no world at {text!r} (no world.json there). {hint}")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(text, allow_patterns=FILES))
    except Exception as error:  # the hub client raises many kinds: offline, unknown, forbidden
        raise WorldNotFound(f"no world at {text!r}: no such folder, and the hub said {error!s:.200}. {hint}") from error


def write_card(card: WorldCard, path: Path) -> None:
    """Write `world.json`."""
    with replacing(path / "world.json") as partial:  # a world without its card is none
        partial.write_text(json.dumps(dataclasses.asdict(card), indent=2) + "\n")


def read_card(path: Path) -> WorldCard:
    """Read `world.json`.

    Raises:
        WorldFormatError: another format version.
        WorldError: not a card.
    """
    try:
        data = read_json(path / "world.json")
    except (OSError, Untrusted) as error:
        raise WorldError(f"{path / 'world.json'} cannot be read: {error}. Fetch or export the world again.") from error
    version = data.get("format_version")
    if version != FORMAT_VERSION:
        raise WorldFormatError(
            f"world {path} has format_version {version!r:.40}; this worldsim reads {FORMAT_VERSION}. "
            "Export it again with this version, or use the worldsim version that wrote it."
        )
    try:
        return convert(data, WorldCard)
    except Untrusted as error:
        raise WorldError(f"{path / 'world.json'} is no card of a world: {error}.") from error


def _read_starts(path: Path) -> list[dict[str, Any]]:
    """Read the clips that a world carries.

    Raises:
        WorldError: the file is damaged, or has something else in it.
    """
    try:
        clips: dict[int, dict[str, Any]] = {}
        for name, array in read_npz(path).items():
            number, _, part = name.partition(".")
            clips.setdefault(int(number), {})[part] = array
        if sorted(clips) != list(range(len(clips))):
            raise Untrusted(f"its clips have the numbers {sorted(clips)[:8]}")
        found = []
        for clip in (clips[number] for number in range(len(clips))):
            frames, prompt = clip.pop("frames"), clip.pop("prompt")
            if prompt.shape or frames.ndim != 4 or frames.dtype != np.uint8:
                raise Untrusted(f"a clip has frames {frames.dtype} {frames.shape} and {prompt.size} prompts")
            found.append({"frames": frames, "actions": actions_from_arrays("actions", clip), "prompt": str(prompt)})
        return found
    except (OSError, KeyError, ValueError) as error:
        raise WorldError(f"{path} cannot be read ({error}); fetch or export the world again.") from error
