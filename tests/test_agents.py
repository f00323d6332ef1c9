"""Agents: one learner for worlds and games, what is saved, and recording by an agent."""

from __future__ import annotations

import dataclasses
import json
import shutil

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from small_agents import SEED, Lamp, small

from worldsim import cli
from worldsim.agents.agent import Agent
from worldsim.agents.envs import find_game, real_games
from worldsim.agents.evaluation import AgentEvalConfig, evaluate_agent, line, play_episodes
from worldsim.agents.recording import policy_for
from worldsim.agents.training import Learning, train_agent
from worldsim.data.record import RecordConfig, record
from worldsim.demos.agent_picture import AgentPictureConfig, at_play
from worldsim.errors import ConfigError, DataError


def test_it_learns(tmp_path):
    config = small(
        "WorldsimLamp-v0", out=tmp_path / "lamp", num_envs=4, n_steps=32, batch_size=32, epochs=4, steps=1536,
        learning_rate=4e-3, max_episode_steps=10,
    )  # fmt: skip
    train_agent(config)
    report = evaluate_agent(AgentEvalConfig(agent=tmp_path / "lamp", episodes=10))
    chance = evaluate_agent(AgentEvalConfig(agent=tmp_path / "lamp", episodes=10, policy="random"))
    assert report["mean"] > 9 and 2 < chance["mean"] < 8
    assert report["mean_length"] == 10 and report["cut"] == 0
    assert json.loads((tmp_path / "lamp" / "eval-real.json").read_text())["returns"] == report["returns"]
    assert "10 episodes of 10 (10 to 10) steps" in line(report)


def test_its_picture(dreamer):
    config = AgentPictureConfig(agent=dreamer.folder(), games=2, frames=7, every=3)
    frames, fps = at_play(config)
    height, width = Agent.load(dreamer.folder()).card.frame_size
    assert frames.shape == (3, height, 2 * width, 3) and frames.dtype == np.uint8 and fps > 0
    assert (frames[0] != frames[-1]).any() and (frames == at_play(config)[0]).all()


def test_learns_in_a_world_and_goes_on(dreamer, tmp_path):
    folder = dreamer.folder()
    assert {path.name for path in folder.iterdir()} == {
        "agent.json", "policy.safetensors", "optimizer.safetensors", "log.jsonl"
    }  # fmt: skip
    agent = Agent.load(folder)
    assert agent.card.progress["steps"] == 32 and agent.actions is not None and len(agent.actions) == 2
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["steps"] for entry in lines] == [16, 32] and lines[1]["length"] <= 6

    more = dataclasses.replace(dreamer, steps=48, out=tmp_path / "more", init_from=folder)
    train_agent(dataclasses.replace(more, steps=16))
    assert Agent.load(tmp_path / "more").card.progress["steps"] == 16  # another's network is a beginning, not a part
    on = train_agent(dataclasses.replace(more, init_from=None))
    assert on.card.progress["steps"] == 48
    same = train_agent(dataclasses.replace(more, init_from=None))  # nothing is left to do
    for name, value in same.policy.state_dict().items():
        assert torch.equal(value, on.policy.state_dict()[name])
    with pytest.raises(ConfigError, match="other settings"):
        train_agent(dataclasses.replace(more, stack=2))


def test_ctrl_c_leaves_an_agent(world_path, tmp_path, monkeypatch):
    rollouts = []

    def stop(self):
        rollouts.append(self.num_timesteps)
        if len(rollouts) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Learning, "_on_rollout_end", stop)
    agent = train_agent(small(world=str(world_path), out=tmp_path / "a", steps=64))
    assert agent.card.progress["steps"] == 32
    agent.begin(3)
    assert agent.act(np.zeros((3, 40, 40, 3), np.uint8), np.ones(3, bool)).shape == (3,)


def test_minutes(world_path, tmp_path):
    agent = train_agent(small(world=str(world_path), out=tmp_path / "a", steps=10**6, minutes=0.02))
    assert 0 < agent.card.progress["steps"] < 10**6 and agent.card.progress["seconds"] < 10


def test_an_agent_repeats_what_it_chose(dreamer):
    card = dataclasses.replace(Agent.load(dreamer.folder()).card, action_repeat=3)
    agent, other = Agent(card, greedy=False), np.random.default_rng(SEED)
    height, width = card.frame_size
    agent.begin(2, seed=SEED)
    looks, begun = [], np.ones(2, bool)
    for step in range(12):
        before = agent._seen
        agent.act(other.integers(256, size=(2, height, width, 3), dtype=np.uint8), begun)
        looks.append([not np.array_equal(a, b) for a, b in zip(before, agent._seen, strict=True)])
        begun = np.array([False, step == 3])  # the second begins anew, and looks at once
    assert [row[0] for row in looks] == [step % 3 == 0 for step in range(12)]
    assert [step for step, row in enumerate(looks) if row[1]] == [0, 3, 4, 7, 10]


