"""The racing game and its driver: colours follow the palette, words follow the colours, steering turns the view."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
pytest.importorskip("Box2D")
pytest.importorskip("pygame")

from gymnasium.envs.box2d.car_racing import CarRacing  # noqa: E402  -- after the skips
from gymnasium.utils.env_checker import check_env  # noqa: E402  -- after the skips

from worldsim.errors import ActionError, ConfigError, InputError, SessionError  # noqa: E402  -- after the skips
from worldsim.games.car_racing import palettes, prompts  # noqa: E402  -- after the skips
from worldsim.games.car_racing.env import CarRacingGame  # noqa: E402  -- after the skips
from worldsim.games.car_racing.policy import EPISODE_STEPS, CarRacingPolicy  # noqa: E402  -- after the skips
from worldsim.games.car_racing.recipe import RECIPE  # noqa: E402  -- after the skips

IDLE = np.zeros(3, np.float32)


def play(env: CarRacingGame, seed: int, steps: int, options: dict | None = None) -> list:
    """Frames, rewards and infos of a driven episode."""
    driver = CarRacingPolicy()
    chosen = driver.begin(np.random.default_rng(seed), "train")
    observation, info = env.reset(seed=seed, options=chosen if options is None else options)
    record = [(observation, 0.0, info)]
    for _ in range(steps):
        observation, reward, _, _, info = env.step(driver.act(env, observation, info))
        record.append((observation, reward, info))
    return record


def pose(env: CarRacingGame) -> tuple[float, float, float]:
    """Where the car is, x and y, and its angle (left is positive)."""
    assert env.car is not None
    return *env.car.hull.position, env.car.hull.angle


def share_of(frame: np.ndarray, rgb: tuple[int, int, int]) -> float:
    """Share of the pixels above the instruments that show a colour."""
    return float((np.abs(frame[:54].astype(int) - rgb).max(-1) <= 12).mean())


def test_is_a_proper_environment():
    env = CarRacingGame(max_steps=3)
    check_env(env, skip_render_check=True)
    picture = env.render()
    assert picture is not None and picture.shape == (400, 600, 3)
    env.reset(seed=0)
    assert [env.step(IDLE)[3] for _ in range(3)] == [False, False, True]
    copy = pickle.loads(pickle.dumps(env))
    assert (copy.repeat, copy.size, copy.max_steps) == (4, 64, 3)
    env.close()
    env.close()


def test_same_seed_same_episode_in_a_used_and_a_new_environment():
    used = CarRacingGame()
    play(used, seed=5, steps=10)
    for old, new in zip(play(used, seed=3, steps=25), play(CarRacingGame(), seed=3, steps=25), strict=True):
        assert np.array_equal(old[0], new[0])
        assert old[1:] == new[1:]


def test_roads_are_drawn_as_the_parent_draws_them():
    env = CarRacingGame(size=96)
    play(env, seed=1, steps=12)
    ours = env._frame()
    env._render_road = lambda *camera: CarRacing._render_road(env, *camera)  # type: ignore[method-assign]
    assert np.array_equal(ours, env._frame())


def test_palette_and_prompt_change_with_the_same_frame():
    env = CarRacingGame()
    changes = [(2, "blue/snow", "a blue road in snow"), (3, "night", "night")]
    env.reset(seed=0, options={"palette": "classic", "changes": changes})
    seen = []
    for _ in range(3):
        frame, _, _, _, info = env.step(IDLE)
        labels = info["labels"]
        assert share_of(frame, palettes.ground_rgb(labels["ground"])) > 0.3
        assert share_of(frame, palettes.road_rgb(labels["road"])) > 0.05
        seen.append((info["prompt"], labels["road"], labels["ground"]))
    assert seen == [
        ("a grey road through green grass", "grey", "grass"),
        ("a blue road in snow", "blue", "snow"),
        ("night", "grey", "night"),
    ]


def test_steering_turns_the_car_the_way_it_says():
    angles = {}
    for side in (-1.0, 1.0):
        env = CarRacingGame()
        env.reset(seed=0)
        start = pose(env)[2]
        for _ in range(12):
            env.step(np.array([side, 0.5, 0.0]))
        angles[side] = pose(env)[2] - start
    assert angles[-1.0] > 0.3 and angles[1.0] < -0.3  # angles grow to the left


def test_starts_anywhere_on_the_lap():
    env = CarRacingGame()
    first, _ = env.reset(seed=0)
    place = pose(env)
    other, _ = env.reset(seed=0, options={"start_tile": 0.5})
    assert env.on_road and not np.array_equal(first, other)
    assert np.hypot(place[0] - pose(env)[0], place[1] - pose(env)[1]) > 50


@pytest.mark.parametrize("split", ["train", "heldout", "unseen"])
def test_driver_draws_palettes_of_its_split(split: str):
    changed = 0
    for seed in range(150):
        options = CarRacingPolicy().begin(np.random.default_rng(seed), split)
        names = [options["palette"], *(name for _, name, _ in options["changes"])]
        for name in names:
            assert (palettes.parse_palette(name) in palettes.UNSEEN) == (split == "unseen")
        assert all(a != b for a, b in zip(names, names[1:], strict=False))
        assert all(0 < step < EPISODE_STEPS for step, _, _ in options["changes"])
        changed += len(names) > 1
    assert 0.2 < changed / 150 < 0.5


def test_driver_stays_mostly_on_the_road():
    env = CarRacingGame()
    env._frame = lambda: np.zeros((64, 64, 3), np.uint8)  # type: ignore[method-assign]  -- drawing is slow
    on_road = []
    for seed in range(6):
        driver = CarRacingPolicy()
        observation, info = env.reset(seed=seed, options=driver.begin(np.random.default_rng(seed), "train"))
        for _ in range(100):
            action = driver.act(env, observation, info)
            assert env.action_space.contains(action)
            observation, _, terminated, _, info = env.step(action)
            on_road.append(env.on_road)
            if terminated:
                break
    assert 0.6 < np.mean(on_road) < 0.99


def test_words_are_short_varied_and_known():
    rng = np.random.default_rng(0)
    for palette in (*palettes.PAIRS, *palettes.UNSEEN):
        texts = {prompts.prompt_for(palette, rng) for _ in range(60)}
        assert len(texts) > 25
        assert max(len(text.split()) for text in texts) <= 12
    for palette in palettes.UNSEEN:  # each word is known from other pairs, each road can be seen
        assert palettes.contrasts(palette)
        assert any(p.road == palette.road for p in palettes.PAIRS)
        assert any(p.ground == palette.ground for p in palettes.PAIRS)
    assert set(palettes.THEMES.values()) <= set(palettes.PAIRS)


def test_keys_are_actions():
    space = RECIPE.make_env().action_space
    assert set(RECIPE.keys) >= {"", "left", "right", "up", "down", "left+up", "right+down"}
    assert all(space.contains(np.array(action, np.float32)) for action in RECIPE.keys.values())


def test_refuses_what_it_cannot_do():
    env = CarRacingGame()
    with pytest.raises(SessionError, match="reset"):
        env.step(IDLE)
    with pytest.raises(InputError, match="grey"):
        env.reset(options={"palette": "gray/grass"})
    with pytest.raises(InputError, match="desert"):
        env.reset(options={"palette": "dessert"})
    with pytest.raises(InputError, match="start_tile"):
        env.reset(options={"start_tile": 2})
    with pytest.raises(InputError, match="palete"):
        env.reset(options={"palete": "night"})
    with pytest.raises(ConfigError, match="repeat"):
        CarRacingGame(repeat=0)
    env.reset(seed=0)
    with pytest.raises(ActionError, match="three"):
        env.step(np.zeros(2))
