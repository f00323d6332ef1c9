"""The Doom recorder: the environment's contract, what the keys do, and what walker and prompts promise."""

from __future__ import annotations

import os
import pickle
import sys
import warnings

import numpy as np
import pytest

from worldsim.data.games.doom import HOLD, MAX_WORDS, RECIPES, SCENARIOS, DoomGame
from worldsim.data.games.doom_walker import MOODS, Walker
from worldsim.errors import ActionError, ConfigError, MissingDependency, SessionError

BY_SCENARIO = [pytest.param(recipe, id=recipe.name) for recipe in RECIPES]


@pytest.fixture
def game():
    pytest.importorskip("vizdoom", reason="needs vizdoom: pip install --no-deps vizdoom")
    env = DoomGame()
    yield env
    env.close()


def play(env, seed, steps):
    """Frames, infos, actions and depths of an episode of the walker."""
    walker = Walker()
    observation, info = env.reset(seed=seed, options=walker.begin(np.random.default_rng(seed), "train"))
    frames, infos, actions, walls = [observation], [info], [], [env.unwrapped.view.wall]
    for _ in range(steps):
        actions.append(walker.act(env, observation, info))
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
    first = play(game, seed=3, steps=60)
    play(game, seed=4, steps=20)
    again = play(game, seed=3, steps=60)
    assert first[2] == again[2]
    assert [info["prompt"] for info in first[1]] == [info["prompt"] for info in again[1]]
    np.testing.assert_array_equal(first[0], again[0])
    other = play(game, seed=4, steps=60)
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


def test_the_walker_rarely_stares_at_walls_and_uses_every_action(game):
    walls, actions = [], []
    for seed in range(4):
        played = play(game, seed, steps=200)
        walls += played[3]
        actions += played[2]
    assert np.mean(walls) < 0.15
    counts = np.bincount(actions, minlength=game.action_space.n)
    assert counts.min() / counts.sum() > 0.02, dict(zip(game.controls, counts, strict=True))


def test_prompts_are_short_held_and_tell_what_is_in_view(game):
    _, infos, _, _ = play(game, seed=1, steps=150)
    prompts = [info["prompt"] for info in infos]
    assert all(prompt and len(prompt.split()) <= MAX_WORDS for prompt in prompts)
    changes = [i for i in range(1, len(prompts)) if prompts[i] != prompts[i - 1]]
    assert len(set(prompts)) > 3
    assert min(np.diff([0, *changes])) >= HOLD
    for i in changes:  # a fresh prompt describes its own frame
        named = "medkit" in prompts[i] or "health kit" in prompts[i]
        assert not named or infos[i]["labels"]["medkit"]
        assert named or not infos[i]["labels"]["medkit"] or "poison" in prompts[i]  # or there was no room left for it


@pytest.mark.parametrize("recipe", BY_SCENARIO)
def test_every_recipe_plays(recipe):
    pytest.importorskip("vizdoom", reason="needs vizdoom: pip install --no-deps vizdoom")
    env = pickle.loads(pickle.dumps(recipe.make_env))()  # workers get it that way
    try:
        frames, infos, actions, _ = play(env, seed=0, steps=30)
        assert frames[-1].shape == (*recipe.frame_size, 3) and frames[-1].dtype == np.uint8
        assert set(actions) <= set(recipe.keys.values()) and "" in recipe.keys
        assert infos[-1]["labels"]["scenario"] in SCENARIOS
        assert recipe.fps == pytest.approx(env.metadata["render_fps"])
        assert env.render().shape == (120, 160, 3)
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


def test_leaves_nothing_in_the_working_folder(game, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    play(game, seed=0, steps=5)
    game.close()
    assert os.listdir(tmp_path) == []


def test_errors_say_what_to_do(game, monkeypatch):
    with pytest.raises(SessionError, match="reset"):
        game.step(0)
    game.reset(seed=0)
    with pytest.raises(ActionError, match="0 to 5"):
        game.step(6)
    with pytest.raises(ConfigError, match="take_cover"):
        DoomGame("take_covr")
    monkeypatch.setitem(sys.modules, "vizdoom", None)
    with pytest.raises(MissingDependency, match="pip install --no-deps vizdoom"):
        DoomGame()


def test_the_shares_of_the_moods_sum_to_one():
    assert sum(mood.share for mood in MOODS.values()) == pytest.approx(1)
