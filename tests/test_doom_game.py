"""The Doom recorder: the environment's contract, what the keys do, and what policy and prompts promise."""

from __future__ import annotations

import os
import pickle
import sys
import warnings

import numpy as np
import pytest
from gymnasium import spaces

from worldsim.errors import ActionError, ConfigError, MissingDependency, SessionError
from worldsim.games.doom.env import DoomGame
from worldsim.games.doom.policy import MOODS, STOP, DoomPolicy
from worldsim.games.doom.prompts import HOLD, MAX_WORDS
from worldsim.games.doom.recipe import RECIPE, RECIPES
from worldsim.games.doom.scenarios import CONTROLS, KINDS, NOUNS, SCENARIOS

BY_RECIPE = [pytest.param(recipe, id=recipe.name) for recipe in RECIPES]


@pytest.fixture
def game():
    pytest.importorskip("vizdoom", reason="needs vizdoom: pip install --no-deps vizdoom")
    env = DoomGame(size=(48, 64))  # the game draws this four times as fast
    yield env
    env.close()


def play(env, seed, steps, policy=None, split="train"):
    """Frames, infos, actions and views of an episode of the policy."""
    policy = policy or DoomPolicy(env.unwrapped.scenario)
    observation, info = env.reset(seed=seed, options=policy.begin(np.random.default_rng(seed), split))
    frames, infos, actions, walls = [observation], [info], [], [env.unwrapped.view.wall]
    for _ in range(steps):
        actions.append(policy.act(env, observation, info))
        observation, _, terminated, truncated, info = env.step(actions[-1])
        frames.append(observation)
        infos.append(info)
        walls.append(env.unwrapped.view.wall)
        if terminated or truncated:
            break
    return frames, infos, actions, walls


def test_passes_the_gymnasium_checker(game):
    from gymnasium.utils.env_checker import check_env

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*spec of the environment is None.*|.*not wrapped.*")
        check_env(game, skip_render_check=True)


def test_same_seed_and_actions_give_the_same_episode_in_a_game_that_has_played_before(game):
    first = play(game, 3, 40, DoomPolicy())
    play(game, 4, 20, DoomPolicy())
    game.trigger("grey fog")
    game.step(0)
    again = play(game, 3, 40, DoomPolicy())
    assert first[2] == again[2]
    assert [info["prompt"] for info in first[1]] == [info["prompt"] for info in again[1]]
    np.testing.assert_array_equal(first[0], again[0])
    other = play(game, 4, 40, DoomPolicy())
    assert any((a != b).any() for a, b in zip(first[0], other[0], strict=False))


@pytest.mark.parametrize(("key", "sign"), [("left", 1), ("right", -1)])
def test_turning_left_shifts_the_picture_right(game, key, sign):
    game.reset(seed=0)
    action = game.controls.index(key)
    pictures = [game.step(action)[0].astype(float) for _ in range(5)]  # a turn takes a few tics to reach full speed
    before, after = pictures[-2:]
    errors = {}
    for shift in range(-14, 15):
        old, new = (before[:, : 64 - shift], after[:, shift:]) if shift >= 0 else (before[:, -shift:], after[:, :shift])
        errors[shift] = np.abs(old - new).mean()
    assert np.sign(min(errors, key=lambda shift: errors[shift])) == sign


@pytest.mark.parametrize(("key", "sign"), [("a", 1), ("d", -1)])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_stepping_aside_moves_across_the_line_of_sight(game, scenario, key, sign):
    _, info = game.reset(seed=0, options={"scenario": scenario})
    for _ in range(3):
        *_, info = game.step(game.controls.index(key))
    assert info["labels"]["scenario"] == scenario
    assert np.sign(game.view.motion[1]) == sign


def test_one_looks_away_and_back_and_sees_the_same_place(game):
    game.reset(seed=1, options={"scenario": "my_way_home"})

    def press(key, times):
        pictures = [game.step(game.controls.index(key))[0] for _ in range(times)]
        return pictures[-1].astype(int)

    press("up", 3)
    before = press("", STOP)
    away = press("left", 9)
    press("", 1)
    press("right", 9)
    after = press("", 1)
    assert np.abs(away - before).mean() > 10 * np.abs(after - before).mean()
    assert np.abs(after - before).mean() < 3


def test_the_policy_rarely_stares_at_walls_and_uses_every_action(game):
    walls, actions = [], []
    for seed in range(6):
        played = play(game, seed, steps=150)
        walls += played[3]
        actions += played[2]
    assert np.mean(walls) < 0.15
    counts = np.bincount(actions, minlength=game.action_space.n)
    assert counts.min() > 0 and counts[:6].min() / counts.sum() > 0.02, dict(zip(game.controls, counts, strict=True))


def test_prompts_are_short_held_and_tell_what_is_in_view(game):
    _, infos, _, _ = play(game, seed=1, steps=120)
    prompts = [info["prompt"] for info in infos]
    assert all(prompt and len(prompt.split()) <= MAX_WORDS for prompt in prompts)
    changes = [i for i in range(1, len(prompts)) if prompts[i] != prompts[i - 1]]
    assert len(set(prompts)) > 3
    assert min(np.diff([0, *changes])) >= HOLD
    for i in changes:  # a fresh prompt describes its own frame
        named = "medkit" in prompts[i] or "health kit" in prompts[i]
        assert not named or infos[i]["labels"]["medkit"]
        assert named or not infos[i]["labels"]["medkit"] or "poison" in prompts[i]  # or there was no room left for it


