"""The seam of text encoders: tiny random CLIP, T5 and UMT5 pass it, and worlds are trained and played with them."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_encoders import KINDS, LONG, save_encoder
from tiny import tiny_dynamics
from transformers import CLIPVisionConfig, CLIPVisionModel

from worldsim.data.episodes import Dataset
from worldsim.data.record import RecordConfig, record
from worldsim.engine.engine import Engine
from worldsim.engine.session import Snapshot
from worldsim.engine.simulator import Simulator
from worldsim.engine.stages import example
from worldsim.envs.world_env import WorldEnv
from worldsim.errors import ConfigError, WorldError
from worldsim.models.text import PromptBook
from worldsim.models.text_encoders import TransformersEncoder
from worldsim.training.run import prepare, train_dynamics
from worldsim.world import World

NEW = "a blue car under two moons"  # no world here was trained with it


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any, Any]]:
    """Of each kind its folder, its tokenizer, and the part of the model that reads text."""
    top = tmp_path_factory.mktemp("encoders")
    return {kind: (top / kind, *save_encoder(kind, top / kind)) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_states_are_those_of_the_part_that_reads_text(kind: str, encoders: dict) -> None:
    folder, tokenizer, reader = encoders[kind]
    encoder = TransformersEncoder(str(folder))
    ids = tokenizer(NEW, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = reader(input_ids=ids).last_hidden_state[0]
    found = encoder.encode(NEW, 77)
    assert found.shape == (ids.shape[1], encoder.width) and found.dtype == torch.float32
    torch.testing.assert_close(found, states / states.square().mean(-1, keepdim=True).sqrt())
    torch.testing.assert_close(found.square().mean(-1), torch.ones(len(found)))
    names = [name for name, _ in encoder.model.named_parameters()]
    assert not any("decoder" in name or "vision" in name for name in names)
    words = [len(tokenizer(text)["input_ids"]) for text in ("", "a")]
    assert words[1] > words[0] >= 1  # the special tokens are there


@pytest.mark.parametrize(("kind", "lowercase"), [("clip", True), ("t5", False), ("umt5", False), ("bert", False)])
def test_case_matters_where_the_tokenizer_reads_it(kind: str, lowercase: bool, encoders: dict, tmp_path: Path) -> None:
    encoder = TransformersEncoder(str(encoders[kind][0]))
    assert encoder.lowercase == lowercase
    assert torch.equal(encoder.encode("a Car", 20), encoder.encode("a car", 20)) == lowercase
    book = PromptBook(encoder.width, str(encoders[kind][0]))
    small, large, spaced = (book.encode(text) for text in ("a car", "a Car", "a  car "))
    assert (small == large) == lowercase and small == spaced
    assert [prompt.text for prompt in (small, large, spaced)] == ["a car", "a Car", "a  car "]
    book.save(tmp_path / "prompts", ["a Car"])  # a world that was loaded knows it without the encoder
    again = PromptBook(encoder.width, str(tmp_path / "nowhere"))
    again.load(tmp_path / "prompts")
    torch.testing.assert_close(again.encode("a Car").states, large.states, rtol=2e-3, atol=2e-3)
    if lowercase:
        assert again.encode("A CAR") == again.encode("a car") == again.encode("a Car")
    else:
        with pytest.raises(WorldError, match="nowhere"):
            again.encode("a car")


@pytest.mark.parametrize(("kind", "longest"), [("clip", 77), ("clip-two-towers", 77), ("t5", 512), ("bart", 64)])
def test_as_many_tokens_as_asked_for_and_as_the_encoder_reads(kind: str, longest: int, encoders: dict) -> None:
    folder, tokenizer, _ = encoders[kind]
    encoder = TransformersEncoder(str(folder))
    assert encoder.longest == longest
    whole = len(tokenizer(LONG)["input_ids"])
    assert 40 < whole < 77
    for tokens in (1, 2, 20, 50, 512):
        assert len(encoder.encode(LONG, tokens)) == min(tokens, whole, longest)
    assert encoder.tokens_of(["a", LONG, ""]) == min(whole, longest) and encoder.tokens_of([]) == 0
    assert encoder.tokens_of([LONG * 20]) == longest == len(encoder.encode(LONG * 20, 10**6))
    ends = encoder.tokenizer(LONG, truncation=True, max_length=20)["input_ids"][-1]
    assert ends == tokenizer("a")["input_ids"][-1]  # a prompt that is cut ends as any other


def test_the_empty_prompt_has_no_tokens(tmp_path: Path) -> None:
    """And needs no encoder, whatever the encoder makes of an empty text."""
    book = PromptBook(8, str(tmp_path / "nowhere"))
    assert book.encode("").states.shape == (0, 8) and book.encode("  ") == book.encode("")
    with pytest.raises(WorldError, match="nowhere"):
        book.encode("a")


def test_encoders_that_are_not_whole_are_refused(encoders: dict, tmp_path: Path) -> None:
    """A weight that is missing would be random, and prompts noise."""
    save_encoder("t5", tmp_path / "t5")
    weights = load_file(tmp_path / "t5" / "model.safetensors")
    cut = {name: value for name, value in weights.items() if "encoder.block.1.layer.0" not in name}
    save_file(cut, tmp_path / "t5" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(WorldError, match="weights are not in the file, such as encoder.block.1"):
        TransformersEncoder(str(tmp_path / "t5"))
    tokenizer, _ = save_encoder("clip", tmp_path / "clip")
    tokenizer.add_tokens(["anotherword"])
    tokenizer.save_pretrained(tmp_path / "clip")
    with pytest.raises(WorldError, match="its tokenizer has .* tokens, its model"):
        TransformersEncoder(str(tmp_path / "clip"))
    vision = CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    CLIPVisionModel(vision).save_pretrained(tmp_path / "vision")
    encoders["t5"][1].save_pretrained(tmp_path / "vision")
    with pytest.raises(WorldError, match="cannot load the text encoder"):
        TransformersEncoder(str(tmp_path / "vision"))


def test_an_encoder_of_another_width_is_refused(encoders: dict) -> None:
    book = PromptBook(384, str(encoders["t5"][0]))
    with pytest.raises(WorldError, match="24 wide, the model takes 384"):
        book.encode("a car")


def test_an_encoder_that_cannot_be_loaded_is_not_tried_again(encoders: dict, tmp_path: Path) -> None:
    """Each new prompt would wait for it: a host's client could hold up all others."""
    book, later = PromptBook(24, str(tmp_path / "late")), PromptBook(24, str(tmp_path / "late"))
    for ask in (book.load_encoder, lambda: book.encode("a car")):
        with pytest.raises(WorldError, match="cannot load the text encoder"):
            ask()
    assert copy.deepcopy(book).prompts.keys() == pickle.loads(pickle.dumps(book)).prompts.keys()
    shutil.copytree(encoders["t5"][0], tmp_path / "late")
    with pytest.raises(WorldError, match="cannot load the text encoder"):
        book.encode("a car")
    later.load_encoder()
    shutil.rmtree(tmp_path / "late")
    assert later.encode("a car").states.shape[1] == 24
    PromptBook(24, None).load_encoder()  # of a world without text


