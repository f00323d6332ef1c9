"""The environments' manners."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import worldsim.envs
from worldsim.envs.shipped import SHIPPED, WORLDS, env_id
from worldsim.errors import ActionError, ConfigError, FrameError, InputError, PromptError, SessionError, WorldNotFound
from worldsim.world import World

IDS = {env_id(name): name for name in SHIPPED}
GENERATED = list(IDS)


def make(name: str, world_path: Path, **settings: Any) -> gym.Env:
    if name in IDS:
        if not (WORLDS / IDS[name] / "world.json").exists():
            pytest.skip(f"{IDS[name]} is not in this checkout")
        return gym.make(name, **settings)
    return gym.make(name, world=str(world_path), **settings)


@pytest.fixture
def env(world_path: Path) -> gym.Env:
    return gym.make("worldsim/World-v0", world=str(world_path), render_mode="rgb_array")


@pytest.mark.parametrize("name", ["worldsim/World-v0", *GENERATED])
def test_gymnasium_check(name: str, world_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(make(name, world_path).unwrapped, skip_render_check=False)


@pytest.mark.parametrize("name", ["worldsim/World-v0", *GENERATED])
def test_stable_baselines_check(name: str, world_path: Path) -> None:
    checker = pytest.importorskip("stable_baselines3.common.env_checker")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # CarRacing's own space, gas and brake from 0 to 1, gets this advice in the real game too.
        warnings.filterwarnings("ignore", "We recommend you to use a symmetric and normalized Box action space")
        checker.check_env(make(name, world_path).unwrapped)


@pytest.mark.parametrize("name", ["worldsim/World-v0", *GENERATED])
def test_same_seed_same_frames(name: str, world_path: Path) -> None:
    first, second = make(name, world_path), make(name, world_path)
    frames = []
    for env in (first, second):
        env.action_space.seed(3)
        observation, info = env.reset(seed=11)
        trace = [(observation, 0.0, info)]
        for _ in range(5):
            observation, reward, _, _, info = env.step(env.action_space.sample())
            trace.append((observation, float(reward), info))
        trace.append((env.reset()[0], 0.0, {}))  # an unseeded reset after a seeded one is reproducible too
        frames.append(trace)
    for (a, ra, ia), (b, rb, ib) in zip(*frames, strict=True):
        assert np.array_equal(a, b) and ra == rb and ia == ib


@pytest.mark.parametrize(("name", "real"), [("CarRacing", "RealCarRacing"), ("Doom", "RealDoom")])
def test_a_shipped_world_has_the_spaces_of_its_game(name: str, real: str, world_path: Path) -> None:
    if real == "RealDoom":
        pytest.importorskip("vizdoom")
    world, game = make(f"worldsim/{name}-v0", world_path), gym.make(f"worldsim/{real}-v0")
    assert world.observation_space == game.observation_space
    assert world.action_space == game.action_space
    game.close()


def test_observations_are_the_callers_own(env: gym.Env) -> None:
    observation, _ = env.reset(seed=1)
    before = env.render()
    observation[:] = 0
    assert np.array_equal(np.asarray(env.render()), np.asarray(before))


def test_pickles(env: gym.Env) -> None:
    assert pickle.loads(pickle.dumps(env.spec)).make() is not None  # noqa: S301 -- our own bytes


def test_step_before_reset(env: gym.Env) -> None:
    with pytest.raises(SessionError, match="reset"):
        env.unwrapped.step(0)
    with pytest.raises(SessionError):
        env.unwrapped.set_prompt("a cart")  # type: ignore[attr-defined]


def test_bad_actions_change_nothing(env: gym.Env) -> None:
    bare = env.unwrapped
    bare.reset(seed=1)
    for bad in (2, -1, 0.5, "left", None):
        with pytest.raises(ActionError, match="allowed"):
            bare.step(bad)
    after = bare.step(1)[0]
    bare.reset(seed=1)
    assert np.array_equal(after, bare.step(1)[0])


def test_bad_resets(env: gym.Env) -> None:
    size = env.observation_space.shape or ()
    frames = np.zeros((3, *size), np.uint8)
    for options, error in (
        ({"promt": "x"}, InputError),
        ({"start": "clip"}, InputError),
        ({"start": {"frames": frames.astype(float), "actions": [0, 1]}}, FrameError),
        ({"start": {"frames": frames[:, :8], "actions": [0, 1]}}, FrameError),
        ({"start": {"frames": frames, "actions": [0]}}, ActionError),
        ({"prompt": 3}, PromptError),
    ):
        with pytest.raises(error):
            env.reset(options=options)


def test_unknown_world_and_render_mode(world_path: Path) -> None:
    with pytest.raises(WorldNotFound):
        gym.make("worldsim/World-v0", world=str(world_path / "nothing"))
    with pytest.raises(ConfigError, match="rgb_array"):
        worldsim.envs.WorldEnv(world_path, render_mode="ascii")


@pytest.mark.parametrize("length", [1, 2, 30])
def test_continues_a_clip(env: gym.Env, length: int) -> None:
    """The first observation is the clip's last frame; any length will do, and only the recent part matters."""
    rng = np.random.default_rng(5)
    frames = rng.integers(0, 255, (length, *(env.observation_space.shape or ())), dtype=np.uint8)
    actions = rng.integers(0, 2, length - 1)
    observation, _ = env.reset(seed=1, options={"start": {"frames": frames, "actions": actions}})
    assert np.array_equal(observation, frames[-1])
    env.step(0)