def test_numbers_of_a_box(tmp_path):
    gym.register("WorldsimDial-v0", entry_point=lambda **settings: Dial())

    class Dial(Lamp):
        def __init__(self):
            super().__init__("rgb_array")
            self.action_space = spaces.Box(np.float32(-1), np.float32(1), (2,))

        def step(self, action):
            assert self.action_space.contains(action)
            return super().step(int(action[0] > 0))

    agent = train_agent(small("WorldsimDial-v0", out=tmp_path / "a", discrete_actions=False, entropy=0.0))
    assert agent.actions is None
    played = play_episodes(agent, real_games(find_game("WorldsimDial-v0"), 1), 2, seed=SEED)
    assert played.lengths == [10, 10]
    gym.registry.pop("WorldsimDial-v0")


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_agent_records(dreamer, tmp_path, share, capsys):
    words = ["record", "CartPole-v1", "--frames", "40", "--workers", "1", "--frame-size", "40", "40"]
    words += ["--policy", str(dreamer.folder()), "--random", str(share)]
    for out in ("a", "b"):
        assert cli.main([*words, "--out", str(tmp_path / out)]) == 0
    first, again = (sorted((tmp_path / out).glob("*/*.safetensors")) for out in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]
    card = json.loads((tmp_path / "a" / "dataset.json").read_text())
    assert card["provenance"]["random"] == share
    config = RecordConfig(game="MountainCar-v0", policy=str(dreamer.folder()))
    with pytest.raises(ConfigError, match="acts in"):
        policy_for(config)
    with pytest.raises(ConfigError, match="policy_for"):
        record(config)


def test_the_verbs(world_path, tmp_path, capsys):
    words = "agent train CartPole-v1 --num-envs 2 --n-steps 8 --batch-size 8 --epochs 1 --steps 16".split()
    assert cli.main([*words, "--max-episode-steps", "5", "--world", str(world_path), "--out", str(tmp_path / "a")]) == 0
    assert "the agent is in" in capsys.readouterr().out
    assert cli.main(["agent", "eval", str(tmp_path / "a"), "--episodes", "2", "--max-episode-steps", "5"]) == 0
    assert "agent in CartPole-v1: " in capsys.readouterr().out
    plan_words = "--episodes 1 --max-episode-steps 3 --planner.futures 1 --planner.horizon 2".split()
    assert cli.main(["agent", "plan", str(world_path), *plan_words]) == 0
    assert "planner in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_envs": 0}, "num_envs is 0"),
        ({"batch_size": 7}, "does not divide"),
        ({"gamma": 0.0}, "gamma"),
        ({"noise_scale": 0.5}, "for learning in a world"),
    ],
)
def test_settings(changes, says):
    with pytest.raises(ConfigError, match=says):
        small(**changes)


def test_no_agent_there(tmp_path):
    with pytest.raises(DataError, match="no agent at"):
        Agent.load(tmp_path)
    (tmp_path / "agent.json").write_text('{"format": "worldsim-agent", "format_version": 9}')
    with pytest.raises(DataError, match="this worldsim reads 1"):
        Agent.load(tmp_path)
    (tmp_path / "agent.json").write_text("[]")
    with pytest.raises(DataError, match="damaged"):
        Agent.load(tmp_path)


def test_an_agent_from_before_names_changed_is_read_and_goes_on(dreamer, tmp_path):
    folder = shutil.copytree(dreamer.folder(), tmp_path / "agent")
    card = json.loads((folder / "agent.json").read_text())
    old = {{"actions": "choices", "grayscale": "grey", "action_repeat": "hold"}.get(k, k): v for k, v in card.items()}
    old["training"]["grey"], old["training"]["hold"] = (
        old["training"].pop("grayscale"), old["training"].pop("action_repeat"),
    )  # fmt: skip
    assert old["hold"] == 1 and "actions" not in old
    (folder / "agent.json").write_text(json.dumps(old))
    agent = Agent.load(folder)
    assert agent.card == Agent.load(dreamer.folder()).card and agent.actions is not None
    on = train_agent(dataclasses.replace(dreamer, steps=48, out=folder))  # with the same settings as before
    assert on.card.progress["steps"] == 48 and "hold" not in json.loads((folder / "agent.json").read_text())
