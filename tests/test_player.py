"""The player: keys, prompt line, session, window, files and clips; all without a screen."""

import gc
import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

pygame = pytest.importorskip("pygame")
imageio = pytest.importorskip("imageio.v3")

from worldsim import cli  # noqa: E402 -- after the packages that may be missing
from worldsim.data.episodes import Dataset, read_episode  # noqa: E402
from worldsim.demos.clip import drive, read_script, write_clip  # noqa: E402
from worldsim.demos.controls import COMMANDS, Held, axis_key, button_key, hat_keys  # noqa: E402
from worldsim.demos.keymap import KeyMap, derive_keys, keymap_for, read_keys, rest_action  # noqa: E402
from worldsim.demos.line import LONGEST, PromptLine  # noqa: E402
from worldsim.demos.player import PlayConfig, play  # noqa: E402
from worldsim.demos.screen import Screen, open_window  # noqa: E402
from worldsim.demos.session import LEAD_IN, Session, Side  # noqa: E402
from worldsim.demos.view import Overlay, view_of  # noqa: E402
from worldsim.demos.window import Player  # noqa: E402
from worldsim.demos.worlds import make_env, short_name  # noqa: E402
from worldsim.errors import ConfigError, DataError, PromptError, SessionError, WorldNotFound  # noqa: E402

KEYS = {"": 0, "left": 1, "right": 2, "up": 3, "left+up": 4, "space": 5}