def test_every_kind_has_words_and_every_scenario_controls():
    assert set(NOUNS) == set(KINDS.values())
    for scenario in SCENARIOS.values():
        assert scenario.controls in CONTROLS and scenario.kinds <= set(NOUNS)
    assert sum(scenario.share for scenario in SCENARIOS.values()) == pytest.approx(1)


@pytest.mark.parametrize("recipe", BY_RECIPE)
def test_every_recipe_plays(recipe):
    pytest.importorskip("vizdoom", reason="needs vizdoom: pip install --no-deps vizdoom")
    env = pickle.loads(pickle.dumps(recipe.make_env))()  # workers get it that way
    try:
        frames, infos, actions, _ = play(env, 0, 20, pickle.loads(pickle.dumps(recipe.make_policy))())
        assert frames[-1].shape == (*recipe.frame_size, 3) and frames[-1].dtype == np.uint8
        assert set(actions) <= set(recipe.keys.values()) and "" in recipe.keys
        assert recipe.keys == env.get_keys_to_action()
        assert infos[-1]["labels"]["scenario"] in SCENARIOS
        assert recipe.fps == pytest.approx(env.metadata["render_fps"])
        assert env.render().shape == ((192, 256, 3) if recipe is RECIPE else (120, 160, 3))
    finally:
        env.close()
        env.close()


def test_an_episode_ends_by_death_and_then_asks_for_a_reset(game):
    game.reset(seed=0)
    steps, ended = 0, False
    while not ended and steps < 400:
        _, reward, ended, truncated, _ = game.step(0)
        assert type(reward) is float and not truncated
        steps += 1
    assert ended and steps > 50
    with pytest.raises(SessionError, match="reset"):
        game.step(0)


def test_take_cover_is_for_agents():
    """Three actions, a reward of one a tic, and skill pays: who dodges lives longer than who stands."""
    recipe = next(recipe for recipe in RECIPES if recipe.name == "doom-take-cover")
    pytest.importorskip("vizdoom", reason="needs vizdoom: pip install --no-deps vizdoom")
    env = recipe.make_env()
    lives = {"dodge": [], "still": []}
    try:
        assert env.action_space == spaces.Discrete(3) and recipe.episode_steps == 700
        for seed in range(3):
            for dodger, lengths in lives.items():
                policy = DoomPolicy()
                rng = np.random.default_rng(seed)
                policy.begin(rng, "train")
                policy.dodger, policy.sight, policy.discipline, policy.noise = dodger, 150.0, 1.0, 0.0
                observation, info = env.reset(seed=seed)
                total, over = 0.0, False
                while not over and total < 450:
                    observation, reward, over, _, info = env.step(policy.act(env, observation, info))
                    assert not over or float(reward) <= 3
                    total += float(reward)
                lengths.append(total)
    finally:
        env.close()
    assert np.mean(lives["dodge"]) > 1.7 * np.mean(lives["still"]), lives


def test_the_timeout_of_take_cover_truncates(monkeypatch):
    pytest.importorskip("vizdoom", reason="needs vizdoom: pip install --no-deps vizdoom")
    from dataclasses import replace

    short = {**SCENARIOS, "take_cover": replace(SCENARIOS["take_cover"], timeout=30)}
    monkeypatch.setattr("worldsim.games.doom.env.SCENARIOS", short)
    env = DoomGame("take_cover", size=64, controls="strafe")
    try:
        env.reset(seed=0)
        ends = [env.step(0)[2:4] for _ in range(10)]
    finally:
        env.close()
    assert ends == [(False, False)] * 9 + [(False, True)]


def test_pain_costs_reward_and_is_seen_where_a_recipe_says_so():
    pytest.importorskip("vizdoom", reason="needs vizdoom: pip install --no-deps vizdoom")
    env = next(recipe for recipe in RECIPES if recipe.name == "doom-take-cover").make_env()
    plain = DoomGame("take_cover", size=64, controls="strafe")
    try:
        hits = []
        for seed in range(4):  # who stands still is hit
            frame, _ = env.reset(seed=seed)
            plain.reset(seed=seed)
            ended = False
            while not ended:
                frame, reward, ended, cut, _ = env.step(0)
                other, living, *_ = plain.step(0)
                ended, cost = ended or cut, float(reward) - float(living)
                assert cost <= 0, (seed, reward, living)
                if cost < 0 and not ended:
                    hits.append((cost, frame[..., 0].mean() - other[..., 0].mean()))
    finally:
        env.close()
        plain.close()
    assert hits and all(cost <= -1 for cost, _ in hits), hits
    assert np.mean([redder for _, redder in hits]) > 20, hits


def test_leaves_nothing_in_the_working_folder(game, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    play(game, seed=0, steps=5)
    game.close()
    assert os.listdir(tmp_path) == []


def test_errors_say_what_to_do(game, monkeypatch):
    with pytest.raises(SessionError, match="reset"):
        game.step(0)
    with pytest.raises(SessionError, match="reset"):
        game.trigger("imp")
    game.reset(seed=0)
    with pytest.raises(ActionError, match="0 to 10"):
        game.step(11)
    with pytest.raises(ConfigError, match="grey fog"):
        game.trigger("fog")
    with pytest.raises(ConfigError, match="take_cover"):
        DoomGame("take_covr")
    with pytest.raises(ConfigError, match="strafe"):
        DoomGame(controls="straf")
    with pytest.raises(ConfigError, match="size"):
        DoomGame(size=(0, 10))
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(MissingDependency, match="pip install --no-deps vizdoom"):
        DoomGame()


def test_the_shares_of_the_moods_sum_to_one():
    assert sum(mood.share for mood in MOODS.values()) == pytest.approx(1)
