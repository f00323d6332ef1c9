"""Worlds of before: read under the names of today, the same frames, and training goes on from them.

`data/old_world` was trained by commit eb7707f, the last one before the model had one forward pass: 120 steps of
`tiny.tiny_dynamics` (rollout_start 60) on the recording of `conftest.dataset`, behind 60 steps of its autoencoder.
`expected.npz` has what that commit then played in float32: 25 frames, as 16 x 16 thumbnails, and 24 rewards and
probabilities of an end, from a clip and from words, as `played` below plays them. To remake it, check that commit out
and save what `played` returns there; there is no reason to as long as format version 1 is read.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_dynamics

from worldsim.data.episodes import Dataset
from worldsim.engine.engine import Engine
from worldsim.engine.session import Snapshot
from worldsim.envs.world_env import WorldEnv
from worldsim.models.saved import renamed_weights
from worldsim.training.run import prepare, train_dynamics
from worldsim.world import World

OLD = Path(__file__).parent / "data" / "old_world"


def played(world: World, options: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Thumbnails, rewards, probabilities of an end."""
    env = WorldEnv(engine=Engine(world, runtime="eager", threads=1))
    frame, _ = env.reset(seed=5, options=options)
    frames, rewards, ended = [frame], [], []
    for step in range(24):
        frame, reward, _, _, info = env.step(np.int64(step // 3 % 2))
        frames.append(frame)
        rewards.append(reward)
        ended.append(info["ended"])
    env.close()
    small = [np.asarray(Image.fromarray(frame).resize((16, 16), Image.Resampling.BOX)) for frame in frames]
    return np.stack(small), np.array(rewards), np.array(ended)


@pytest.mark.parametrize("begin", ["clip", "words"])
def test_an_old_world_plays_the_same_frames(begin: str) -> None:
    world = World.from_pretrained(OLD, dtype=torch.float32)
    frames, rewards, ended = played(world, {"start": world.starts[0]} if begin == "clip" else {"prompt": "a cart"})
    with np.load(OLD / "expected.npz") as expected:
        # Processors round otherwise, and frames go on from frames: tolerances are those of drift, not of rounding.
        apart = np.abs(frames.astype(int) - expected[f"{begin}_frames"].astype(int))
        assert apart.mean() < 0.5 and (apart > 8).mean() < 0.005
        assert np.abs(rewards - expected[f"{begin}_rewards"]).max() < 0.05
        assert np.abs(ended - expected[f"{begin}_ended"]).max() < 0.05
        assert expected[f"{begin}_frames"].std() > 1  # there is something to see


def test_an_old_snapshot_goes_on() -> None:
    """`session.snapshot` was written by commit a688998, which kept prompts as text: one that this world never saw.

    That commit began from clip 0 with seed 5, took 6 steps, changed the prompt to the one below, took 3 more and saved
    the session; `session_expected.npz` has its next 12 frames, rewards and probabilities of an end, as `played` has.
    """
    engine = Engine(World.from_pretrained(OLD, dtype=torch.float32), runtime="eager", threads=1)
    number = engine.restore(Snapshot.load(OLD / "session.snapshot"), exact=False)
    session = engine.sessions[number]
    assert (session.prompt, session.step, session.seed) == ("A  Cart under two moons", 14, 5)
    assert session.text == engine.world.book.encode("a cart under two moons") and len(session.text.states) == 7
    steps = [engine.step({number: np.int64(i // 3 % 2)})[number] for i in range(12)]
    small = [np.asarray(Image.fromarray(step.frame).resize((16, 16), Image.Resampling.BOX)) for step in steps]
    with np.load(OLD / "session_expected.npz") as expected:
        apart = np.abs(np.stack(small).astype(int) - expected["frames"].astype(int))
        assert apart.mean() < 0.5 and (apart > 8).mean() < 0.005
        assert np.abs([[step.reward, step.ended] for step in steps] - expected["rewards"]).max() < 0.05
    engine.close()


def test_training_goes_on_from_an_old_world(dataset: Dataset, tmp_path: Path) -> None:
    config = tiny_dynamics(dataset, Path(), tmp_path, steps=3, init_from=OLD, rollout_start=0)
    task, *_ = prepare(config)
    old = load_file(OLD / "dynamics" / "model.safetensors")
    assert torch.equal(task.module.final.weight, old["final.weight"].float())
    train_dynamics(config)
    again = World.from_pretrained(tmp_path / "world", dtype=torch.float32)
    assert again.dynamics.config == task.module.config
    names = set(load_file(tmp_path / "world" / "dynamics" / "model.safetensors"))
    assert not names & old.keys() - {
        name for name in old if name.split(".")[0] in ("blocks", "modulation", "final", "gate")
    }


def test_every_old_weight_has_a_place() -> None:
    old = load_file(OLD / "dynamics" / "model.safetensors")
    world = World.from_pretrained(OLD, dtype=torch.float32)
    config = world.dynamics.config
    found = renamed_weights(old, config.latent_channels)
    assert found.keys() == world.dynamics.state_dict().keys()
    assert sum(tensor.numel() for tensor in found.values()) == sum(tensor.numel() for tensor in old.values())
    new = world.dynamics.state_dict()
    assert renamed_weights(new, config.latent_channels).keys() == new.keys()  # those of today stay as they are
    assert dataclasses.asdict(config)["output"] == "x"
