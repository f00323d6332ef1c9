"""Worlds and snapshots from strangers: nothing is believed, nothing runs, and memory is bounded before it is taken."""

from __future__ import annotations

import io
import json
import random
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from worldsim.engine import tuning
from worldsim.engine.engine import Engine
from worldsim.engine.session import Snapshot, _digest
from worldsim.errors import SnapshotError, WorldError, printable
from worldsim.untrusted import Untrusted, inside, parse_json, read_npz
from worldsim.world import World, read_card

MOST_MEMORY = 300  # MB that reading something hostile may take at its highest point
Change = Callable[[Path], object]
HOSTILE: list[Any] = [
    None, True, -1, 0, 1, 7, 2**31, 10**9, 2**63, 10**30, -0.5, 1e-300, 1e300, "", "x", "../x", "/etc", "\x1b[2J", [],
    [1], [[1]], [1, 2], [10**9, 10**9], {}, {"a": 1}, {"type": "discrete", "n": 10**12, "start": 0}, "x" * 10**6,
    [0] * 10**5, "Infinity", "\ud800",
]  # fmt: skip


def set_in(name: str, /, **fields: Any) -> Change:
    """Set fields of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def card(**fields: Any) -> Change:
    return set_in("world.json", **fields)


def dynamics(**fields: Any) -> Change:
    return set_in("dynamics/config.json", **fields)


def autoencoder(**fields: Any) -> Change:
    return set_in("autoencoder/config.json", **fields)


def raw(name: str, data: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(data)


def weights(name: str, change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def made(folder: Path) -> None:
        tensors = {key: part.clone() for key, part in load_file(folder / name).items()}
        change(tensors)
        save_file(tensors, folder / name)

    return made


def prompts(states: torch.Tensor, about: str = '["a cart"]') -> Change:
    return lambda folder: save_file({"0": states}, folder / "prompts.safetensors", metadata={"prompts": about})


def npz(shape: tuple[int, ...], descr: str = "|u1", content: bytes = b"") -> bytes:
    """An npz whose header says more than it has."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = io.BytesIO()
        np.lib.format.write_array_header_1_0(entry, {"descr": descr, "fortran_order": False, "shape": shape})
        archive.writestr("0.frames.npy", entry.getvalue() + content)
        archive.writestr("0.actions.npy", b"")
    return out.getvalue()


def first(tensors: dict[str, torch.Tensor]) -> str:
    return next(iter(tensors))


