"""Which text encoder a world should be trained on: what a small read-out of its states makes of words it never saw.

python tests/benchmarks/text_encoders.py          # some eight minutes on one idle core
pip install --no-deps wordllama==0.4.0.post1      # before it, for the rows of wordllama; left out where it is missing

A head learns road colour and ground from the prompts that `palettes.prompt_for` makes of the training pairs. Its
read-out is the transformer's own cross-attention with one learned query for each attribute. It is tested on three
hand-made sets: synonyms that no training prompt has, pairs of prompts whose colours are swapped, and typing errors.
wordllama (static token vectors, MIT) needs a tower, as a set of vectors cannot say which colour belongs to the road.
Prints Markdown: the share of attributes that are named right, means over the seeds; in brackets the range.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from text_prompts import SETS, Phrase
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim.games.car_racing.palettes import GROUNDS, ROADS, sample_palette
from worldsim.games.car_racing.prompts import prompt_for
from worldsim.models.attention import CrossAttention
from worldsim.models.text import TOKENS
from worldsim.models.text_encoders import TransformersEncoder

ROAD_NAMES, GROUND_NAMES = list(ROADS), list(GROUNDS)
WIDTH, HEADS = 192, 3  # of the shipped worlds' attention
PROMPTS, STEPS, BATCH = 2000, 400, 48
LETTERS = "abcdefghijklmnopqrstuvwxyz"

Encode = Callable[[str], Tensor]


def minilm() -> Encode:
    """Contextual states (W, 384) of all-MiniLM-L6-v2."""
    encoder = TransformersEncoder()
    return lambda text: encoder.encode(text, TOKENS)


def wordllama() -> Encode:
    """Static token vectors (W, 256) of wordllama, scaled as `TransformersEncoder` scales its states."""
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    spec = importlib.util.find_spec("wordllama")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    tokenizer = Tokenizer.from_file(str(folder / "tokenizers" / "l2_supercat_tokenizer_config.json"))
    (table,) = load_file(folder / "weights" / "l2_supercat_256.safetensors").values()

    def encode(text: str) -> Tensor:
        states = table[tokenizer.encode(text.lower().strip(), add_special_tokens=False).ids[:TOKENS]].float()
        return states / states.square().mean(dim=-1, keepdim=True).sqrt()

    return encode


class ReadOut(nn.Module):
    """Road and ground from text states: an optional tower of transformer layers, then a world's cross-attention."""

    def __init__(self, text_width: int, layers: int) -> None:
        """`layers` of the tower; 0 leaves it out."""
        super().__init__()
        self.tower = None
        if layers:
            self.into = nn.Linear(text_width, WIDTH)
            self.position = nn.Parameter(torch.randn(TOKENS, WIDTH) * 0.02)
            layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.1, batch_first=True, norm_first=True)
            self.tower = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
            text_width = WIDTH
        self.query = nn.Parameter(torch.randn(1, 1, 2, WIDTH))
        self.attention = CrossAttention(WIDTH, HEADS, text_width)
        self.road, self.ground = nn.Linear(WIDTH, len(ROADS)), nn.Linear(WIDTH, len(GROUNDS))

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, 8) and (B, 10) of states (B, TOKENS, text_width)."""
        if self.tower is not None:
            states = self.tower(self.into(states) + self.position, src_key_padding_mask=~mask)
        query = self.query.expand(len(states), -1, -1, -1)
        read = F.silu(self.attention(query, self.attention.project(states, mask)))[:, 0]
        return self.road(read[:, 0]), self.ground(read[:, 1])


def mistype(text: str, rng: random.Random) -> str:
    """The text with one or two random typing errors: two letters swapped, one left out, doubled or replaced."""
    for _ in range(rng.randint(1, 2)):
        i = rng.randrange(len(text) - 1)
        text = rng.choice(
            [
                text[:i] + text[i + 1] + text[i] + text[i + 2 :],
                text[:i] + text[i + 1 :],
                text[: i + 1] + text[i:],
                text[:i] + rng.choice(LETTERS) + text[i + 1 :],
            ]
        )
    return text


def stack(encode: Encode, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Padded states (N, TOKENS, width) and their mask."""
    found = [encode(text)[:TOKENS] for text in texts]
    states, mask = (
        torch.zeros(len(found), TOKENS, found[0].shape[-1]),
        torch.zeros(len(found), TOKENS, dtype=torch.bool),
    )
    for row, item in enumerate(found):
        states[row, : len(item)], mask[row, : len(item)] = item, True
    return states, mask