class Toy(gym.Env):
    """A game whose frames show the step and the action."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 200}
    action_space = spaces.Discrete(6)
    observation_space = spaces.Box(0, 255, (20, 30, 3), np.uint8)
    words, limit = "plain", 1000

    def __init__(self):
        self.render_mode, self.actions = "rgb_array", []

    def get_keys_to_action(self):
        return KEYS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.options, self.count, self.actions = dict(options or {}), 0, []
        self.words = self.options.get("prompt", "plain")
        return self._frame(0), self._info()

    def step(self, action):
        self.count += 1
        self.actions.append(int(action))
        return self._frame(action), 0.5, self.count >= self.limit, self.count >= 7, self._info()

    def _frame(self, action):
        noise = self.np_random.integers(0, 255, (20, 30, 3), np.uint8)
        noise[:4, :4] = (self.count % 256, action, 99)
        return noise

    def _info(self):
        return {"prompt": self.words, "labels": {"length": len(self.words)}}


class World(Toy):
    """The same as a generated world: with prompts, and starts from given frames."""

    prompts = ["plain", "a road at night", "snow"]

    def set_prompt(self, text):
        if "lava" in text:
            raise PromptError(f"no lava: {text}")
        self.words = text


class Endless(Toy):
    """Never truncates."""

    def step(self, action):
        return *super().step(action)[:3], False, self._info()


@pytest.fixture(autouse=True)
def dummy_screen(monkeypatch):
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setenv("SDL_AUDIODRIVER", "dummy")
    yield
    pygame.quit()


@pytest.fixture
def player(tmp_path):
    return make_player(tmp_path, World())


def make_player(folder, *envs, fps=200.0):
    open_window("toy")
    session = Session([Side(env, f"toy {i}") for i, env in enumerate(envs)], seed=4)
    screen = Screen([side.picture.shape[:2] for side in session.sides])
    return Player(session, screen, folder=folder, name="toy", fps=fps)


def press(player, *keys, up=False):
    for key in keys:
        pygame.event.post(pygame.event.Event(pygame.KEYUP if up else pygame.KEYDOWN, key=getattr(pygame, f"K_{key}")))
    while player.poll():
        pass


def type_text(player, text):
    pygame.event.post(pygame.event.Event(pygame.TEXTINPUT, text=text))
    while player.poll():
        pass


def read_video(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the reader leaves its pipes to the garbage collector
        video = imageio.imread(path)
        gc.collect()
    return video


# Keys


def test_choose_is_the_largest_subset_then_the_latest():
    generator = random.Random(0)
    names = ["left", "up", "right", "x", "y"]
    for _ in range(200):
        combos = {frozenset(generator.sample(names, generator.randint(1, 3))) for _ in range(6)} | {frozenset()}
        keymap = KeyMap({combo: i for i, combo in enumerate(combos)})
        held = generator.sample([*names, "other"], generator.randint(0, 6))
        chosen = keymap.choose(held)
        fitting = [combo for combo in combos if combo <= set(held)]
        assert chosen in fitting and len(chosen) == max(map(len, fitting))
        assert keymap.action(held) == keymap.entries[chosen]
        latest = {max(map(held.index, combo), default=-1) for combo in fitting if len(combo) == len(chosen)}
        assert max(map(held.index, chosen), default=-1) == max(latest)


def test_aliases_and_gymnasiums_keys():
    space = spaces.Discrete(4)
    assert KeyMap(read_keys(KEYS, spaces.Discrete(6))).action(["w", "a"]) == 4
    for keys in ({"a": 1, "ad": 2, " ": 3}, {(97,): 1, (97, 100): 2, 32: 3}, {("a",): 1, ("a", "d"): 2, (" ",): 3}):
        keymap = KeyMap(read_keys({(): 0, **keys}, space))
        assert [keymap.action(held) for held in ([], ["a"], ["left"], ["d", "left"], ["space"])] == [0, 1, 1, 2, 3]
    two = KeyMap(read_keys({"": 0, "w": 1, "up": 2}, space))  # two players: letters are not arrows
    assert (two.action(["w"]), two.action(["up"]), two.action(["s"])) == (1, 2, 0)
    assert keymap_for(gym.make("MountainCar-v0")).action(["left"]) == 0  # has codes of SDL 1
    with pytest.raises(ConfigError, match="not in Discrete"):
        read_keys({"left": 4}, space)
    with pytest.raises(ConfigError, match="no key that worldsim knows"):
        read_keys({(0x40000099,): 1}, space)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(2),
        spaces.Discrete(3, start=5),
        spaces.Discrete(18),
        spaces.Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32)),
        spaces.Box(-np.inf, np.inf, (2, 2), np.float32),
        spaces.Box(1, 2, (17,), np.float32),
        spaces.MultiDiscrete([3, 2, 5]),
        spaces.MultiBinary(4),
    ],
)
def test_derived_keys(space):
    entries = derive_keys(space)
    assert all(space.contains(action) for action in entries.values())
    assert np.array_equal(entries[frozenset()], rest_action(space))
    assert 1 < len(entries) <= 1000


def test_derived_keys_of_a_car():
    keymap = KeyMap(derive_keys(spaces.Box(np.array([-1, 0, 0], np.float32), np.ones(3, np.float32))))
    assert keymap.action(["left", "up"]).tolist() == [-1, 1, 0]
    assert keymap.action(["d", "down"]).tolist() == [1, 0, 1]


def test_no_keys_for_other_spaces():
    with pytest.raises(ConfigError, match="get_keys_to_action"):
        derive_keys(spaces.Tuple((spaces.Discrete(2),)))


def test_held():
    held = Held()
    assert held.hold(1, "up") and not held.hold(1, "up") and held.hold("pad", "left")
    assert held.names() == ["up", "left"]
    held.hold(1, "")
    assert held.names() == ["up", "left"]  # a tap is seen by one step
    held.stepped()
    assert held.names() == ["left"]


def test_gamepad_names():
    assert [axis_key(0, value) for value in (-1, -0.2, 0.2, 1)] == ["left", "", "", "right"]
    assert (axis_key(1, -1), axis_key(5, -1), axis_key(5, 1), axis_key(3, 1)) == ("up", "", "up", "")
    assert hat_keys((-1, 1)) == ("left", "up") and hat_keys((0, 0)) == ("", "")
    keymap = KeyMap(read_keys(KEYS, Toy.action_space))
    assert [button_key(i, keymap) for i in range(3)] == ["space", "down", ""]


def test_prompt_line():
    line = PromptLine()
    line.begin("grass", ["grass", "snow"])
    line.key("down")
    assert line.text == "snow"
    line.key("up")
    line.key("end")
    line.type(" now")
    line.key("home")
    line.key("delete")
    line.type("G\n")
    assert (line.text, line.cursor) == ("G rass now", 2)
    line.key("backspace")
    line.key("right")
    line.key("left")
    assert (line.text, line.cursor) == ("Grass now", 1)
    line.begin("grass")
    line.type("x")
    assert line.text == "x"  # all was selected
    line.type("y" * 500)
    assert len(line.text) == LONGEST and line.close() == line.text and not line.open


# Session


def test_both_sides_get_the_same(tmp_path):
    world, game = World(), Endless()
    session = Session([Side(world, "world"), Side(game, "game")], seed=9)
    start = world.options["start"]
    assert len(start["frames"]) == LEAD_IN and start["actions"].tolist() == [0] * (LEAD_IN - 1)
    assert np.array_equal(start["frames"][-1], session.sides[1].frame) and world.options["prompt"] == "plain"
    for held in (["left"], ["left", "up"], []):
        session.step(held)
    assert world.actions == [1, 4, 0] == game.actions[-3:]
    session.set_prompt("snow")
    assert (world.words, game.words) == ("snow", "plain")
    session.reset()
    assert world.options["prompt"] == "snow" and session.seed == 10 and session.steps == 0
    with pytest.raises(PromptError, match="no prompt is taken"):
        Session([Side(Toy(), "game")], prompt="snow")


def test_time_limits_are_for_games():
    session = Session([Side(World(), "world"), Side(Toy(), "game")], seed=0)
    for _ in range(8):
        session.step([])
    assert session.sides[1].over and not session.first.over and session.steps == 8


def test_saved_episode_reads_back(tmp_path):
    env = World()
    session = Session([Side(env, "world")], seed=3)
    with pytest.raises(SessionError, match="nothing to save"):
        session.save(tmp_path / "set")
    frames, rng = [session.first.frame], np.random.default_rng(0)
    turns = drive(session.first.keymap, rng)
    for i in range(12):
        if i == 5:
            session.set_prompt("snow")
        session.step(next(turns)[0])
        frames.append(session.first.frame)
    path = session.save(tmp_path / "set")
    episode = read_episode(path)
    assert np.array_equal(episode.frames, np.stack(frames))
    assert episode.actions.tolist() == env.actions
    assert episode.rewards.tolist() == [0.5] * 12 and not episode.truncated.any()
    assert episode.texts() == ["plain"] * 6 + ["snow"] * 7
    assert episode.prompts[1] == {"text": "snow", "length": 4} and episode.meta["seed"] == 3
    assert session.save(tmp_path / "set").name == "000001.safetensors"
    dataset = Dataset(tmp_path / "set")
    assert len(dataset.read()) == 2 and dataset.action_space == Toy.action_space
    assert dataset.card["keys"] == {"+".join(sorted(key.split("+"))): action for key, action in KEYS.items()}
    cart = Session([Side(make_env("CartPole-v1"), "cart")], seed=0)
    cart.step([])
    assert cart.history.episode({}).frames.shape == (2, 64, 64, 3)
    with pytest.raises(DataError, match="--out"):
        cart.save(tmp_path / "set")


# Window


def test_keys_play_and_taps_count(player):
    press(player, "a", "UP")
    player.step()
    press(player, "a", up=True)
    player.step()
    press(player, "UP", up=True)
    press(player, "RIGHT")
    press(player, "RIGHT", up=True)
    player.step()
    player.step()
    assert player.session.first.env.actions == [4, 3, 2, 0]
    press(player, "SPACE")  # the game's own key, so it does not pause
    assert not player.paused and player.held.names() == ["space"]


def test_pause_and_single_step(player):
    press(player, "p", "n", "n")
    assert player.paused and player.total_steps == 2
    press(player, "F4", "n")
    assert not player.paused and player.total_steps == 2 and "press P" in player._message
    press(player, "r")
    assert player.session.steps == 0
    player.run(steps=5)
    assert player.total_steps == 5 and player.reached_fps > 0


def test_pace(tmp_path):
    player = make_player(tmp_path, Endless(), fps=50.0)
    player.run(steps=12)
    assert 20 < player.reached_fps < 60  # a busy machine makes it late, and the next step early


def test_typing_a_prompt_while_playing(player):
    press(player, "UP", "TAB")
    assert player.line.open and player.line.text == "plain"
    type_text(player, "night r")
    press(player, "r", "UP")  # letters come as text; what was held before still plays
    player.step()
    assert player.session.steps == 1 and player.session.first.env.actions == [3] and player.line.text == "night r"
    press(player, "RETURN")
    assert not player.line.open and player.session.first.env.words == "night r"
    press(player, "RETURN")
    type_text(player, "lava")
    press(player, "ESCAPE")
    assert player.running and player.session.first.env.words == "night r"
    press(player, "TAB", "DOWN", "KP_ENTER")
    assert player.session.first.env.words == "plain"


def test_an_error_is_shown_and_play_goes_on(player):
    press(player, "TAB")
    type_text(player, "lava")
    press(player, "RETURN")
    assert player._bad and player._message == "no lava: lava" and player.session.prompt is None
    player.present()
    player.run(steps=2)
    assert player.session.steps == 2


def test_files(player, tmp_path):
    press(player, "c", "v")
    for _ in range(9):
        player.step()
    shown = player.screen.pixels().astype(int)
    press(player, "v", "v", "F9", "v")  # the second video has no frames and leaves no file
    player.run(steps=12)  # ends the third one
    press(player, "e")
    video = read_video(tmp_path / "toy-001.mp4")
    assert video.shape == (9, *shown.shape) == (9, *imageio.imread(tmp_path / "toy-001.png").shape)
    assert np.abs(video[-1] - shown).mean() < 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["toy", "toy-001.mp4", "toy-001.png", "toy-002.mp4"]
    assert len(read_episode(tmp_path / "toy" / "train" / "000000.safetensors")) == 12


def test_a_file_that_cannot_be_written(player):
    player.saver.folder = Path(os.devnull) / "folder"
    press(player, "c")
    assert player._bad
    press(player, "v")
    assert player._bad and player.saver.recorded is None


def test_gamepad_events(player):
    def post(kind, **values):
        pygame.event.post(pygame.event.Event(kind, instance_id=0, **values))
        player.poll()
        return player.held.names()

    assert post(pygame.JOYAXISMOTION, axis=0, value=-0.9) == ["left"]
    assert post(pygame.JOYHATMOTION, hat=0, value=(0, 1)) == ["left", "up"]
    player.step()
    assert post(pygame.JOYAXISMOTION, axis=0, value=0.0) == ["up"]
    assert post(pygame.JOYBUTTONDOWN, button=0) == ["up", "space"]
    post(pygame.JOYBUTTONUP, button=0)
    post(pygame.JOYBUTTONDOWN, button=7)
    assert player.paused and player.session.first.env.actions == [4]
    post(pygame.JOYDEVICEREMOVED)
    assert player.held.names() == []


def test_help_quit_and_close(player):
    press(player, "h")
    assert player.helping
    player.present()
    press(player, "ESCAPE")
    assert player.running and not player.helping
    press(player, "ESCAPE")
    assert not player.running
    player.running = True
    pygame.event.post(pygame.event.Event(pygame.QUIT))
    player.run()
    assert not player.running
    assert all(callable(getattr(player, method)) for _, method, _ in COMMANDS)


def test_an_episode_ends(tmp_path):
    env = Endless()
    env.limit = 3
    player = make_player(tmp_path, env)
    for _ in range(3):
        player.step()
    player.present()
    assert player.session.over
    player.step()
    assert player.session.steps == 3
    press(player, "r")
    assert not player.session.over
    player.run(steps=20)  # asked for a number of steps: does not wait for R
    assert player.total_steps == 20


def test_drawing():
    session = Session([Side(World(), "a name that is far too long for its picture " * 3), Side(Endless(), "b")], seed=0)
    for scale, smooth in ((0, False), (1, False), (7, True)):
        screen = Screen([(20, 30), (20, 30)], scale=scale, smooth=smooth)
        screen.draw(view_of(session, ["left"], fps=9.9))
        before = screen.pixels()
        assert before.shape[0] % 2 == before.shape[1] % 2 == 0 and before.std() > 5
        place = screen.places[0]
        times = place.width // 30
        if not smooth:  # whole pixels, unchanged
            shown = before[place.top : place.bottom : times, place.left : place.right : times]
            assert np.array_equal(shown[1:-1, 1:-1], session.first.picture[1:-1, 1:-1])
        screen.overlay(Overlay(message="word " * 200, bad=True, recording="REC", paused="PAUSED"))
        screen.overlay(Overlay(help=[("a", "b")] * 10))
        assert (screen.pixels() != before).any()
    assert Screen([(2000, 1000)]).shown == [(720, 360)]


# Clips and the command


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
        turns = drive(session.first.keymap, np.random.default_rng(seed))
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
    from worldsim.data.games.car_racing import CarRacingGame

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