WORLDS: dict[str, Change] = {
    "frame size of 1e9": card(frame_size=[10**9, 10**9]),
    "frame size below 0": card(frame_size=[-5, -5]),
    "frame size of three": card(frame_size=[40, 40, 40]),
    "no frame size": card(frame_size=None),
    "fps 0": card(fps=0),
    "fps as text": card(fps="x"),
    "fps nan": raw("world.json", b'{"format_version": 1, "fps": NaN}'),
    "steps of an episode below 0": card(episode_steps=-1),
    "1e9 denoising steps": card(sampler={"num_denoising_steps": 10**9}),
    "unknown sampler": card(sampler={"zzz": 1}),
    "sampler is a list": card(sampler=[1]),
    "1e12 actions": card(action_space={"type": "discrete", "n": 10**12, "start": 0}),
    "60000 actions": card(action_space={"type": "discrete", "n": 60_000, "start": 0}),
    "1e9 buttons": card(action_space={"type": "multi_binary", "n": 10**9}),
    "no action": card(action_space={"type": "multi_binary", "n": 0}),
    "JSON in JSON": raw("world.json", b'{"format_version": 1, "x": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"),
    "latent deviation 0": card(latent_std=[0, 0, 0, 0]),
    "latent mean of one number": card(latent_mean=[0.0]),
    "prompts are a number": card(prompts=5),
    "prompts are numbers": card(prompts=[1, 2]),
    "a path as name": card(name="../../x"),
    "an absolute path as name": card(name="/tmp/x"),
    "control codes as name": card(name="\x1b[2Jx"),
    "no name": card(name=None),
    "no autoencoder": card(autoencoder=None),
    "any class of diffusers": card(autoencoder={"class": "DiffusionPipeline", "unshuffle": 8, "linear": 8}),
    "unshuffle 1e6": card(autoencoder={"class": "AutoencoderDC", "unshuffle": 10**6, "linear": 8}),
    "a linear path of 1e5": card(autoencoder={"class": "AutoencoderDC", "unshuffle": 8, "linear": 10**5}),
    "card is a list": raw("world.json", b"[1, 2]"),
    "notices are numbers": card(notices=[5]),
    "an unknown field": card(hook="import os"),
    "width 16000": dynamics(width=16_000),
    "width 1e9": dynamics(width=10**9),
    "no heads": dynamics(heads=0),
    "1e7 frames of context": dynamics(context=10**7),
    "1e5 layers": dynamics(pattern="st" * 50_000),
    "latents of 1e5": dynamics(latent_size=[10**5, 10**5]),
    "an action history of 1e8": dynamics(action_history=10**8),
    "patch 0": dynamics(patch=[1, 0, 0]),
    "mlp ratio 1e6": dynamics(mlp_ratio=1e6),
    "30000 channels": autoencoder(encoder_block_out_channels=[30_000]),
    "1e6 layers of the autoencoder": autoencoder(encoder_layers_per_block=[10**6]),
    "quantization": autoencoder(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "weights of another shape": weights(
        "dynamics/model.safetensors", lambda found: found.update({first(found): found[first(found)].flatten()[:1]})
    ),
    "weights that are not finite": weights(
        "dynamics/model.safetensors", lambda found: [part.fill_(float("nan")) for part in found.values()]
    ),
    "one weight too many": weights("dynamics/model.safetensors", lambda found: found.update(x=torch.zeros(3))),
    "one weight too few": weights("dynamics/model.safetensors", lambda found: found.pop(first(found))),
    "an autoencoder that is not finite": weights(
        "autoencoder/diffusion_pytorch_model.safetensors",
        lambda found: found[first(found)].fill_(float("inf")),
    ),
    "a safetensors header of 1 EB": raw("dynamics/model.safetensors", (2**60).to_bytes(8, "little") + b"{}"),
    "prompts of 500 tokens": prompts(torch.zeros(500, 384)),
    "prompts of another width": prompts(torch.zeros(5, 7)),
    "prompts that are not finite": prompts(torch.full((5, 384), float("nan"))),
    "prompts nested": prompts(torch.zeros(5, 384), '{"a":' * 3000 + "1" + "}" * 3000),
    "an npz header of 10 TB": raw("starts.npz", npz((10**13,))),
    "an npz of objects": raw("starts.npz", npz((1,), "|O")),
    "an npz that unpacks to 2 GB": lambda folder: (folder / "starts.npz").write_bytes(bomb(2)),
    "an npz without prompts": raw("starts.npz", npz((2, 40, 40, 3), content=bytes(9600))),
}


def bomb(gigabytes: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("0.frames.npy", "w", force_zip64=True) as entry:
            shape = (gigabytes * 2**30,)
            np.lib.format.write_array_header_1_0(entry, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for _ in range(gigabytes * 64):
                entry.write(bytes(2**24))
    return out.getvalue()


@pytest.fixture
def folder(world_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(world_path, tmp_path / "world"))


@pytest.fixture
def bounded_memory() -> Iterator[None]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1000 * MOST_MEMORY


@pytest.mark.usefixtures("bounded_memory")
@pytest.mark.parametrize("name", WORLDS)
def test_hostile_worlds_are_refused(folder: Path, name: str) -> None:
    WORLDS[name](folder)
    with pytest.raises(WorldError) as caught:
        World.from_pretrained(folder)
    assert printable(str(caught.value), 10**6) == str(caught.value), "a stranger's control codes reach a terminal"
    assert len(str(caught.value)) < 1200


@pytest.mark.usefixtures("bounded_memory")
def test_hostile_values_anywhere(folder: Path) -> None:
    """A world with a hostile value in any place is refused, or it plays."""
    seed = random.randrange(2**32)
    print("seed", seed)
    rng = random.Random(seed)
    files = ["world.json", "dynamics/config.json", "autoencoder/config.json"]
    texts = {name: (folder / name).read_text() for name in files}
    refused = 0
    for _ in range(60):
        name = rng.choice(files)
        data = json.loads(texts[name])
        place, key = data, rng.choice([*data, "new"])
        while isinstance(place.get(key), dict) and place[key] and rng.random() < 0.7:
            place = place[key]
            key = rng.choice(list(place))
        place[key] = rng.choice(HOSTILE)
        (folder / name).write_text(json.dumps(data))
        try:
            engine = Engine(World.from_pretrained(folder), threads=1, memory_mb=8)
            engine.step({engine.open(seed=1): engine.world.action_space.sample()})
            engine.close()
        except Exception as error:
            assert type(error).__module__ == "worldsim.errors", (name, key, place[key], repr(error))
            refused += 1
        (folder / name).write_text(texts[name])
    assert refused > 10


def test_what_a_world_calls_itself_is_no_place(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder that compiled code is loaded from is named by a hash; a world has no part in it."""
    monkeypatch.setenv(tuning.CACHE, str(tmp_path / "cache"))
    card(name="x" * 128)(folder)
    place = tuning._folder(World.from_pretrained(folder))
    assert place.parent == tmp_path / "cache" / "runtimes" and len(place.name) == 32
    assert set(place.name) <= set("0123456789abcdef")


def test_a_byte_order_mark_is_passed_over(folder: Path) -> None:
    path = folder / "world.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert read_card(folder).name


def fields(**values: Any) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], object]:
    return lambda about, tensors: about["session"].update(values)


def tensors(**values: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., object]:
    return lambda about, found: found.update({name: change(found[name]) for name, change in values.items()})


SNAPSHOTS: dict[str, Callable[[dict[str, Any], dict[str, torch.Tensor]], object]] = {
    "values of another shape": tensors(values=lambda part: part[:, :, :1]),
    "fewer values": tensors(values=lambda part: part[:2]),
    "fewer latents": tensors(latents=lambda part: part[:2]),
    "no keys": tensors(keys=lambda part: part[:0], values=lambda part: part[:0], latents=lambda part: part[:0]),
    "keys as integers": tensors(keys=lambda part: torch.zeros(part.shape, dtype=torch.int8)),
    "keys that are not finite": tensors(keys=lambda part: torch.full_like(part, float("nan"))),
    "other actions": tensors(actions=lambda part: torch.zeros(1, 1)),
    "actions that are not finite": tensors(actions=lambda part: torch.full_like(part, float("inf"))),
    "another frame": tensors(frame=lambda part: torch.zeros(3, 3, 3, dtype=torch.uint8)),
    "a frame of floats": tensors(frame=lambda part: part.float()),
    "step -1": fields(step=-1),
    "step 0": fields(step=0),
    "step 2^70": fields(step=2**70),
    "step 7.5": fields(step=7.5),
    "step as text": fields(step="7"),
    "a seed as text": fields(seed="x"),
    "no seed": fields(seed=None),
    "guidance as text": fields(guidance="big"),
    "guidance 1e308": fields(guidance=1e308),
    "a prompt of numbers": fields(prompt=[1]),
    "a prompt of 10 MB": fields(prompt="x " * 5_000_000),
    "a reward as text": fields(reward="r"),
    "no end": fields(ended=None),
    "an end of 7": fields(ended=7),
    "a field more": fields(hack=1),
    "blocks": fields(blocks=[1, 2, 3]),
    "belongs to nothing": lambda about, tensors: about.update(belongs=None),
    "belongs to a list": lambda about, tensors: about.update(belongs=[1]),
}


@pytest.mark.parametrize("name", SNAPSHOTS)
def test_hostile_snapshots_are_refused(world: World, tmp_path: Path, name: str) -> None:
    """Its digest is right, as a stranger can make one; nothing leaks, and the others' steps go on."""
    engine = Engine(world, threads=1, memory_mb=8)
    one, other = engine.open(seed=1), engine.open(seed=2)
    for _ in range(6):
        engine.step({one: 1, other: 0})
    path = tmp_path / "a.session"
    engine.snapshot(one, share=False).save(path)
    with safe_open(path, framework="pt") as file:
        head, found = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    about = json.loads(head["about"])
    SNAPSHOTS[name](about, found)
    text = json.dumps(about)
    found = {key: part.contiguous() for key, part in found.items()}
    save_file(found, path, metadata=head | {"about": text, "digest": _digest(text, found)})
    used, twin = engine.table.pool.used, engine.fork(other)
    engine.close(twin)
    for place in (None, one):
        with pytest.raises(SnapshotError):
            engine.restore(Snapshot.load(path), place)
    assert engine.table.pool.used == used
    assert set(engine.step({one: 1, other: 0})) == {one, other}
    engine.close()
    assert engine.table.pool.used == 0


NAMES = ["../x", "/etc/passwd", "", ".", "..", "a/b", "a\\b", "a\0", "a\nb", "~", "a b", "\x1b[2J", "a:b"]


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_names_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(Untrusted):
        inside(tmp_path, name)
    assert inside(tmp_path, "a-B_3.json") == tmp_path / "a-B_3.json"


def test_what_is_printed_is_escaped() -> None:
    assert printable("a\x1b]0;owned\x07b\n") == "a\\x1b]0;owned\\x07b\\n"
    assert printable("雪 é") == "雪 é"
    assert printable("x" * 1000, 10) == "x" * 10 + "..."


def test_arrays_round_trip(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.asarray("text"), "c": np.zeros((0, 3), bool)}
    np.savez_compressed(tmp_path / "x.npz", **arrays)  # type: ignore[arg-type]
    found = read_npz(tmp_path / "x.npz")
    assert all(
        np.array_equal(found[name], array) and found[name].dtype == array.dtype for name, array in arrays.items()
    )
    with pytest.raises(Untrusted, match="allowed: 10 "):
        read_npz(tmp_path / "x.npz", most=10)


def test_json_is_of_its_kind() -> None:
    assert parse_json('{"a": 1}') == {"a": 1}
    for text in ("[1]", "", "{", '{"a": NaN}', "\ufeff[]", '"x"'):
        with pytest.raises(Untrusted):
            parse_json(text)
