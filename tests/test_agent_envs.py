"""What agents see and do: the wrappers between games and learners, discrete actions, where episodes begin."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from gymnasium import spaces
from small_agents import SEED, actions_for

from worldsim.agents.agent import Agent
from worldsim.agents.discrete import find_actions
from worldsim.agents.envs import agent_observation, find_game, imagined_envs, real_games, sample_starts, world_of
from worldsim.agents.training import world_context
from worldsim.data.episodes import read_episode
from worldsim.engine.engine import Engine
from worldsim.errors import ConfigError, DataError


@pytest.mark.parametrize("grayscale", [False, True])
def test_agents_see_alone_what_they_learned_from(world_path, dreamer, grayscale):
    stack = 3
    card = dataclasses.replace(Agent.load(dreamer.folder()).card, grayscale=grayscale, stack=stack)
    agent = Agent(card)
    assert agent.actions is not None
    raw, wrapped = (imagined_envs(world_path, 2, max_episode_steps=4, threads=1) for _ in range(2))
    seen = agent_observation(wrapped, agent.actions, stack, grayscale)
    for envs in (raw, seen):
        envs.seed(SEED)
    rng = np.random.default_rng(SEED)
    agent.begin(2)
    frames, stacked, begun = np.asarray(raw.reset()), np.asarray(seen.reset()), np.ones(2, bool)
    for _ in range(10):
        assert np.array_equal(agent.look(frames, begun), stacked.transpose(0, 3, 1, 2)), f"seed {SEED}"
        actions = rng.integers(2, size=2)
        raw_frames, rewards, begun, _ = raw.step(agent.actions.values[actions])
        seen_frames, seen_rewards, seen_begun, _ = seen.step(actions)
        frames, stacked = np.asarray(raw_frames), np.asarray(seen_frames)
        assert np.array_equal(rewards, seen_rewards) and np.array_equal(begun, seen_begun)
    raw.close()
    seen.close()


def test_a_repeated_action_lasts(world_path, dreamer):
    """Four games of one step an action, played four steps at a time, are the games of an action in four steps."""
    agent = Agent.load(dreamer.folder())
    assert agent.actions is not None
    raw, wrapped = (imagined_envs(world_path, 2, max_episode_steps=6, threads=1) for _ in range(2))
    held = agent_observation(wrapped, agent.actions, stack=2, grayscale=False, action_repeat=4)
    for envs in (raw, held):
        envs.seed(SEED)
    frames, _ = np.asarray(raw.reset()), held.reset()
    rng = np.random.default_rng(SEED)
    for _ in range(4):
        actions = rng.integers(2, size=2)
        earned, over = np.zeros(2), np.zeros(2, bool)
        for _ in range(4):
            frames, rewards, ended, infos = raw.step(agent.actions.values[actions])
            earned += np.where(over, 0, rewards)
            over |= ended
        seen, sums, ends, found = held.step(actions)
        assert np.array_equal(np.asarray(seen)[..., -3:], np.asarray(frames)), f"seed {SEED}"
        assert np.allclose(sums, earned) and np.array_equal(ends, over)
        assert all(("terminal_observation" in info) == end for info, end in zip(found, ends, strict=True))
    raw.close()
    held.close()


def test_discrete_actions():
    space = spaces.Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32))
    keys = {"": (0, 0, 0), "left": (-0.7, 0, 0), "up+left": (-0.7, 0.6, 0)}
    found = actions_for(space, keys)
    assert found.names == ("", "left", "left+up") and found.values.dtype == np.float32
    assert np.allclose(found.values[2], (-0.7, 0.6, 0))
    assert actions_for(space, keys, ("left+up",)).names == ("left+up",)
    assert find_actions(space, keys, discrete=False) is None  # it gives the numbers itself
    assert all(space.contains(action) for action in actions_for(space, {}).values)  # made for the space
    discrete = spaces.Discrete(3, start=1)
    assert actions_for(discrete, {}).values.tolist() == [1, 2, 3]
    assert actions_for(discrete, {"left": 3}, ("left",)).values.tolist() == [3]
    with pytest.raises(ConfigError, match="no keys 'lfet'. Did you mean 'left'"):
        find_actions(space, keys, ("lfet",))
    with pytest.raises(ConfigError, match="cannot act"):
        find_actions(spaces.Dict({"a": discrete}), {})


def test_starts_come_from_the_recording(dataset, world_path):
    context = world_context(str(world_path))
    starts = sample_starts(dataset.path, 5, context, seed=SEED)
    assert len(starts) == 5 and all(1 <= len(start["frames"]) <= context for start in starts)
    assert all(len(start["actions"]) == len(start["frames"]) - 1 for start in starts)
    first = sample_starts(dataset.path, 3, context, anywhere=False)
    openings = [read_episode(path).frames[0] for path in dataset.episodes()]
    assert all(any(np.array_equal(start["frames"][0], frame) for frame in openings) for start in first)
    envs = imagined_envs(world_path, 3, starts=starts, threads=1, max_episode_steps=3)
    lasts = [start["frames"][-1] for start in starts]
    envs.seed(SEED)
    frames, begun, firsts = np.asarray(envs.reset()), np.ones(3, bool), set()
    for _ in range(12):
        for frame in frames[begun]:
            where = [i for i, last in enumerate(lasts) if np.array_equal(frame, last)]
            assert where, f"seed {SEED}"
            firsts.update(where)
        drawn, _, begun, _ = envs.step(np.zeros(3, np.int64))
        frames = np.asarray(drawn)
    assert len(firsts) > 1  # not always the same one
    envs.close()
    assert sample_starts(dataset.path, 1, context, where=("text=a cart",))[0]["prompt"] == "a cart"
    with pytest.raises(DataError, match="labels"):
        sample_starts(dataset.path, 1, context, where=("text=a bus",))
    with pytest.raises(ConfigError, match="ground=grass"):
        sample_starts(dataset.path, 1, context, where=("bus",))


def test_noise_scale_and_ends_reach_the_world(world_path):
    envs = imagined_envs(world_path, 4, noise_scale=0.5, end_above=0.0, threads=1)
    engine = world_of(envs).engine
    assert isinstance(engine, Engine) and engine.sampler.noise_scale == 0.5
    envs.reset()
    assert envs.step(np.zeros(4, np.int64))[2].all()  # every probability is above 0
    envs.close()
    rates = []
    for _ in range(2):
        drawn = imagined_envs(world_path, 8, end_above=None, threads=1)
        drawn.seed(SEED)
        drawn.reset()
        ends = [drawn.step(np.zeros(8, np.int64))[2] for _ in range(6)]
        rates.append(np.stack(ends))
        drawn.close()
    assert np.array_equal(*rates)  # by the generators of the sub-environments
    with pytest.raises(ConfigError, match="real games"):
        world_of(real_games(find_game("CartPole-v1"), 1))
