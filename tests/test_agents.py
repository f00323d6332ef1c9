"""Agents: one learner for worlds and games, what is saved, fair scores, looking ahead, recording by an agent.

Past 400 lines, because all of it plays one agent, which takes long to make and is made once for this module.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldsim import cli
from worldsim.agents.agent import Agent, RandomActor
from worldsim.agents.choices import Choices, find_choices
from worldsim.agents.evaluation import AgentEvalConfig, evaluate_agent, line, play_episodes
from worldsim.agents.explorer import explorer_for
from worldsim.agents.games import as_agents_see, find_game, imagined_envs, real_games, sample_starts, world_of
from worldsim.agents.planner import PlanConfig, Planner, PlannerConfig, plan
from worldsim.agents.training import AgentConfig, Learning, train_agent, world_reach
from worldsim.data.episodes import read_episode
from worldsim.data.record import RecordConfig, record
from worldsim.demos.agent_picture import AgentPictureConfig, at_play
from worldsim.engine.engine import Engine
from worldsim.errors import ConfigError, DataError, FrameError

SEED = 11


class Lamp(gym.Env):
    """A lamp is on the left or on the right; pointing at it earns 1. Ten steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (24, 24, 3), np.uint8)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._look(), {}

    def step(self, action):
        reward = float(action == self.side)
        self.steps += 1
        return self._look(), reward, self.steps == 10, False, {}

    def _look(self):
        self.side = int(self.np_random.integers(2))
        frame = np.zeros((24, 24, 3), np.uint8)
        frame[:, self.side * 12 : self.side * 12 + 12] = 255
        return frame

    def render(self):
        return np.zeros((24, 24, 3), np.uint8)


gym.register("WorldsimLamp-v0", entry_point=lambda **settings: Lamp(**settings))


def small(game="CartPole-v1", **changes) -> AgentConfig:
    settings: dict[str, Any] = {
        "num_envs": 2,
        "n_steps": 8,
        "batch_size": 8,
        "epochs": 1,
        "steps": 32,
        "max_episode_steps": 6,
    }
    return AgentConfig(game=game, **(settings | changes))


def choose(*args, **settings) -> Choices:
    found = find_choices(*args, **settings)
    assert found is not None
    return found


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


@pytest.fixture(scope="module")
def dreamer(world_path, tmp_path_factory):
    """An agent that has learned a little in the tiny world, and its config."""
    torch.set_num_threads(1)
    config = small(world=str(world_path), out=tmp_path_factory.mktemp("agent"), steps=32)
    train_agent(config)
    return config


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
    assert agent.card.progress["steps"] == 32 and agent.choices is not None and len(agent.choices) == 2
    lines = [json.loads(text) for text in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["steps"] for entry in lines] == [16, 32] and lines[1]["length"] <= 6

    more = dataclasses.replace(dreamer, steps=48, out=tmp_path / "more", start=folder)
    train_agent(dataclasses.replace(more, steps=16))
    assert Agent.load(tmp_path / "more").card.progress["steps"] == 16  # another's network is a beginning, not a part
    on = train_agent(dataclasses.replace(more, start=None))
    assert on.card.progress["steps"] == 48
    same = train_agent(dataclasses.replace(more, start=None))  # nothing is left to do
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


@pytest.mark.parametrize("grey", [False, True])
def test_agents_see_alone_what_they_learned_from(world_path, dreamer, grey):
    stack = 3
    card = dataclasses.replace(Agent.load(dreamer.folder()).card, grey=grey, stack=stack)
    agent = Agent(card)
    assert agent.choices is not None
    raw, wrapped = (imagined_envs(world_path, 2, max_episode_steps=4, threads=1) for _ in range(2))
    seen = as_agents_see(wrapped, agent.choices, stack, grey)
    for envs in (raw, seen):
        envs.seed(SEED)
    rng = np.random.default_rng(SEED)
    agent.begin(2)
    frames, stacked, begun = np.asarray(raw.reset()), np.asarray(seen.reset()), np.ones(2, bool)
    for _ in range(10):
        assert np.array_equal(agent.look(frames, begun), stacked.transpose(0, 3, 1, 2)), f"seed {SEED}"
        actions = rng.integers(2, size=2)
        raw_frames, rewards, begun, _ = raw.step(agent.choices.values[actions])
        seen_frames, seen_rewards, seen_begun, _ = seen.step(actions)
        frames, stacked = np.asarray(raw_frames), np.asarray(seen_frames)
        assert np.array_equal(rewards, seen_rewards) and np.array_equal(begun, seen_begun)
    raw.close()
    seen.close()


def test_a_held_choice_lasts(world_path, dreamer):
    """Four games of one step a choice, played four steps at a time, are the games of a choice in four steps."""
    agent = Agent.load(dreamer.folder())
    assert agent.choices is not None
    raw, wrapped = (imagined_envs(world_path, 2, max_episode_steps=6, threads=1) for _ in range(2))
    held = as_agents_see(wrapped, agent.choices, stack=2, grey=False, hold=4)
    for envs in (raw, held):
        envs.seed(SEED)
    frames, _ = np.asarray(raw.reset()), held.reset()
    rng = np.random.default_rng(SEED)
    for _ in range(4):
        actions = rng.integers(2, size=2)
        earned, over = np.zeros(2), np.zeros(2, bool)
        for _ in range(4):
            frames, rewards, ended, infos = raw.step(agent.choices.values[actions])
            earned += np.where(over, 0, rewards)
            over |= ended
        seen, sums, ends, found = held.step(actions)
        assert np.array_equal(np.asarray(seen)[..., -3:], np.asarray(frames)), f"seed {SEED}"
        assert np.allclose(sums, earned) and np.array_equal(ends, over)
        assert all(("terminal_observation" in info) == end for info, end in zip(found, ends, strict=True))
    raw.close()
    held.close()


