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
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldsim.games.car_racing.palettes import GROUNDS, ROADS, sample_palette
from worldsim.games.car_racing.prompts import prompt_for
from worldsim.models.attention import TextAttention
from worldsim.models.text import WORDS, TransformersEncoder

ROAD_NAMES, GROUND_NAMES = list(ROADS), list(GROUNDS)
WIDTH, HEADS = 192, 3  # of the shipped worlds' attention
PROMPTS, STEPS, BATCH = 2000, 400, 48
LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Phrase(NamedTuple):
    """A prompt and what it names; None is not scored."""

    text: str
    road: str | None
    ground: str | None


def phrases(lines: str) -> list[Phrase]:
    """Read lines of "road ground: text"; "-" is an attribute that is not scored."""
    found = []
    for line in lines.strip().splitlines():
        labels, _, text = line.strip().partition(": ")
        road, ground = (None if name == "-" else name for name in labels.split())
        assert (road is None or road in ROADS) and (ground is None or ground in GROUNDS), line
        found.append(Phrase(text, road, ground))
    return found


SYNONYMS = phrases("""
    black grass: a charcoal road across the lawn
    black sand: a pitch-dark street over the dunes
    black grass: an ebony lane across the lawn
    black snow: a jet highway through frost
    black forest: a tarred highway through the jungle
    grey grass: a slate lane in the pasture
    grey grass: a silver highway over the prairie
    grey night: a concrete street at midnight
    grey snow: a concrete motorway in a blizzard
    brick snow: a crimson lane through powder and ice
    brick sea: a scarlet street across the ocean
    brick grass: a maroon street over the lawn
    brick sand: a terracotta path in the dunes
    dirt forest: a mud path through the jungle
    dirt grass: an earthen trail across the lawn
    dirt snow: a chocolate coloured lane through frost
    dirt grass: a soil track over the prairie
    white forest: an ivory lane in the jungle
    white sea: a chalk path across the lagoon
    white blossom: a milky street through sakura petals
    blue grass: an azure lane on the lawn
    blue snow: a navy street in a blizzard
    blue sand: a cobalt highway over the dunes
    blue forest: a sapphire path among the pines
    yellow sea: a golden lane across the ocean
    yellow grass: a lemon street over the lawn
    yellow snow: a mustard lane through frost
    yellow night: a banana coloured street at midnight
    purple grass: a lilac lane across the lawn
    purple sand: a lavender street in the dunes
    purple night: a magenta highway at midnight
    purple snow: a plum coloured path through frost
    purple forest: a mauve street among the pines
    grey grass: a grey road over turf
    white grass: a white road on the lawn
    black grass: a black road in a pasture
    black snow: a black road through a blizzard
    blue snow: a blue road over ice and frost
    grey snow: a grey road through the arctic
    black sand: a black road over dunes
    white sand: a white road on the beach
    purple sand: a purple road through the sahara
    white night: a white road under the stars
    grey night: a grey road at midnight
    yellow night: a yellow road after sunset
    black mars: a black road on the crimson planet
    black mars: a black road over rusty boulders
    blue autumn: a blue road among maple foliage
    grey autumn: a grey road through october foliage
    white sea: a white road across the ocean
    yellow sea: a yellow road over the lagoon
    black ash: a black road through cinders
    white ash: a white road over soot
    grey blossom: a grey road among sakura petals
    black blossom: a black road through rose petals
    dirt forest: a brown road through the jungle
    white forest: a white road among pines
    white -: a pale road
    - grass: a lawn with a road
    - snow: a road in the cold of the north pole
""")

SWAPPED = phrases("""
    brick snow: a red road under blue snow
    blue snow: a blue road under red snow
    yellow grass: a yellow road beside purple grass
    purple grass: a purple road beside yellow grass
    white sea: a white road across black water
    black sea: a black road across white water
    blue mars: a blue road over white martian rocks
    white mars: a white road over blue martian rocks
    grey forest: a grey road in a yellow forest
    yellow forest: a yellow road in a grey forest
    purple sand: a purple road through blue sand
    blue sand: a blue road through purple sand
    black blossom: a black road among white blossom
    white blossom: a white road among black blossom
    brick ash: a red road across white ash
    white ash: a white road across red ash
    blue autumn: a blue road through purple leaves
    purple autumn: a purple road through blue leaves
    yellow night: a yellow road through a blue night
    blue night: a blue road through a yellow night
    black snow: yellow snow with a black road
    yellow snow: black snow with a yellow road
    white grass: grey grass and a white road
    grey grass: white grass and a grey road
    purple sea: red water beside a purple road
    brick sea: purple water beside a red road
    blue sand: black sand with a blue road
    black sand: blue sand with a black road
    brick forest: a blue forest and a red road
    blue forest: a red forest and a blue road
    white mars: yellow martian rocks, a white road
    yellow mars: white martian rocks, a yellow road
    purple blossom: white flowers, a purple road
    white blossom: purple flowers, a white road
    grey autumn: yellow autumn leaves around a grey road
    yellow autumn: grey autumn leaves around a yellow road
    black ash: blue ash and a black road
    blue ash: black ash and a blue road
    brick snow: driving on a red road through purple snow
    purple snow: driving on a purple road through red snow
    black sea: a car on a black road, yellow water around
    yellow sea: a car on a yellow road, black water around
    white grass: a race on a white road in purple grass
    purple grass: a race on a purple road in white grass
    yellow sand: the yellow road runs through white sand
    white sand: the white road runs through yellow sand
    blue grass: a blue track winding through red fields
    brick grass: a red track winding through blue fields
""")