def trained(kind: str, encoders: dict, dataset: Dataset, autoencoder: Path, out: Path, **changes: Any) -> World:
    config = tiny_dynamics(dataset, autoencoder, out, text_encoder=str(encoders[kind][0]), **changes)
    train_dynamics(config)
    return World.from_pretrained(out / "world", dtype=torch.float32)


def frames(world: World, prompts: list[str], steps: int = 4) -> np.ndarray:
    """What is seen from seed 3 under prompts, the first one from the beginning, each for some steps."""
    env, found = WorldEnv(engine=Engine(world, runtime="eager", threads=1)), []
    for turn, prompt in enumerate(prompts):
        if turn:
            env.set_prompt(prompt)
        else:
            found.append(env.reset(seed=3, options={"prompt": prompt})[0])
        found += [env.step(np.int64(step % 2))[0] for step in range(steps)]
        assert env.prompt == prompt
    env.close()
    return np.stack(found)


def latents(world: World, prompts: list[str]) -> torch.Tensor:
    """The first frame and one under each prompt, before rounding: in six steps a model learns little of text."""
    simulator = Simulator.of(world)
    state = simulator.begin([3], [world.book.encode(prompts[0])])
    drawn = [simulator.step(state, None).latents]
    for prompt in prompts:
        state.prompts = [world.book.encode(prompt)]
        drawn.append(simulator.step(state, torch.zeros(1, world.codec.size)).latents)
    return torch.stack(drawn)