def test_an_agent_holds_what_it_chose(dreamer):
    card = dataclasses.replace(Agent.load(dreamer.folder()).card, hold=3)
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


def test_choices():
    space = spaces.Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32))
    keys = {"": (0, 0, 0), "left": (-0.7, 0, 0), "up+left": (-0.7, 0.6, 0)}
    found = choose(space, keys)
    assert found.names == ("", "left", "left+up") and found.values.dtype == np.float32
    assert np.allclose(found.values[2], (-0.7, 0.6, 0))
    assert choose(space, keys, ("left+up",)).names == ("left+up",)
    assert find_choices(space, keys, discrete=False) is None  # it gives the numbers itself
    assert all(space.contains(action) for action in choose(space, {}).values)  # made for the space
    discrete = spaces.Discrete(3, start=1)
    assert choose(discrete, {}).values.tolist() == [1, 2, 3]
    assert choose(discrete, {"left": 3}, ("left",)).values.tolist() == [3]
    with pytest.raises(ConfigError, match="no keys 'lfet'. Did you mean 'left'"):
        find_choices(space, keys, ("lfet",))
    with pytest.raises(ConfigError, match="cannot act"):
        find_choices(spaces.Dict({"a": discrete}), {})


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
    assert agent.choices is None
    played = play_episodes(agent, real_games(find_game("WorldsimDial-v0"), 1), 2, seed=SEED)
    assert played.lengths == [10, 10]
    gym.registry.pop("WorldsimDial-v0")


def test_starts_come_from_the_recording(dataset, world_path):
    reach = world_reach(str(world_path))
    starts = sample_starts(dataset.path, 5, reach, seed=SEED)
    assert len(starts) == 5 and all(1 <= len(start["frames"]) <= reach for start in starts)
    assert all(len(start["actions"]) == len(start["frames"]) - 1 for start in starts)
    first = sample_starts(dataset.path, 3, reach, anywhere=False)
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
    assert sample_starts(dataset.path, 1, reach, where=("text=a cart",))[0]["prompt"] == "a cart"
    with pytest.raises(DataError, match="labels"):
        sample_starts(dataset.path, 1, reach, where=("text=a bus",))
    with pytest.raises(ConfigError, match="ground=grass"):
        sample_starts(dataset.path, 1, reach, where=("bus",))


def test_temperature_and_ends_reach_the_world(world_path):
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


def test_episodes_are_counted_fairly():
    envs = real_games(find_game("CartPole-v1"), 3)
    space = spaces.Discrete(2)
    actor = RandomActor(space, find_choices(space, {}))
    played = play_episodes(actor, envs, 7, seed=SEED)
    assert len(played.returns) == 7 and played.returns == [float(n) for n in played.lengths]  # one a step
    again = play_episodes(actor, envs, 7, seed=SEED)
    assert again.returns == played.returns, f"seed {SEED}"
    low, high = played.summary()["interval"]
    assert min(played.returns) <= low <= played.summary()["mean"] <= high <= max(played.returns)
    envs.close()


def test_an_evaluation_that_is_stopped_keeps_the_episodes_that_are_over():
    envs = real_games(find_game("CartPole-v1"), 1)

    class Impatient(RandomActor):
        def act(self, frames, begun):
            if begun[0]:
                self.games = getattr(self, "games", 0) + 1
            if self.games > 3:
                raise KeyboardInterrupt
            return super().act(frames, begun)

    space = spaces.Discrete(2)
    played = play_episodes(Impatient(space, find_choices(space, {})), envs, 7, seed=SEED)
    assert len(played.returns) == len(played.lengths) == 3
    envs.close()


def test_evaluation_in_a_world(dreamer, dataset, world_path):
    config = AgentEvalConfig(
        agent=dreamer.folder(), world=str(world_path), episodes=3, starts_from=dataset.path, max_episode_steps=5
    )
    report = evaluate_agent(config)
    assert report["episodes"] == 3 and report["mean_length"] <= 5
    assert (dreamer.folder() / "eval-dream.json").is_file()
    with pytest.raises(ConfigError, match="action space"):
        evaluate_agent(dataclasses.replace(config, world=None, game="MountainCar-v0"))


def test_a_world_that_follows_has_the_bits_of_a_clip(world, dataset):
    episode = read_episode(dataset.episodes()[0])
    engine = Engine(world, runtime="eager", threads=1)
    count = engine.reach
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
    choices = Choices(("left", "right"), np.arange(2))
    session, twin = (engine.open(seed=3, start=0) for _ in range(2))
    chosen = set()
    for turn in range(6):
        planner = Planner(engine, choices, PlannerConfig(futures=2, horizon=1, hold=1, every=1))
        planner.begin(1, seed=turn)
        seeds = np.random.default_rng(turn).integers(2**62, size=2)
        earned = []
        for action in choices.values:
            futures = [engine.fork(session, int(seed)) for seed in seeds]
            steps = engine.step({future: action for future in futures})
            earned.append(np.mean([steps[future].reward for future in futures]))
            for future in futures:
                engine.close(future)
        plan = planner.plan(session)
        assert plan == [int(np.argmax(earned))] and len(engine.sessions) == 2
        chosen.update(plan)
        steps = engine.step({session: choices.values[turn % 2], twin: choices.values[turn % 2]})
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
        explorer_for(config)
    with pytest.raises(ConfigError, match="explorer_for"):
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
