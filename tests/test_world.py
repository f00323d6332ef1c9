"""Worlds on disk: round trips, and every way a folder can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from worldsim.errors import PromptError, WorldError, WorldFormatError, WorldNotFound
from worldsim.world import World


@pytest.fixture
def folder(world_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world_path, tmp_path / "world"))


def test_round_trip(world: World, tmp_path: Path) -> None:
    world.save_pretrained(tmp_path, dtype=torch.float32)
    again = World.from_pretrained(tmp_path, dtype=torch.float32)
    assert again.card == world.card
    assert again.fingerprint() == world.fingerprint()
    assert again.action_space == world.action_space
    assert all(
        np.array_equal(a["frames"], b["frames"]) and np.array_equal(a["actions"], b["actions"])
        for a, b in zip(world.starts, again.starts, strict=True)
    )
    assert again.book.prompts == world.book.prompts


def test_shipped_prompts_need_no_encoder(world: World) -> None:
    world.book.encoder_name = None
    world.book.encode("A  Cart")  # case and spaces do not matter
    with pytest.raises(PromptError, match="takes no prompts"):
        world.book.encode("never seen before")
    with pytest.raises(PromptError, match="a string"):
        world.book.encode(7)  # type: ignore[arg-type]


def test_a_saved_world_does_not_name_where_it_was_loaded_from(world_path: Path, tmp_path: Path) -> None:
    World.from_pretrained(world_path).save_pretrained(tmp_path)
    for file in tmp_path.rglob("*.json"):
        assert "_name_or_path" not in json.loads(file.read_text()), file


def test_unknown_world(tmp_path: Path) -> None:
    with pytest.raises(WorldNotFound, match="world.json"):
        World.from_pretrained(tmp_path)
    with pytest.raises(WorldNotFound):
        World.from_pretrained(tmp_path / "nothing")


def test_another_format_version(folder: Path) -> None:
    card = json.loads((folder / "world.json").read_text())
    (folder / "world.json").write_text(json.dumps(card | {"format_version": 99}))
    with pytest.raises(WorldFormatError, match="99"):
        World.from_pretrained(folder)


@pytest.mark.parametrize(
    "name",
    ["dynamics/model.safetensors", "dynamics/config.json", "prompts.safetensors", "starts.npz", "world.json",
     "autoencoder/diffusion_pytorch_model.safetensors", "autoencoder/linear.safetensors"],
)  # fmt: skip
def test_damaged_files(folder: Path, name: str) -> None:
    path = folder / name
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WorldError):
        World.from_pretrained(folder)
    path.write_bytes(b"")
    with pytest.raises(WorldError):
        World.from_pretrained(folder)
    path.unlink()
    with pytest.raises(WorldError):
        World.from_pretrained(folder)


def test_a_card_cannot_name_any_class(folder: Path) -> None:
    card = json.loads((folder / "world.json").read_text())
    card["autoencoder"]["class"] = "DiffusionPipeline"
    (folder / "world.json").write_text(json.dumps(card))
    with pytest.raises(WorldError, match="Autoencoder"):
        World.from_pretrained(folder)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (PermissionError(13, "Permission denied", "model.safetensors"), "cannot be read: .*Permission denied"),
        (OSError(5, "Input/output error"), "cannot be read: .*Input/output error"),
        (FileNotFoundError(2, "No such file", "starts.npz"), "incomplete: there is no starts.npz"),
    ],
)
def test_what_the_system_says_is_no_damage(
    folder: Path, error: OSError, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message names the right cause: a disk that fails is no world that must be fetched again."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("worldsim.world.read_dynamics", fail)
    with pytest.raises(WorldError, match=says) as caught:
        World.from_pretrained(folder)
    assert ("etch" in str(caught.value)) == isinstance(error, FileNotFoundError)
