"""Prompts as per-token states, encoded once, where text comes in.

A `PromptBook` stands at that border: text goes in, `types.Prompt` comes out, and nothing behind it reads text. The
encoder is only loaded for a prompt that nobody encoded before: a world carries the states of the prompts it was
trained on, and its book remembers every new one.
"""

from __future__ import annotations

import copy
import json
import time
from collections import deque
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from worldsim.errors import PromptError, WorldError, WorldsimError
from worldsim.models.text_encoders import DEFAULT_ENCODER, TextEncoder, TransformersEncoder
from worldsim.threads import OwnThreads
from worldsim.types import Prompt
from worldsim.untrusted import parse_json

TOKENS = 20  # tokens kept of a prompt, where a world does not say
MOST_ENCODED = 2048  # prompts that are kept besides those of a world's file
RETRY = 300.0  # seconds until an encoder that cannot be loaded is tried again: it may take long, and others wait
LONGEST = 100_000  # characters of a prompt: far more than an encoder reads, and few enough to look through at once
_OWN = OwnThreads()  # where text is encoded: the caller's settings of torch would change the states' last bits


class PromptBook:
    """Prompts by their text; unknown ones are encoded when first asked for.

    Args:
        width: of the states.
        encoder: name for `TransformersEncoder`, loaded when first needed, or an encoder; None for a world without text.
        tokens: at most so many of a prompt are kept.

    Attributes:
        prompts: by `key` of their text.
        lowercase: whether the case of letters makes no difference; None until an encoder or a file says.
    """

    def __init__(self, width: int, encoder: str | TextEncoder | None = DEFAULT_ENCODER, tokens: int = TOKENS) -> None:
        """Start with the empty prompt alone, which no encoder reads: it has no tokens."""
        self.width, self.tokens = width, tokens
        self.encoder_name = encoder if encoder is None or isinstance(encoder, str) else encoder.name
        self._encoder = None if isinstance(encoder, str) else encoder
        self._failure: tuple[float, WorldsimError] | None = None  # when loading the encoder has failed, and why
        self.lowercase = None if self._encoder is None else self._encoder.lowercase
        self.prompts: dict[str, Prompt] = {"": Prompt("", torch.zeros(0, width))}
        self._encoded: deque[str] = deque()  # those that no file brought, oldest first

    def key(self, text: str) -> str:
        """The form in which a prompt is looked up: single spaces, and small letters unless the encoder reads case.

        Raises:
            MissingDependency, PromptError, WorldError: as in `encode`.
        """
        words = " ".join(text.split())
        if words and self.lowercase is None:
            self.lowercase = _OWN.call(lambda: self._loaded(text).lowercase)
        return words if self.lowercase is False else words.lower()

    def encode(self, text: str) -> Prompt:
        """The prompt of a text, encoded if it is new.

        Raises:
            PromptError: the world takes no prompts, or `text` is not a string, or too long.
            MissingDependency: the prompt is new and the text encoder's package is not installed.
            WorldError: the prompt is new and the text encoder cannot be loaded, or is not the world's.
        """
        if not isinstance(text, str):
            raise PromptError(f"the prompt is {text!r:.100} of type {type(text).__name__}; allowed: a string.")
        if len(text) > LONGEST:
            raise PromptError(f"the prompt has {len(text)} characters; allowed: up to {LONGEST}.")
        if not text.isascii() and any("\ud800" <= part <= "\udfff" for part in text):
            raise PromptError(f"the prompt {text!r:.100} has half of a character (a surrogate); allowed: whole text.")
        key = self.key(text)
        found = self.prompts.get(key)
        if found is None:  # engines that share a world may meet a new prompt at once: one after the other
            found = _OWN.call(lambda: self.prompts.get(key) or self._encode(key, text))
        return found if found.text == text else found.under(text)

    def load_encoder(self) -> None:
        """Load the text encoder now, which the first new prompt would wait for; a world without text has none.

        Raises:
            MissingDependency, WorldError: as in `encode`.
        """
        if self.encoder_name is not None:
            _OWN.call(lambda: self._loaded(""))

    def _encode(self, key: str, text: str) -> Prompt:
        found = Prompt(key, self._loaded(text).encode(key, self.tokens)[: self.tokens])
        if len(self._encoded) >= MOST_ENCODED:  # who still needs it has it encoded again, to the same states
            del self.prompts[self._encoded.popleft()]
        self._encoded.append(key)
        self.prompts[key] = found
        return found

    def _loaded(self, text: str) -> TextEncoder:
        """Load the encoder, which is needed to read `text`."""
        if self._encoder is None:
            if self.encoder_name is None:
                raise PromptError(f"this world takes no prompts, got {text!r}; allowed: the empty prompt ''.")
            if self._failure is not None and time.monotonic() - self._failure[0] < RETRY:
                raise copy.copy(self._failure[1])
            try:
                self._encoder = TransformersEncoder(self.encoder_name)
            except WorldsimError as error:
                self._failure = time.monotonic(), copy.copy(error)
                raise
        if self._encoder.width != self.width:
            raise WorldError(
                f"the text encoder {self.encoder_name!r} gives states {self._encoder.width} wide, the model takes "
                f"{self.width}; use the encoder that it was trained with."
            )
        return self._encoder

    def save(self, path: Path, texts: list[str]) -> None:
        """Write the states of `texts` (fp16)."""
        keys = sorted({self.key(text) for text in texts} - {""})
        tensors = {str(i): self.encode(key).states.half().contiguous() for i, key in enumerate(keys)}
        about = {"prompts": json.dumps(keys), "lowercase": json.dumps(self.lowercase is not False)}
        save_file(tensors, path, metadata=about)

    def load(self, path: Path) -> None:
        """Add the prompts of a file that `save` wrote.

        Raises:
            WorldError: the file is damaged or not one of ours.
        """
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                keys = parse_json(about["prompts"], list[str])
                found = {key: Prompt(key, file.get_tensor(str(i)).float()) for i, key in enumerate(keys)}
                lowercase = parse_json(about.get("lowercase", "true"), bool)  # before it was written it always was
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise WorldError(
                f"cannot read the prompts in {path} ({error}); fetch or export the world again."
            ) from error
        if not all(prompt.states.isfinite().all() for prompt in found.values()):
            raise WorldError(f"the prompts in {path} have states that are not finite; fetch or export the world again.")
        shapes = {tuple(prompt.states.shape) for prompt in found.values()}
        if any(len(shape) != 2 or shape[0] > self.tokens or shape[1] != self.width for shape in shapes):
            raise WorldError(
                f"the prompts in {path} have states of shapes {sorted(shapes)[:3]}, the model takes up to "
                f"({self.tokens}, {self.width}); fetch or export the world again."
            )
        self.prompts |= found
        self.lowercase = lowercase
