"""A remote world against the local one: equal, bit for bit, and with the manners of any Gymnasium environment."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hosting import HostProcess, drive, reference
from tiny import OPENINGS

import worldsim.envs  # noqa: F401  -- registers the ids
from worldsim.bridges import client
from worldsim.bridges.client import RemoteEngine, RemoteEnv, RemoteVectorEnv
from worldsim.bridges.client.connection import Connection, ConnectionConfig
from worldsim.engine.engine import Engine
from worldsim.engine.records import SessionSpec
from worldsim.envs.keymap import keymap_for
from worldsim.envs.vector_env import WorldVectorEnv
from worldsim.envs.world_env import WorldEnv
from worldsim.errors import (
    ActionError,
    BridgeError,
    ConfigError,
    EngineFull,
    InputError,
    PromptError,
    SessionError,
    SnapshotMismatch,
)
from worldsim.world import World


@pytest.fixture
def local(world_path: Path) -> Iterator[Engine]:
    """The engine that the host has, here."""
    engine = Engine(World.from_pretrained(world_path), runtime="eager", threads=1)
    yield engine
    engine.close()


@pytest.fixture
def remote(host: HostProcess) -> Iterator[RemoteEngine]:
    engine = RemoteEngine(host.address)
    yield engine
    engine.close()


def test_needs_no_torch(host: HostProcess) -> None:
    code = f"""
