"""Vectorised worlds: each sub-environment is the single environment, and manners are Gymnasium's."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import concatenate, create_empty_array

from worldsim.engine.engine import Engine
from worldsim.envs.vector_env import WorldVectorEnv
from worldsim.errors import ActionError, ConfigError, InputError, SessionError, SnapshotMismatch
from worldsim.world import World

MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]
PROMPTS = ["a cart", "", None]


@pytest.fixture
def ending(world_path: Path, tmp_path: Path) -> Path:
    """A world whose episodes end by chance of the frame, so that terminations happen in the middle."""
    world = World.from_pretrained(world_path)
    engine = Engine(world, threads=1)
    numbers = [engine.open(seed=seed, start=0) for seed in range(4)]
    seen = [engine.step({n: 0 for n in numbers})[n].ended for _ in range(20) for n in numbers]
    odds = float(np.quantile(seen, 0.9))
    last: Any = world.dynamics.heads.termination[-1]
    last.bias.data -= float(np.log(odds / (1 - odds)))
    world.save_pretrained(tmp_path / "ending")
    return tmp_path / "ending"


def vector(path: Path, count: int = 3, **settings: Any) -> Any:
    return gym.make_vec("worldsim/World-v0", count, world=str(path), **settings).unwrapped


def single(path: Path, **settings: Any) -> gym.Env:
    return gym.make("worldsim/World-v0", world=str(path), **settings)


@pytest.mark.parametrize("mode", MODES)
def test_sub_environments_are_the_single_environment(ending: Path, mode: AutoresetMode) -> None:
    """Against Gymnasium's own vectorisation of the single environment: everything equal, bit for bit, over resets."""
    steps, count = 60, 3
    own = vector(ending, count, autoreset_mode=mode, max_episode_steps=25, prompt=PROMPTS, threads=2)
    singles = [lambda prompt=prompt: single(ending, max_episode_steps=25, prompt=prompt) for prompt in PROMPTS]
    theirs = gym.vector.SyncVectorEnv(singles, autoreset_mode=mode)
    observations, infos = own.reset(seed=[5, 6, 7])
    expected, expected_infos = theirs.reset(seed=[5, 6, 7])
    assert np.array_equal(observations, expected) and same(infos, expected_infos)
    theirs.action_space.seed(1)
    resets = 0
    for _ in range(steps):
        action = theirs.action_space.sample()
        *got, infos = own.step(action)
        *wanted, expected_infos = theirs.step(action)  # type: ignore[misc]
        for mine, other in zip(got, wanted, strict=True):
            assert np.array_equal(mine, other) and mine.dtype == other.dtype
        assert same(infos, expected_infos)
        resets += int(np.logical_or(wanted[2], wanted[3]).sum())
    assert resets > 4 and (own.engine.counts.batches[1] < own.engine.counts.frames)
    own.close()


@pytest.mark.slow
def test_500_steps_of_car_racing() -> None:
    own = gym.make_vec("worldsim/CarRacing-v0", 4, max_episode_steps=120)
    singles = [lambda: gym.make("worldsim/CarRacing-v0", max_episode_steps=120)] * 4
    theirs = gym.vector.SyncVectorEnv(singles)
    assert np.array_equal(own.reset(seed=3)[0], theirs.reset(seed=3)[0])
    theirs.action_space.seed(1)
    for _ in range(500):
        action = theirs.action_space.sample()
        for mine, other in zip(own.step(action)[:4], theirs.step(action)[:4], strict=True):
            assert np.array_equal(mine, other)


def same(mine: Any, other: Any) -> bool:
    if isinstance(mine, dict):
        return mine.keys() == other.keys() and all(same(mine[key], other[key]) for key in mine)
    if mine.dtype == object:
        return all(np.array_equal(a, b) for a, b in zip(mine, other, strict=True))
    return np.array_equal(mine, other) and mine.dtype == other.dtype


def test_disabled_autoreset_waits_for_a_mask(world_path: Path) -> None:
    env = vector(world_path, 3, autoreset_mode=AutoresetMode.DISABLED, max_episode_steps=2, end_above=1.0)
    env.reset(seed=0)
    actions = np.zeros(3, np.int64)
    env.step(actions)
    observations, _, _, truncated, _ = env.step(actions)
    assert truncated.all()
    with pytest.raises(SessionError, match="are over"):
        env.step(actions)
    mask = np.array([True, False, True])
    after, infos = env.reset(seed=[9, None, 9], options={"reset_mask": mask})
    assert np.array_equal(after[1], observations[1]) and np.array_equal(after[0], after[2])
    assert infos["_prompt"].tolist() == mask.tolist()
    with pytest.raises(SessionError, match=r"\[1\] are over"):
        env.step(actions)
    env.reset(options={"reset_mask": ~mask})
    assert not env.step(actions)[3].any()