TYPING_ERRORS = phrases("""
    - sand: dessert raod
    - grass: grene grass
    grey grass: a gery road through green gras
    grey snow: a greay road through fresh snwo
    black sand: a blak road through desert snad
    black snow: a balck road in white sonw
    brick grass: a red birck road through green grsas
    brick night: a rde brick raod at nihgt
    dirt forest: a dirt rod through a dark forrest
    dirt grass: a brwon dirt track across a green medow
    white sea: a whit road through the blue see
    white night: a wihte road through the drak night
    blue grass: a bleu road through green grass
    blue snow: a bule road through fersh snow
    yellow grass: a yelow road through a green meadwo
    yellow sea: a yellwo road across blue watter
    purple snow: a purpel road through fresh snow
    purple forest: a pruple road in a drak green forest
    grey autumn: a grey road through autum leaves
    grey autumn: a grey roda through ornage leaves
    black mars: a black road on red rokc
    black mars: a black raod in a red martain desert
    grey blossom: a grey road and pink blosom
    grey blossom: a gray road in pinck flowers
    black ash: a black road across volcanik ash
    white ash: a white road in grey ahs
    white forest: a wite track through deep green woodz
    black sand: a black asphlt road in a sandy dessert
    grey grass: a grey tarmack road through grren fields
    purple grass: a voilet track through green grass
    brick snow: a red brik road through white snow
    dirt snow: a muddy borwn road in a snowey field
    white grass: an icy white raod, green medow
    blue sand: a road paintd blue through yelow sand
    yellow night: a raod painted yellow in the dark nigth
    purple sea: open watter with a purple road
    - snow: a wintr race
    - sand: a desrt race
    - night: a race at nite
    - autumn: an autunm race
    - forest: a forrest trail
    - ash: a vulcano race
    - blossom: a sping race
    grey snow: fresh snow and a greyroad
    black sea: a blackroad across thesea
    blue forest: a bluw road through a dark forest
    yellow sand: a ywllow road through desert sand
    white mars: a white road in red rpck
    brick sea: a red brick rpad by the blue sea
    purple night: a purple road throuhg the dark ngiht
""")

SETS = {"synonyms": SYNONYMS, "swapped": SWAPPED, "typing errors": TYPING_ERRORS}

Encode = Callable[[str], Tensor]


def minilm() -> Encode:
    """Contextual states (W, 384) of all-MiniLM-L6-v2."""
    return TransformersEncoder().encode


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
        states = table[tokenizer.encode(text.lower().strip(), add_special_tokens=False).ids[:WORDS]].float()
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
            self.position = nn.Parameter(torch.randn(WORDS, WIDTH) * 0.02)
            layer = nn.TransformerEncoderLayer(WIDTH, 4, 2 * WIDTH, 0.1, batch_first=True, norm_first=True)
            self.tower = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
            text_width = WIDTH
        self.query = nn.Parameter(torch.randn(1, 1, 2, WIDTH))
        self.attention = TextAttention(WIDTH, HEADS, text_width)
        self.road, self.ground = nn.Linear(WIDTH, len(ROADS)), nn.Linear(WIDTH, len(GROUNDS))

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, 8) and (B, 10) of states (B, WORDS, text_width)."""
        if self.tower is not None:
            states = self.tower(self.into(states) + self.position, src_key_padding_mask=~mask)
        query = self.query.expand(len(states), -1, -1, -1)
        read = F.silu(self.attention(query, self.attention.words(states, mask)))[:, 0]
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
    """Padded states (N, WORDS, width) and their mask."""
    found = [encode(text)[:WORDS] for text in texts]
    states, mask = torch.zeros(len(found), WORDS, found[0].shape[-1]), torch.zeros(len(found), WORDS, dtype=torch.bool)
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