import sys
import gymnasium as gym
import worldsim.bridges.client, worldsim.envs
env = gym.make("worldsim/Remote-v0", address={host.address!r})
env.reset(seed=1)
env.step(env.action_space.sample())
env.close()
heavy = [name for name in ("torch", "pygame", "diffusers", "transformers", "PIL", "safetensors") if name in sys.modules]
sys.exit(str(heavy) if heavy else 0)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_exported_names() -> None:
    assert client.__all__ == sorted(client.__all__, key=lambda name: (not name.isupper(), name))
    assert {"Connection", "ConnectionConfig", "RemoteEngine", "RemoteEnv", "RemoteVectorEnv"} <= set(client.__all__)
    assert all(hasattr(client, name) for name in client.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'; it has: "):
        client.nothing  # noqa: B018 -- the access is the test
    code = "import sys, worldsim.bridges.client.top as t; sys.exit(bool({'gymnasium', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0  # the connection alone needs neither


def test_single_env_is_the_local_one(host: HostProcess, local: Engine) -> None:
    ours, theirs = gym.make("worldsim/Remote-v0", address=host.address).unwrapped, WorldEnv(engine=local)
    assert isinstance(ours, RemoteEnv)
    assert ours.action_space == theirs.action_space and ours.observation_space == theirs.observation_space
    assert ours.metadata == theirs.metadata
    assert keymap_for(ours).entries.keys() == keymap_for(theirs).entries.keys()
    for options in (None, {"prompt": "a cart"}, {"start": start_clip(local)}):
        (a, i), (b, j) = (env.reset(seed=3, options=options) for env in (ours, theirs))
        assert np.array_equal(a, b) and i == j
        for action in drive(8):
            a, b = ours.step(action), theirs.step(action)
            assert np.array_equal(a[0], b[0]) and a[1:] == b[1:]
    snapshots = [env.snapshot() for env in (ours, theirs)]
    twins = [ours.fork(), theirs.fork()]
    for env in (ours, theirs, *twins):
        env.set_prompt("")
        env.step(1)
    assert np.array_equal(twins[0].step(0)[0], twins[1].step(0)[0])
    assert np.array_equal(ours.restore(snapshots[0]), theirs.restore(snapshots[1]))
    (a, i), (b, j) = (
        env.reset(options={"snapshot": kept}) for env, kept in zip((ours, theirs), snapshots, strict=True)
    )
    assert np.array_equal(a, b) and i == j
    assert np.array_equal(ours.step(1)[0], theirs.step(1)[0])
    for env in (ours, theirs, *twins):
        env.close()
        env.close()


def start_clip(engine: Engine) -> dict[str, Any]:
    clip = engine.world.starts[0]
    return {"frames": clip["frames"][:5], "actions": clip["actions"][:4]}


@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_vector_env_is_the_local_one(host: HostProcess, local: Engine, mode: str) -> None:
    ours = gym.make_vec(
        "worldsim/Remote-v0", num_envs=3, address=host.address, max_episode_steps=4, autoreset_mode=mode
    )
    theirs = WorldVectorEnv(3, engine=local, max_episode_steps=4, autoreset_mode=mode)
    assert isinstance(ours, RemoteVectorEnv)
    (a, i), (b, j) = (env.reset(seed=7, options={"prompt": ["a cart", None, ""]}) for env in (ours, theirs))
    assert np.array_equal(a, b) and i.keys() == j.keys()
    for action in drive(12):
        a, b = (env.step(np.array([action, 1, 0])) for env in (ours, theirs))
        assert all(np.array_equal(x, y) for x, y in zip(a[:4], b[:4], strict=True))
    mask = {"reset_mask": np.array([True, False, True])}
    assert np.array_equal(ours.reset(options=mask)[0], theirs.reset(options=mask)[0])
    ours.close()
    theirs.close()


def test_manners(host: HostProcess) -> None:
    env = gym.make("worldsim/Remote-v0", address=host.address, disable_env_checker=True)
    check_env(env.unwrapped, skip_render_check=True)
    env.close()


@pytest.mark.parametrize("encoding", ["raw", "shm"])
def test_frames_are_equal_whatever_way_they_come(host: HostProcess, encoding: str) -> None:
    engine = RemoteEngine(host.address, config=ConnectionConfig(encoding=encoding))
    number = engine.open_all([SessionSpec(seed=4, prompt="a cart")])[0]
    frames = [engine.step({number: action})[number].frame for action in drive(10)]
    twin = engine.fork(number)
    assert np.array_equal(engine.sessions[twin].frame, frames[-1])
    engine.close()
    from hosting import digest

    assert [digest(frame) for frame in frames] == reference(host.address, 4, drive(10))[1:]
    frames[0][:] = 0  # one's own to change


def test_jpeg_is_near(host: HostProcess) -> None:
    pytest.importorskip("simplejpeg")
    raw, jpeg = (RemoteEngine(host.address, config=ConnectionConfig(encoding=e, quality=95)) for e in ("raw", "jpeg"))
    frames = []
    for engine in (raw, jpeg):
        number = engine.open_all([SessionSpec(seed=4)])[0]
        frames.append(engine.step({number: 1})[number].frame.astype(float))
        engine.close()
    assert 0 < np.abs(frames[0] - frames[1]).mean() < 8


def test_errors_are_those_of_a_local_engine(remote: RemoteEngine, local: Engine) -> None:
    engines: list[Any] = [remote, local]
    for engine in engines:
        number = engine.open_all([SessionSpec(seed=1)])[0]
        with pytest.raises(ActionError, match="outside the action space"):
            engine.step({number: 5})
        with pytest.raises((ActionError, InputError)):
            engine.step({number: "left"})
        with pytest.raises(SessionError):
            engine.step({number + 99: 0})
        with pytest.raises(InputError, match="clips"):
            engine.open_all([SessionSpec(start=99)])
        with pytest.raises(InputError):
            engine.open_all([SessionSpec(start={"frames": np.zeros((2, 3, 3, 3), np.uint8), "actions": [0]})])
        kept = engine.snapshot(number)
        engine.step({number: 1})
        assert engine.restore(kept, number) == number
        engine.close(number)
        with pytest.raises(SessionError):
            engine.close(number)


def test_sessions_that_begin_from_others_know_their_last_frame(remote: RemoteEngine, local: Engine) -> None:
    """Its reward, and whether the episode has ended with it: locally and remotely the same."""
    said: list[list[tuple[Any, ...]]] = []
    engines: tuple[Any, Any] = remote, local
    for engine in engines:
        number = engine.open_all([SessionSpec(seed=3, prompt="a cart")])[0]
        for action in drive(9):
            engine.step({number: action})
        kept = engine.snapshot(number)
        numbers = [number, engine.fork(number), engine.restore(kept)]
        engine.step({number: 1})
        engine.restore(kept, number)
        found = [engine.sessions[n] for n in numbers]
        said.append([(one.step, one.reward, one.ended, one.terminated) for one in found])
        for n in numbers:
            engine.close(n)
    assert said[0] == said[1] and len(set(said[0])) == 1 and said[0][0][1] and said[0][0][2]


def test_a_dropped_snapshot_is_gone(remote: RemoteEngine) -> None:
    number = remote.open_all([SessionSpec(seed=1)])[0]
    kept = remote.snapshot(number)
    remote.drop(kept)
    with pytest.raises(SnapshotMismatch):
        remote.restore(kept, number)


def test_openings_in_a_batch_are_those_alone(remote: RemoteEngine) -> None:
    openings = [SessionSpec(**{**o, "seed": o["seed"] % 2**62}) for o in OPENINGS]
    together = remote.open_all(openings)
    alone = [remote.open_all([opening])[0] for opening in openings]
    for a, b in zip(together, alone, strict=True):
        assert np.array_equal(remote.sessions[a].frame, remote.sessions[b].frame)
        assert remote.sessions[a].prompt == remote.sessions[b].prompt
    steps = remote.step({number: 1 for number in together})
    for a, b in zip(together, alone, strict=True):
        assert np.array_equal(steps[a].frame, remote.step({b: 1})[b].frame)


def test_a_lost_connection_is_made_again(remote: RemoteEngine) -> None:
    number = remote.open_all([SessionSpec(seed=2, prompt="a cart")])[0]
    remote.step({number: 1})
    remote.connection._connect()  # as after a time-out
    assert remote.step({number: 0})[number].step == remote.sessions[number].step


def test_nobody_there() -> None:
    with pytest.raises(BridgeError, match="worldsim serve"):
        Connection("tcp://127.0.0.1:1", ConnectionConfig(timeout=0.1, patience=0.3))
    with pytest.raises(BridgeError, match="no address"):
        Connection("nonsense")


def test_settings(host: HostProcess) -> None:
    with pytest.raises(ConfigError, match="serves: CartPole"):
        RemoteEngine(host.address, world="nothing")
    with pytest.raises(ConfigError, match="unknown setting"):
        RemoteEnv(host.address, pace=3)
    wrongs: list[dict[str, Any]] = [{"timeout": 0}, {"encoding": "png"}, {"key": Path("x")}]
    for wrong in wrongs:
        with pytest.raises(ConfigError):
            ConnectionConfig(**wrong)


def test_many_sessions_are_refused_and_all_of_them_closed(host: HostProcess) -> None:
    def count() -> int:
        connection = Connection(host.address)
        sessions = connection.call("stats").header["stats"]["sessions"]
        connection.close()
        return sessions

    before, engine = count(), RemoteEngine(host.address)
    with pytest.raises(EngineFull):
        for _ in range(4):
            engine.open_all([SessionSpec(seed=i, start=0) for i in range(200)])
    assert count() == before + 400
    engine.close()
    assert count() == before


def test_prompts(remote: RemoteEngine) -> None:
    number = remote.open_all([SessionSpec(seed=2)])[0]
    remote.set_prompt(number, "a cart")
    assert remote.sessions[number].prompt == "a cart"
    with pytest.raises((PromptError, BridgeError)):
        remote.set_prompt(number, "x" * 2000)