def test_registered_and_described(world_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env: Any = gym.make_vec("worldsim/World-v0", num_envs=2, world=str(world_path), render_mode="rgb_array")
    assert isinstance(env.unwrapped, WorldVectorEnv) and env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, _ = env.reset(seed=1)
    assert observations in env.observation_space and len(env.render()) == 2
    rewards = env.step(env.action_space.sample())[1]
    assert rewards.dtype == np.float64 and rewards.shape == (2,)
    env.close()
    env.close()


def test_seeds_and_options_for_each(world_path: Path) -> None:
    env = vector(world_path)
    first, _ = env.reset(seed=4)
    again, _ = env.reset(seed=[4, 5, 6])
    assert np.array_equal(first, again)
    actions, unseeded = np.zeros(3, np.int64), []
    for _ in range(2):
        env.reset(options={"prompt": "a cart"})
        unseeded.append(env.step(actions)[0])
    assert not np.array_equal(*unseeded)
    _, infos = env.reset(seed=4, options={"prompt": ["", "a cart", "a cart"]})
    assert infos["prompt"].tolist() == ["", "a cart", "a cart"]
    env.set_prompt("", 1)
    assert env.step(np.zeros(3, np.int64))[4]["prompt"].tolist() == ["", "", "a cart"]
    start = {"frames": np.full((2, *first.shape[1:]), 9, np.uint8), "actions": [1]}
    assert (env.reset(options={"start": start})[0] == 9).all()


def test_snapshots_go_back(world_path: Path) -> None:
    env = vector(world_path, end_above=1.0)
    env.reset(seed=4)
    snapshot, actions = env.snapshot(1), np.ones(3, np.int64)
    frames = [env.step(actions)[0][1] for _ in range(3)]
    env.restore(snapshot, 1)
    assert all(np.array_equal(frame, env.step(actions)[0][1]) for frame in frames)
    env.reset(options={"snapshot": snapshot})
    assert np.array_equal(env.step(actions)[0], np.stack([frames[0]] * 3))


def test_bad_calls_change_nothing(world_path: Path) -> None:
    env = vector(world_path)
    with pytest.raises(SessionError, match="call reset"):
        env.step(np.zeros(3, np.int64))
    env.reset(seed=0)
    sessions, before = list(env._sessions), copy.deepcopy(env.engine.sessions)
    closed = env.snapshot(0)
    closed.close()
    for options in ({"color": 1}, {"reset_mask": [True] * 3}, {"reset_mask": np.zeros(3, np.bool_)}, {"prompt": ["a"]},
                    {"start": 99}, {"start": "a"}, {"prompt": 3}):  # fmt: skip
        with pytest.raises(InputError):
            env.reset(options=options)
    with pytest.raises(SnapshotMismatch, match="closed"):
        env.reset(options={"snapshot": [None, closed, None]})
    with pytest.raises(ActionError, match="outside the action space"):
        env.step(np.array([0, 7, 0]))
    with pytest.raises(ActionError, match="2 actions"):
        env.step(np.array([0, 0]))
    assert env._sessions == sessions and env.engine.sessions.keys() == before.keys()
    assert all(env.engine.sessions[n].step == before[n].step for n in before)
    with pytest.raises(ConfigError, match="num_envs"):
        WorldVectorEnv(0, world=world_path)
    with pytest.raises(ConfigError, match="render_mode"):
        WorldVectorEnv(1, world=world_path, render_mode="human")


def test_many_environments_get_the_memory_they_need(world_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worldsim.envs.vector_env.MEMORY_MB", 1)
    env = vector(world_path, 40)
    assert env.engine.table.capacity >= 60
    assert len(env.reset(seed=0)[0]) == 40


def test_stable_baselines_learns(world_path: Path) -> None:
    """PPO, unchanged: what it is told of ends and final frames is what happened."""
    sb3 = pytest.importorskip("stable_baselines3")
    from worldsim.envs.stable_baselines import SB3VecEnv

    env = SB3VecEnv(gym.make_vec("worldsim/World-v0", 2, world=str(world_path), autoreset_mode="SameStep",
                                 max_episode_steps=5, end_above=1.0))  # fmt: skip
    env.seed(3)
    first: Any = env.reset()
    infos: list[dict[str, Any]] = []
    for step in range(5):
        _, rewards, dones, infos = env.step(np.zeros(2, np.int64))
        assert dones.all() == (step == 4) and rewards.dtype == np.float32
    assert all(info["TimeLimit.truncated"] and info["terminal_observation"].shape == first[0].shape for info in infos)
    model = sb3.PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, device="cpu", seed=0)
    before = [p.clone() for p in model.policy.parameters()]
    model.learn(16)
    assert any((a != b).any() for a, b in zip(before, model.policy.parameters(), strict=True))
    with pytest.raises(ConfigError, match="SameStep"):
        SB3VecEnv(vector(world_path))


def test_wrappers_of_gymnasium_work(world_path: Path) -> None:
    """A loop as CleanRL writes it: episode statistics, and next observations where an episode ended."""
    env = gym.wrappers.vector.RecordEpisodeStatistics(vector(world_path, 2, max_episode_steps=4, end_above=1.0))
    observations, _ = env.reset(seed=1)
    storage = create_empty_array(env.single_observation_space, 10 * 2)
    returns, rows = [], []
    for _ in range(10):
        rows += list(observations)
        observations, _, _, _, infos = env.step(env.action_space.sample())
        returns += infos["episode"]["l"][infos["_episode"]].tolist() if "episode" in infos else []
    assert returns == [4] * 4
    stacked: Any = concatenate(env.single_observation_space, rows, storage)
    assert len(stacked) == 20
