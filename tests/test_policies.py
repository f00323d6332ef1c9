"""One protocol for all policies: recordings, beginners and agents play through the same two methods."""

from __future__ import annotations

import dataclasses

import gymnasium as gym
import numpy as np
import pytest

from worldsim.data.policy import BeginnerPolicy, Policy, RandomPolicy
from worldsim.data.record import RecordConfig, recipe_for, record_episode
from worldsim.evaluation.beginners import HoldPolicy, ScriptPolicy, SteerPolicy, TapPolicy
from worldsim.evaluation.probe import Probe

RECIPE = dataclasses.replace(
    recipe_for(RecordConfig(game="CartPole-v1", frame_size=(16, 16))), keys={"": 0, "left": 0, "right": 1}
)


def policies() -> dict[str, Policy]:
    probe, space = Probe(RECIPE), gym.spaces.Discrete(2)
    return {
        "random": RandomPolicy(2),
        "beginner": BeginnerPolicy(RECIPE.keys, RandomPolicy()),
        "hold": HoldPolicy(1),
        "tap": TapPolicy(probe),
        "steer": SteerPolicy(probe, space, {}),
        "script": ScriptPolicy([0, 1]),
    }


@pytest.mark.parametrize("name", list(policies()))
def test_it_follows_from_its_random_stream_alone(name: str) -> None:
    env = gym.make("CartPole-v1")
    frames = np.random.default_rng(1).integers(0, 256, (60, 16, 16, 3), np.uint8)
    played = []
    policy = policies()[name]
    for _ in range(2):  # the same object again: `begin` forgets what was before
        assert isinstance(policy.begin(np.random.default_rng(5), "train"), dict)
        played.append([int(policy.act(env, frame, {})) for frame in frames])
    assert played[0] == played[1] and set(played[0]) <= {0, 1}
    env.close()


@pytest.mark.parametrize("name", ["hold", "tap", "steer", "script"])
def test_beginners_need_no_game_beside_the_frames(name: str) -> None:
    """In a world there is no game: `env` is None."""
    env = gym.make("CartPole-v1")
    frames = np.random.default_rng(2).integers(0, 256, (30, 16, 16, 3), np.uint8)
    found = []
    for where in (env, None):
        policy = policies()[name]
        policy.begin(np.random.default_rng(6), "heldout")
        found.append([int(policy.act(where, frame, {})) for frame in frames])
    assert found[0] == found[1]
    env.close()


@pytest.mark.parametrize("name", ["random", "beginner", "hold", "tap", "script"])  # who steers needs frames to see
def test_any_of_them_records(name: str) -> None:
    recipe = dataclasses.replace(RECIPE, make_policy=lambda: policies()[name], episode_steps=9)
    config = RecordConfig(game="CartPole-v1")
    first, again = (record_episode(recipe, config, 3) for _ in range(2))
    assert np.array_equal(first.actions, again.actions) and np.array_equal(first.frames, again.frames)
    if name in ("hold", "script"):
        assert first.actions.tolist()[:4] == {"hold": [1, 1, 1, 1], "script": [0, 1, 1, 1]}[name]
