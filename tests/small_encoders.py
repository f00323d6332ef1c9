"""Tiny text encoders with random weights, as transformers saves them: real models, real tokenizers, no network."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
    UMT5Config,
    UMT5ForConditionalGeneration,
)
from transformers.utils import logging

WORDS = ["a", "red", "car", "cart", "on", "the", "road", "snow", "at", "night", "under", "two", "moons", "blue"]
LONG = " ".join(["a red car on the road at night"] * 5)  # 40 words


def clip_tokenizer(path: Path) -> CLIPTokenizer:
    """Byte pairs, small letters, a token before and after."""
    corpus = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    corpus.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    corpus.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<|startoftext|>", "<|endoftext|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=120, special_tokens=special, end_of_word_suffix="</w>", show_progress=False
    )
    corpus.train_from_iterator([" ".join(WORDS)] * 3, trainer)
    found = json.loads(corpus.to_str())["model"]
    path.mkdir(parents=True, exist_ok=True)
    (path / "vocab.json").write_text(json.dumps(found["vocab"]))
    (path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in found["merges"]))
    return CLIPTokenizer(vocab=str(path / "vocab.json"), merges=str(path / "merges.txt"))


def t5_tokenizer(path: Path) -> T5Tokenizer:
    """Pieces, letters large and small, a token after."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *(("\u2581" + word, -1.0) for word in WORDS)]
    letters = "\u2581abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return T5Tokenizer(vocab=[*pieces, *((letter, -3.0) for letter in letters)], extra_ids=0)


def bert_tokenizer(path: Path) -> BertTokenizer:
    """Words, letters large and small, a token before and after."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = {word: i for i, word in enumerate([*special, *WORDS, *(word.capitalize() for word in WORDS)])}
    return BertTokenizer(vocab=vocab, do_lower_case=False)


TEXT: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
T5: dict[str, Any] = {"d_model": 24, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 3}
VISION: dict[str, Any] = TEXT | {"hidden_size": 16, "image_size": 32, "patch_size": 16, "projection_dim": 16}


def _clip_text(tokenizer: Any) -> CLIPTextConfig:
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return CLIPTextConfig(vocab_size=len(tokenizer), projection_dim=16, **TEXT, **ends)


def _bart(tokenizer: Any) -> BartModel:
    layers: dict[str, Any] = {
        f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in ("layers", "attention_heads")
    }
    return BartModel(BartConfig(vocab_size=len(tokenizer), d_model=32, max_position_embeddings=64, **layers))


KINDS: dict[str, tuple[Callable[[Path], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    # how to make the tokenizer and the model, and the part of the model that reads text
    "clip": (clip_tokenizer, lambda t: CLIPTextModel(_clip_text(t)), lambda model: model),
    "clip-two-towers": (
        clip_tokenizer,
        lambda t: CLIPModel(CLIPConfig(text_config=_clip_text(t).to_dict(), vision_config=VISION, projection_dim=16)),
        lambda model: model.text_model,
    ),
    "t5": (
        t5_tokenizer,
        lambda t: T5ForConditionalGeneration(T5Config(vocab_size=len(t), **T5)),
        lambda model: model.encoder,
    ),
    "umt5": (
        t5_tokenizer,
        lambda t: UMT5ForConditionalGeneration(UMT5Config(vocab_size=len(t), **T5)),
        lambda model: model.encoder,
    ),
    "bert": (bert_tokenizer, lambda t: BertModel(BertConfig(vocab_size=len(t), **TEXT)), lambda model: model),
    "bart": (bert_tokenizer, _bart, lambda model: model.encoder),
}


def save_encoder(kind: str, path: Path) -> tuple[Any, Any]:
    """Make an encoder of some kind with random weights, save it, and return its tokenizer and what reads text."""
    torch.manual_seed(5)
    logging.disable_progress_bar()
    make_tokenizer, make_model, reader = KINDS[kind]
    tokenizer = make_tokenizer(path)
    model = make_model(tokenizer).eval()
    for parameter in model.parameters():  # as first weights all prompts are nearly the same
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return tokenizer, reader(model)