def test_text_to_world(env: gym.Env) -> None:
    first, info = env.reset(seed=1, options={"prompt": "a cart"})
    assert info["prompt"] == "a cart"
    other, _ = env.reset(seed=2, options={"prompt": "a cart"})
    assert not np.array_equal(first, other)
    env.unwrapped.set_prompt("")  # type: ignore[attr-defined]
    assert env.step(0)[4]["prompt"] == ""


def test_two_windows_and_a_game_that_quits_the_display(world_path: Path) -> None:
    """What another environment does to the display is not the end of this one's window."""
    pygame = pytest.importorskip("pygame")
    one, two = (gym.make("worldsim/World-v0", world=str(world_path), render_mode="human") for _ in range(2))
    one.reset(seed=1)
    two.reset(seed=2)
    one.step(1)
    two.close()
    one.step(1)
    one.reset(seed=3)
    game = gym.make("CartPole-v1", render_mode="rgb_array")
    game.reset(seed=1)
    game.render()
    game.close()  # quits pygame's display
    one.step(1)
    pygame.quit()
    one.step(0)
    assert pygame.display.get_surface() is not None
    one.close()
    one.close()
    assert not pygame.display.get_init()


def test_human_mode_opens_and_closes(world_path: Path) -> None:
    env = gym.make("worldsim/World-v0", world=str(world_path), render_mode="human")
    env.reset(seed=1)
    env.step(0)
    env.close()
    env.close()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_worlds_need_no_text_encoder(name: str) -> None:
    """Whatever a plain reset can begin with, and every example prompt, is readable without the encoder's package."""
    world = World.from_pretrained(WORLDS / name)
    world.book.encoder_name = None
    for text in [*world.card.prompts, *(start["prompt"] for start in world.starts)]:
        world.book.encode(text)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_worlds_are_small_and_go_by_their_names(name: str) -> None:
    folder = WORLDS / name
    assert World.from_pretrained(folder).card.name == name  # a host serves worlds by it
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 25e6


def test_the_list_of_shipped_worlds_is_that_of_their_folders() -> None:
    assert sorted(SHIPPED) == sorted(file.parent.name for file in WORLDS.glob("*/world.json"))
    assert set(IDS) == {"worldsim/CarRacing-v0", "worldsim/CarRacingWild-v0", "worldsim/Doom-v0"}  # ids do not change
    assert {*IDS, "worldsim/World-v0", "worldsim/RealCarRacing-v0", "worldsim/RealDoom-v0"} <= set(gym.registry)


def test_make_by_module_path() -> None:
    with pytest.raises(WorldNotFound):  # found and called: the id needs no import before
        gym.make("worldsim.envs:worldsim/World-v0", world="nothing/here/at/all")


def test_snapshots_and_forks_for_planners(env: gym.Env) -> None:
    """A fork is a world of its own that begins here; going back makes the same frames again."""
    world: Any = env.unwrapped
    for call in (world.snapshot, world.fork, lambda: world.restore(None)):
        with pytest.raises(SessionError, match="reset"):
            call()
    env.reset(seed=1)
    env.step(0)
    twin, snapshot = world.fork(), world.snapshot()
    ahead = [env.step(action)[:3] for action in (1, 0, 1)]
    for action, (frame, reward, over) in zip((1, 0, 1), ahead, strict=True):
        got = twin.step(action)
        assert np.array_equal(got[0], frame) and got[1:3] == (reward, over)
    assert not np.array_equal(world.restore(snapshot), ahead[-1][0])
    assert np.array_equal(env.step(1)[0], ahead[0][0])
    observation, info = env.reset(options={"snapshot": snapshot, "prompt": ""})
    assert info["prompt"] == "" and observation.shape == ahead[0][0].shape
    env.close()
    assert twin.step(0)[0].any()  # its parent has left
    twin.close()
    twin.close()
    snapshot.close()
    assert world.engine.table.pool.used == 0
