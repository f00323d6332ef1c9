"""Headless clips, the play command, names and settings."""

import json
import os
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

pygame = pytest.importorskip("pygame")
imageio = pytest.importorskip("imageio.v3")

from toy import KEYS, Endless, Toy, World, read_video  # noqa: E402

from worldsim import cli  # noqa: E402 -- after the packages that may be missing
from worldsim.demos.clip import random_turns, read_script, write_clip  # noqa: E402
from worldsim.demos.player import PlayConfig, play  # noqa: E402
from worldsim.demos.screen import Screen  # noqa: E402
from worldsim.demos.session import Session, Side  # noqa: E402
from worldsim.demos.worlds import make_env, short_name  # noqa: E402
from worldsim.envs.keymap import KeyMap, read_keys  # noqa: E402
from worldsim.errors import ConfigError, WorldNotFound  # noqa: E402

pytestmark = pytest.mark.usefixtures("dummy_screen")


def test_scripts():
    keymap = KeyMap(read_keys(KEYS, Toy.action_space))
    turns = read_script('up*2 left+UP "a red road" none*2 w', keymap)
    assert turns == [(("up",), None)] * 2 + [(("left", "up"), None), ((), "a red road"), ((), None), (("w",), None)]
    for wrong in ("", "jump*3", "up*0", "up*x", "up+", '"only words"'):
        with pytest.raises(ConfigError, match="up\\*10"):
            read_script(wrong, keymap)


def test_clip_of_a_script(tmp_path):
    env = World()
    session = Session([Side(env, "toy")], seed=0)
    turns = read_script('up*4 "snow" left*3', session.first.keymap)
    made = write_clip(session, Screen([(20, 30)]), tmp_path / "a" / "b.mp4", fps=12.5, steps=7, turns=iter(turns))
    assert env.actions == [3] * 4 + [1] * 3 and env.words == "snow"
    assert "steps a second" in made
    assert "7 frames" in made and "12.5 fps" in made and len(read_video(tmp_path / "a" / "b.mp4")) == 7


def test_the_driver_is_repeatable():
    episodes = []
    for seed in (1, 1, 2):
        session = Session([Side(Endless(), "toy")], seed=seed)
        turns = random_turns(session.first.keymap, np.random.default_rng(seed))
        for _ in range(60):
            session.step(next(turns)[0])
        episodes.append(session.history.episode({}))
    a, b, c = episodes
    assert np.array_equal(a.frames, b.frames) and np.array_equal(a.actions, b.actions)
    assert not np.array_equal(a.frames, c.frames) and len(set(a.actions.tolist())) > 2


def test_headless_clip(tmp_path, capsys):
    config = PlayConfig(world="CartPole-v1", headless=True, steps=6, seed=1, out=tmp_path / "a.mp4")
    assert play(config) == tmp_path / "a.mp4" and len(read_video(tmp_path / "a.mp4")) == 6
    assert "6 frames of 632x550 at 50 fps" in capsys.readouterr().out


def test_no_screen(tmp_path):
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    words = "play CartPole-v1 --steps 5 --beside MountainCar-v0".split()
    run = subprocess.run(
        [sys.executable, "-m", "worldsim.cli", *words],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    if sys.platform.startswith("linux"):
        assert run.stdout.startswith("There is no screen here (neither DISPLAY nor WAYLAND_DISPLAY is set)")
        assert run.stdout.splitlines()[-1].startswith("play/CartPole-v1.mp4: 5 frames")
        assert len(read_video(tmp_path / "play" / "CartPole-v1.mp4")) == 5


def test_the_command_opens_a_window(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main("play CartPole-v1 --steps 3 --seed 1 --fps 100".split()) == 0
    assert "3 steps at" in capsys.readouterr().out and not list(tmp_path.iterdir())


def test_a_real_game(tmp_path):
    pytest.importorskip("Box2D")
    from worldsim.games.car_racing.env import CarRacingGame

    session = Session([Side(CarRacingGame(), "real"), Side(gym.make("CarRacing-v3", render_mode="rgb_array"), "v3")])
    session.step(["up"])
    assert [side.picture.shape for side in session.sides] == [(64, 64, 3), (96, 96, 3)]
    assert session.first.prompt and np.allclose(session.history.episode({}).actions, [[0, 0.6, 0]])
    session.close()


# Names and settings


def test_names(tmp_path, monkeypatch):
    env = make_env("CartPole-v1")
    assert env.render_mode == "rgb_array" and env.spec is not None and env.spec.max_episode_steps in (None, -1)
    for name in ("CartPole-v9", "nothing", "module_that_is_not:There-v0", "ALE/Pong-v5", str(tmp_path / "no")):
        with pytest.raises(WorldNotFound):
            make_env(name)
    with pytest.raises(WorldNotFound, match="Did you mean 'car-racing'"):
        make_env("car-racin")
    with pytest.raises(WorldNotFound, match=r"no world\.json"):
        make_env(str(tmp_path))
    with pytest.raises(ConfigError, match="rgb_array"):
        gym.register("worldsim-test/Blind-v0", entry_point=lambda **kwargs: Blind())
        make_env("worldsim-test/Blind-v0")
    assert [short_name(name) for name in ("a/b/", "mod:X-v0", "../..", "a b")] == ["b", "X-v0", "world", "a-b"]


class Blind(Toy):
    """Shows nothing."""

    metadata = {"render_modes": []}


@pytest.mark.parametrize(
    "wrong", [{"scale": -1}, {"steps": -1}, {"seed": -1}, {"fps": 0}, {"view": "x"}, {"frame_size": (0, 3)}]
)
def test_wrong_settings(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        PlayConfig(**wrong)


def test_settings_are_documented_and_light():
    code = "import sys, worldsim.demos.player; sys.exit(bool({'torch', 'pygame'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert json.dumps(PlayConfig().clip.as_posix()) == '"play/car-racing.mp4"'
    assert PlayConfig(out=Path("a/b.mp4")).folder == Path("a")