@pytest.mark.parametrize("kind", ["clip", "t5", "umt5"])
def test_a_world_is_trained_and_played_with_it(
    kind: str, encoders: dict, dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    world = trained(kind, encoders, dataset, autoencoder_run, tmp_path / "run")
    folder = str(encoders[kind][0])
    width = TransformersEncoder(folder).width
    assert (world.card.text_encoder, world.dynamics.config.text_width) == (folder, width)
    assert world.book.encode("a cart").states.shape[1] == width
    played = {text: frames(world, [text]) for text in ("", "a cart", NEW)}
    shown = [latents(world, [text]) for text in played]
    assert all((a != b).any() for a, b in zip(shown, shown[1:], strict=False))  # prompts matter
    both = frames(world, ["", NEW])
    assert np.array_equal(both[:5], played[""])
    assert (latents(world, ["", NEW])[-1] != latents(world, ["", ""])[-1]).any()

    world.save_pretrained(tmp_path / "again", dtype=torch.float32)
    again = World.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert NEW not in again.book.prompts
    for text in ("", "a cart", NEW):
        assert np.array_equal(frames(again, [text]), played[text])


def test_a_session_moves_to_a_world_that_never_saw_its_prompt(
    encoders: dict, dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    world = trained("umt5", encoders, dataset, autoencoder_run, tmp_path / "run", steps=4)
    engine = Engine(world, runtime="eager", threads=1)
    number = engine.open(seed=1, prompt="A  " + NEW)
    engine.snapshot(number).save(tmp_path / "session")
    expected = [engine.step({number: 1})[number].frame for _ in range(4)]
    other = Engine(World.from_pretrained(tmp_path / "run" / "world", torch.float32), runtime="eager", threads=1)
    restored = other.restore(Snapshot.load(tmp_path / "session"))
    assert other.sessions[restored].prompt == "A  " + NEW
    assert all(np.array_equal(other.step({restored: 1})[restored].frame, frame) for frame in expected)
    engine.close()
    other.close()


def test_a_world_reads_as_many_tokens_as_its_recording_needs(
    encoders: dict, autoencoder_run: Path, tmp_path: Path
) -> None:
    """Words behind the 20th token, which were cut off once, count; what a runtime is built on has their shape."""
    game = RecordConfig(game="CartPole-v1", out=tmp_path / "d", frames=200, workers=1, frame_size=(40, 40), prompt=LONG)
    needed = len(encoders["clip"][1](LONG)["input_ids"])
    world = trained("clip", encoders, record(game), autoencoder_run, tmp_path / "run")
    assert world.dynamics.config.text_tokens == world.book.tokens == needed > 40
    other = LONG.removesuffix("night") + "snow"
    assert (latents(world, [LONG]) != latents(world, [other])).any()
    text = Simulator.of(world).text([world.book.encode(LONG), world.book.encode("")])
    built = example(world.dynamics, 2)["denoise"][-len(text) :]
    assert [part.shape for part in text] == [part.shape for part in built]

    world.book.tokens, world.book.prompts = 20, {"": world.book.encode("")}
    assert world.book.encode(LONG) == world.book.encode(other)


def test_going_on_keeps_the_encoder(encoders: dict, dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    world = trained("t5", encoders, dataset, autoencoder_run, tmp_path / "run", steps=3)
    on = tiny_dynamics(dataset, Path(), tmp_path / "on", steps=3, init_from=tmp_path / "run" / "world")
    assert train_dynamics(on).card.text_encoder == world.card.text_encoder
    with pytest.raises(ConfigError, match="text_encoder is 'minilm'"):
        prepare(dataclasses.replace(on, text_encoder="minilm"))
