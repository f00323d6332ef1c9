"""Agents at play: fair scores, and looking ahead in a world."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
from gymnasium import spaces
from small_agents import SEED

from worldsim.agents.agent import RandomVectorPolicy
from worldsim.agents.discrete import DiscreteActions, find_actions
from worldsim.agents.envs import find_game, real_games
from worldsim.agents.evaluation import AgentEvalConfig, evaluate_agent, play_episodes
from worldsim.agents.planner import PlanConfig, Planner, PlannerConfig, plan
from worldsim.data.episodes import read_episode
from worldsim.engine.engine import Engine
from worldsim.errors import ConfigError, FrameError


def test_episodes_are_counted_fairly():
    envs = real_games(find_game("CartPole-v1"), 3)
    space = spaces.Discrete(2)
    policy = RandomVectorPolicy(space, find_actions(space, {}))
    played = play_episodes(policy, envs, 7, seed=SEED)
    assert len(played.returns) == 7 and played.returns == [float(n) for n in played.lengths]  # one a step
    again = play_episodes(policy, envs, 7, seed=SEED)
    assert again.returns == played.returns, f"seed {SEED}"
    low, high = played.summary()["interval"]
    assert min(played.returns) <= low <= played.summary()["mean"] <= high <= max(played.returns)
    envs.close()


def test_an_evaluation_that_is_stopped_keeps_the_episodes_that_are_over():
    envs = real_games(find_game("CartPole-v1"), 1)

    class Impatient(RandomVectorPolicy):
        def act(self, frames, begun):
            if begun[0]:
                self.games = getattr(self, "games", 0) + 1
            if self.games > 3:
                raise KeyboardInterrupt
            return super().act(frames, begun)

    space = spaces.Discrete(2)
    played = play_episodes(Impatient(space, find_actions(space, {})), envs, 7, seed=SEED)
    assert len(played.returns) == len(played.lengths) == 3
    envs.close()


def test_evaluation_in_a_world(dreamer, dataset, world_path, tmp_path):
    agent = shutil.copytree(dreamer.folder(), tmp_path / "agent")
    config = AgentEvalConfig(
        agent=agent, world=str(world_path), episodes=3, starts_from=dataset.path, max_episode_steps=5
    )
    report = evaluate_agent(config)
    assert report["episodes"] == 3 and report["mean_length"] <= 5
    assert (agent / "eval-dream.json").is_file()
    with pytest.raises(ConfigError, match="action space"):
        evaluate_agent(dataclasses.replace(config, world=None, game="MountainCar-v0"))


def test_a_world_that_follows_has_the_bits_of_a_clip(world, dataset):
    episode = read_episode(dataset.episodes()[0])
    engine = Engine(world, runtime="eager", threads=1)
    count = engine.context_frames
    clip = engine.open(seed=5, start={"frames": episode.frames[:count], "actions": episode.actions[: count - 1]})
    follower = engine.open(seed=5, start={"frames": episode.frames[:1], "actions": []})
    for i in range(count - 1):
        step = engine.observe(follower, episode.actions[i], episode.frames[i + 1])
        assert np.array_equal(step.frame, episode.frames[i + 1])
    assert engine.sessions[clip].reward == engine.sessions[follower].reward
    for action in (0, 1, 1):
        steps = engine.step({clip: np.int64(action), follower: np.int64(action)})
        assert np.array_equal(steps[clip].frame, steps[follower].frame)
    with pytest.raises(FrameError, match="uint8"):
        engine.observe(follower, np.int64(0), np.zeros((3, 3, 3), np.uint8))
    engine.close()


def test_a_plan_takes_the_best_and_leaves_the_session(world):
    engine = Engine(world, runtime="eager", threads=1)
    actions = DiscreteActions(("left", "right"), np.arange(2))
    session, twin = (engine.open(seed=3, start=0) for _ in range(2))
    chosen = set()
    for turn in range(6):
        planner = Planner(engine, actions, PlannerConfig(futures=2, horizon=1, action_repeat=1, every=1))
        planner.begin(1, seed=turn)
        seeds = np.random.default_rng(turn).integers(2**62, size=2)
        earned = []
        for action in actions.values:
            futures = [engine.fork(session, int(seed)) for seed in seeds]
            steps = engine.step({future: action for future in futures})
            earned.append(np.mean([steps[future].reward for future in futures]))
            for future in futures:
                engine.close(future)
        plan = planner.plan(session)
        assert plan == [int(np.argmax(earned))] and len(engine.sessions) == 2
        chosen.update(plan)
        steps = engine.step({session: actions.values[turn % 2], twin: actions.values[turn % 2]})
        assert np.array_equal(steps[session].frame, steps[twin].frame)
    engine.close()


@pytest.mark.parametrize("by_agent", [False, True])
def test_planning(world_path, dreamer, tmp_path, capsys, by_agent):
    agent = dreamer.folder() if by_agent else None
    settings = PlannerConfig(futures=2, horizon=4, every=2)
    config = PlanConfig(
        world=str(world_path), game="CartPole-v1", agent=agent, episodes=1, planner=settings, max_episode_steps=5,
        out=tmp_path / "plan.json",
    )  # fmt: skip
    real = plan(config)
    assert real["mean"] == real["mean_length"] <= 5 and (tmp_path / "plan.json").is_file()
    assert plan(config)["returns"] == real["returns"]
    inside = plan(dataclasses.replace(config, game=None))
    assert inside["mean_length"] <= 5
    with pytest.raises(ConfigError, match="every"):
        PlannerConfig(every=5, horizon=4)