def labels(found: list[Phrase]) -> Tensor:
    """Class numbers (N, 2), -100 where an attribute is not scored."""
    return torch.tensor(
        [
            [
                -100 if phrase.road is None else ROAD_NAMES.index(phrase.road),
                -100 if phrase.ground is None else GROUND_NAMES.index(phrase.ground),
            ]
            for phrase in found
        ]
    )


def training_phrases(mistyped: float) -> list[Phrase]:
    """Prompts of the training pairs, the same for every encoder; a share of them with typing errors."""
    rng, other = np.random.default_rng(0), random.Random(0)
    found = []
    for _ in range(PROMPTS):
        palette = sample_palette(rng, "train")
        text = prompt_for(palette, rng)
        found.append(Phrase(mistype(text, other) if other.random() < mistyped else text, palette.road, palette.ground))
    return found


def train(states: Tensor, mask: Tensor, target: Tensor, layers: int, seed: int) -> ReadOut:
    """A trained read-out."""
    torch.manual_seed(seed)
    head = ReadOut(states.shape[-1], layers)
    optimizer = torch.optim.AdamW(head.parameters(), lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=STEPS)
    for _ in range(STEPS):
        rows = torch.randint(len(states), (BATCH,))
        road, ground = head(states[rows], mask[rows])
        loss = F.cross_entropy(road, target[rows, 0]) + F.cross_entropy(ground, target[rows, 1])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return head.eval()


@torch.no_grad()
def score(head: ReadOut, states: Tensor, mask: Tensor, target: Tensor) -> tuple[float, float, float]:
    """Shares that are right: of roads, of grounds, of both together."""
    right = torch.stack([logits.argmax(dim=-1) for logits in head(states, mask)], dim=1) == target
    scored = target >= 0
    road, ground = ((right[:, i] & scored[:, i]).sum() / scored[:, i].sum() for i in (0, 1))
    return float(road), float(ground), float((right & scored).sum() / scored.sum())


def main() -> None:
    """Train and test every encoder; print a table and, with --out, write all figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--encoders", nargs="+", default=["minilm", "wordllama"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    encoders: dict[str, tuple[Callable[[], Encode], list[tuple[int, float]]]] = {
        "minilm": (minilm, [(0, 0.0), (1, 0.0), (0, 0.5)])  # layers of the tower, share of mistyped training prompts
    }
    if importlib.util.find_spec("wordllama") is not None:
        encoders["wordllama"] = (wordllama, [(0, 0.0), (1, 0.0), (2, 0.0), (0, 0.5)])
    results: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
    heads = [f"{name}: road, ground, both" for name in SETS]
    print(" | ".join(["| states", "tower", "training prompts", "these", *heads]) + " |")
    print("| --- " * (4 + len(SETS)) + "|")
    for name, (load, settings) in encoders.items():
        if name not in options.encoders:
            continue
        begin = time.perf_counter()
        encode = functools.cache(load())
        encode("a road")
        loaded = time.perf_counter() - begin
        begin = time.perf_counter()
        tests = {label: (*stack(encode, [p.text for p in found]), labels(found)) for label, found in SETS.items()}
        each = (time.perf_counter() - begin) / sum(map(len, SETS.values()))
        for layers, mistyped in settings:
            prompts = training_phrases(mistyped)
            known = (*stack(encode, [phrase.text for phrase in prompts]), labels(prompts))
            row: dict[str, list[tuple[float, float, float]]] = {label: [] for label in ("training", *SETS)}
            for seed in range(options.seeds):
                head = train(*known, layers, seed)
                for label, test in {"training": known, **tests}.items():
                    row[label].append(score(head, *test))
            cells = [f"{np.mean([both for _, _, both in row['training']]):.2f}"]
            for label in SETS:
                road, ground, both = np.array(row[label]).T
                spread = f"{both.mean():.2f} [{both.min():.2f}, {both.max():.2f}]"
                cells.append(f"{road.mean():.2f}, {ground.mean():.2f}, {spread}")
            clean = "half mistyped" if mistyped else "as made"
            tower = f"{layers} layers" if layers else "none"
            print(f"| {name} | {tower} | {clean} | " + " | ".join(cells) + " |", flush=True)
            results[f"{name}, {layers} layers, {clean}"] = row
        print(f"<!-- {name}: loaded in {loaded:.1f} s, {1e3 * each:.1f} ms a prompt -->", flush=True)
    if options.out is not None:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
