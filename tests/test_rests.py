"""Rests and beginners: recorded as asked for, kept in latents, and rolled out as deep as they last."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from worldsim.data.episodes import Dataset
from worldsim.data.latents import LatentData, _still
from worldsim.data.policy import BeginnerPolicy, Rest
from worldsim.data.record import RecordConfig, recipe_for, record_episode
from worldsim.engine.simulator import Simulator
from worldsim.errors import ConfigError
from worldsim.training.self_forcing import MOVING_DEEP, RolloutBuffer, SelfForcingConfig
from worldsim.world import World

KEYS = {"": 0, "up": 1, "left": 2}


class Sentinel:
    """A policy whose action is itself, so that one sees who played."""

    def begin(self, rng: np.random.Generator, split: str) -> dict:
        return {}

    def act(self, env: object, observation: object, info: dict) -> object:
        return self


def test_a_beginner_holds_or_taps() -> None:
    seen, before = {True: [], False: []}, []
    for seed in range(20):
        skilled = Sentinel()
        player = BeginnerPolicy(KEYS, skilled)
        player.begin(np.random.default_rng(seed), "train")
        before.append(player.before)
        for _ in range(player.before):
            assert player.act(None, None, {}) is skilled
        actions = [player.act(None, None, {}) for _ in range(40)]
        changes = sum(a != b for a, b in zip(actions, actions[1:], strict=False))
        seen[player.holding].append((changes, actions.count(0)))
    assert seen[True] and seen[False]
    assert 5 < sum(steps == 0 for steps in before) < 15 and all(10 <= steps < 80 for steps in before if steps)
    assert all(changes <= 1 and none == 0 for changes, none in seen[True])
    assert all(changes >= 8 and none > 5 for changes, none in seen[False])


def test_what_a_beginner_holds_leads_on_more_often_than_not() -> None:
    keys = {"": 0, "left": 1, "right": 2, "up": 3, "left+up": 4}
    held = []
    for seed in range(200):
        player = BeginnerPolicy(keys, Sentinel())
        player.begin(np.random.default_rng(seed), "train")
        player.before = 0
        action = player.act(None, None, {})
        held += [action] if player.holding else []
    assert set(held) == {1, 2, 3, 4}
    assert 0.5 < held.count(3) / len(held) < 0.75  # half of them, and a share of the others


@pytest.mark.parametrize("protect", [{}, {"invulnerable": True}])
def test_rests_last_as_long_as_they_should(protect: dict) -> None:
    rests = [Rest(0.5, protect, np.random.default_rng(seed)) for seed in range(200)]
    some = [rest for rest in rests if rest.begins is not None]
    assert 70 < len(some) < 130
    assert all(Rest.AFTER[0] <= (rest.begins or 0) <= Rest.AFTER[1] for rest in some)
    for rest in some:
        for_good = bool(protect) and not rest.options  # of a game that can protect: until the game ends it
        assert rest.steps == math.inf if for_good else Rest.STEPS[0] <= rest.steps <= Rest.STEPS[1]
        begins = rest.begins or 0
        assert not rest.over(begins + 63) and rest.over(begins + 400) == (not for_good)
    assert 0.6 * bool(protect) <= np.mean([bool(rest.options) for rest in some]) <= 0.9 * bool(protect)
    assert not any(rest.resting(step) for rest in rests if rest.begins is None for step in range(1000))


@pytest.mark.parametrize("name", ["no_op_fraction", "beginners", "rests"])
def test_a_game_without_keys_has_none_of_it(name: str, tmp_path: Path) -> None:
    from worldsim.data.record import record

    with pytest.raises(ConfigError, match=f"{name} is 0.5, but .* record with {name} 0"):
        record(RecordConfig(game="CartPole-v1", out=tmp_path / "d", frames=10, **{name: 0.5}))  # type: ignore[arg-type]


def test_the_truth_of_a_protected_rest_stands_still_and_lasts() -> None:
    """In the real game: nobody dies, and the view does not change once the player has come to rest."""
    pytest.importorskip("vizdoom")
    config = RecordConfig(game="doom-health-gathering", rests=1.0, seed=1)
    recipe = recipe_for(config)
    episodes = [record_episode(recipe, config, index) for index in range(4)]
    protected = [episode for episode in episodes if episode.meta.get("protected")]
    assert protected
    for episode in protected:
        run = int(np.argmax(episode.actions[::-1] != 0))
        assert run >= Rest.STEPS[0] and not episode.terminated.any()
        still = episode.frames[len(episode) - run + 16 :].astype(float)  # who walks slides on for some steps
        moved = np.abs(np.diff(still, axis=0)).mean(axis=(1, 2, 3))
        assert np.median(moved) < 0.2  # things may blink or appear; walls and floor stay where they are
    for episode in episodes:
        if not episode.meta.get("protected"):
            assert episode.terminated[-1]  # the acid ends it


def test_still_counts_frames_in_which_nothing_changes() -> None:
    values = torch.tensor([1, 1, 2, 2, 2, 2, 2, 3]).view(-1, 1, 1, 1) * torch.ones(1, 3, 2, 2)
    first = torch.tensor([0, 0, 0, 0, 0, 5, 5, 5])  # a new episode begins with the frame that ended the last
    assert _still(values, first).tolist() == [0, 1, 0, 1, 2, 0, 1, 0]


def moving(world: World, dataset: Dataset) -> LatentData:
    """The recording with something that changes in every frame: a pole can stand still for some."""
    data = LatentData.encode(dataset, "train", world.autoencoder)
    data.latents[:, 0, 0, 0] = torch.arange(len(data.latents)) % 1000 / 100
    return data


def resting(data: LatentData) -> LatentData:
    """The same recording, as if nothing had moved in the second half of its longest episode."""
    row = int((data.last - data.first).argmax())
    first, last = int(data.first[row]), int(data.last[row])
    data.latents[(first + last) // 2 : last + 1] = data.latents[last].clone()
    return data


def test_rollouts_at_rest_go_on_until_it_is_over(world: World, dataset: Dataset) -> None:
    data = resting(moving(world, dataset))
    simulator, size, frames = Simulator.of(world), 8, 2
    prompts = [world.book.encode(text) for text in data.prompts]
    pool = RolloutBuffer(SelfForcingConfig(rollout_buffer=size, rollout_rests=0.25), frames)
    before, deepest = None, 0
    for step in range(6):
        found = pool.take(size, simulator, data, prompts, step, 0)
        at_rest = data.rests(found.starts, frames)
        assert int(at_rest[[3, 7]].sum()) == 2  # every fourth
        if before is not None:
            on = pool.depth > 0
            assert torch.equal(found.starts[on], before.starts[on] + frames)
            history = found.seen.shape[2] - frames
            assert torch.equal(found.seen[on][:, :, :history], before.seen[on][:, :, -history:])
            assert on[[0, 1, 2, 4, 5, 6]].any()
        assert int(pool.depth[[0, 1, 2, 4, 5, 6]].max()) < MOVING_DEEP
        before, deepest = found, max(deepest, int(pool.depth[[3, 7]].max()))
    assert deepest > MOVING_DEEP
    again = RolloutBuffer(SelfForcingConfig(rollout_buffer=size, rollout_rests=0.25), frames)
    again.load_state(pool.state())
    a, b = (part.take(size, simulator, data, prompts, 9, 0) for part in (pool, again))
    assert torch.equal(a.seen, b.seen) and torch.equal(a.starts, b.starts)


def test_a_recording_without_rests_has_none_in_its_rollouts(world: World, dataset: Dataset) -> None:
    data, simulator = moving(world, dataset), Simulator.of(world)
    assert len(data.sample_rests(3, 2, torch.Generator())) == 0
    prompts = [world.book.encode(text) for text in data.prompts]
    pool = RolloutBuffer(SelfForcingConfig(rollout_buffer=4, rollout_rests=1.0), 2)
    assert len(pool.take(4, simulator, data, prompts, 0, 0).starts) == 4
