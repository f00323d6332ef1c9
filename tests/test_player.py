"""The player: session, window and files; all without a screen."""

import os
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

pygame = pytest.importorskip("pygame")
imageio = pytest.importorskip("imageio.v3")

from toy import KEYS, Endless, Toy, World, make_player, press, read_video, type_text  # noqa: E402

import worldsim.envs  # noqa: E402, F401 -- registers the ids
from worldsim.data.episodes import Dataset, read_episode  # noqa: E402
from worldsim.demos.clip import random_turns  # noqa: E402
from worldsim.demos.controls import COMMANDS  # noqa: E402
from worldsim.demos.driver import driver  # noqa: E402
from worldsim.demos.rewind import MOST, SECONDS  # noqa: E402
from worldsim.demos.screen import Screen  # noqa: E402
from worldsim.demos.session import LEAD_IN, Session, Side  # noqa: E402
from worldsim.demos.view import Overlay, view_of  # noqa: E402
from worldsim.demos.window import Player  # noqa: E402
from worldsim.demos.worlds import make_env  # noqa: E402
from worldsim.diffusion import noise  # noqa: E402
from worldsim.errors import DataError, PromptError, SessionError  # noqa: E402

pytestmark = pytest.mark.usefixtures("dummy_screen")


@pytest.fixture
def player(tmp_path):
    return make_player(tmp_path, World())


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
    turns = random_turns(session.first.keymap, rng)
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
    assert dataset.card.keys == {"+".join(sorted(key.split("+"))): action for key, action in KEYS.items()}
    cart = Session([Side(make_env("CartPole-v1"), "cart")], seed=0)
    cart.step([])
    assert cart.history.episode({}).frames.shape == (2, 64, 64, 3)
    with pytest.raises(DataError, match="--out"):
        cart.save(tmp_path / "set")


# Rewinding


def play(session, turns):
    """The pictures after each step."""
    shown = []
    for held in turns:
        session.step(held)
        shown.append(session.first.picture)
    return shown


def test_steps_taken_back_were_never_made():
    env = World()
    env.limit = 7  # then the episode is over
    session = Session([Side(env, "world")], seed=3)
    turns = [["left"], [], ["up"], ["space"], ["right"], [], ["left", "up"]]
    first, shown = session.first.picture, play(session, turns[:4])
    session.set_prompt("snow")
    shown += play(session, turns[4:])
    assert session.over and session.first.total == 3.5
    for _ in range(3):
        session.rewind()
    assert (session.steps, session.over, session.first.total, env.words) == (4, False, 2.0, "snow")
    assert np.array_equal(play(session, turns[4:]), shown[4:]) and session.over
    for _ in range(5):
        session.rewind()
    assert (session.steps, session.prompt, session.first.prompt, env.words) == (2, None, "plain", "plain")
    assert np.array_equal(session.first.picture, shown[1])
    shown[2:] = play(session, [["up"], ["right"], ["right"]])  # another way
    episode = session.history.episode({})
    assert np.array_equal(episode.frames, [first, *shown])
    assert episode.actions.tolist() == env.actions == [1, 0, 3, 2, 2]
    assert episode.texts() == ["plain"] * 6 and not episode.terminated.any()
    for _ in range(9):
        session.rewind()
    assert session.steps == len(session.history) == 0 and np.array_equal(session.first.picture, first)
    assert env.saved == []


def test_a_real_world_goes_back_bit_for_bit(world_path, monkeypatch):
    monkeypatch.setattr(noise, "NEVER", 2.0)  # a world that was hardly trained may end at any step
    env: Any = gym.make("worldsim/World-v0", world=str(world_path), render_mode="rgb_array")
    pool = env.unwrapped.engine.table.pool
    session = Session([Side(env, "world")], seed=5)
    turns, start = [["left"], ["right"], ["right"], ["left"], ["left"], ["right"]], session.first.picture
    shown = play(session, turns)
    assert all((one != other).any() for one, other in zip(shown, shown[1:], strict=False))
    rewards = session.history.episode({}).rewards
    for i in (4, 3, 2):
        session.rewind()
        assert np.array_equal(session.first.picture, shown[i]) and np.array_equal(env.render(), shown[i])
    assert session.steps == 3
    assert np.array_equal(play(session, turns[3:]), shown[3:])
    episode = session.history.episode({})
    assert np.array_equal(episode.frames, [start, *shown]) and np.array_equal(episode.rewards, rewards)
    assert pool.reserved > 0
    session.close()
    assert pool.reserved == pool.used == 0


def test_what_is_kept():
    env = World()
    session = Session([Side(env, "world")], seed=0)
    play(session, [[]] * (MOST + 5))
    assert len(session.past) == len(env.saved) == MOST == min(MOST, SECONDS * session.fps)
    session.reset()
    assert len(session.past) == len(env.saved) == session.steps == 0
    env.room = 3  # of snapshots: the oldest give way
    play(session, [[]] * 8)
    for _ in range(8):
        session.rewind()
    assert session.steps == 5 == env.count
    play(session, [[]])
    env.room = 0  # not even one: play goes on
    play(session, [[]])
    session.rewind()
    assert session.steps == 7 and env.saved == []
    env.room = 9
    play(session, [[]])
    session.close()
    assert env.saved == []


def test_sides_go_back_together():
    one, other = World(), World()
    one.limit, other.room = 3, 5
    session = Session([Side(one, "one"), Side(other, "other")], seed=0)
    play(session, [[]] * 6)
    assert (session.steps, one.count, other.count) == (3, 3, 6) and len(one.saved) == len(other.saved) == 5
    for count in (5, 4, 3):
        session.rewind()
        assert (session.steps, session.first.over, other.count) == (3, True, count)
    session.rewind()
    assert (session.steps, one.count, other.count, len(session.history)) == (2, 2, 2, 2) and not session.first.over
    world = World()
    session = Session([Side(world, "world"), Side(Endless(), "game")], seed=0)
    play(session, [[]] * 3)
    with pytest.raises(SessionError, match="game cannot go back"):
        session.rewind()
    assert session.steps == world.count == 3 and world.saved == []


def test_holding_the_key_rewinds(player):
    for _ in range(9):
        player.step()
    player.present()
    shown = player.screen.pixels()
    press(player, "BACKSPACE")
    assert player.rewinding
    player.present()
    assert (player.screen.pixels() != shown).any()
    for left in (8, 7, 6):
        player.rewind()
        assert player.session.steps == left and player.rewinding
    press(player, "BACKSPACE", up=True)
    assert not player.rewinding
    press(player, "p", "BACKSPACE")
    press(player, "BACKSPACE", up=True)  # a tap is one step, also while paused
    assert player.moving
    player.rewind()
    assert player.session.steps == 5 and player.paused and not player.moving
    press(player, "p")
    player.run(steps=player.total_steps + 2)
    assert player.session.steps == 7


def test_run_goes_backwards_while_the_key_is_held(player, monkeypatch):
    player.session.first.env.limit = 5
    for _ in range(5):
        player.step()
    assert player.session.over and not player.moving
    press(player, "F6")
    taken = []

    def rewind():
        taken.append(player.session.steps)
        Player.rewind(player)
        if len(taken) == 7:  # two more than there are
            press(player, "F6", up=True)

    monkeypatch.setattr(player, "rewind", rewind)
    player.run(steps=8)
    assert taken == [5, 4, 3, 2, 1, 0, 0] and player.session.steps == 3


def test_a_game_says_that_it_cannot_rewind(tmp_path):
    player = make_player(tmp_path, Endless())
    player.step()
    press(player, "BACKSPACE")
    assert player._bad and "cannot go back" in player._message and not player.rewinding
    player.step()
    assert player.session.steps == 2


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
    assert not player.paused and player.pressed.names() == ["space"]


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


def test_an_episode_waits_for_its_first_key(player):
    assert player.waiting and not player.moving, "it may begin at speed in a hairpin"
    press(player, "h", "h")
    assert not player.moving
    press(player, "UP")
    assert player.moving
    press(player, "r")
    assert player.waiting and not player.moving
    press(player, "p")
    assert player.paused and not player.waiting
    press(player, "p")
    assert player.moving


def test_the_game_waits_while_a_prompt_is_typed(player):
    press(player, "UP", "TAB")
    assert not player.moving
    press(player, "RETURN")
    assert player.moving


def test_keys_pressed_while_words_are_read_are_for_no_one(player, monkeypatch):
    """Reading new words takes seconds: who presses Enter again must not open the line again, which eats the keys."""
    read = player.session.set_prompt

    def slowly(text):
        for key in (pygame.K_RETURN, pygame.K_LEFT):
            pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=key, unicode="", mod=0))
        time.sleep(0.2)
        read(text)

    monkeypatch.setattr(player.session, "set_prompt", slowly)
    press(player, "UP")
    press(player, "UP", up=True)
    press(player, "TAB")
    type_text(player, "snow")
    press(player, "RETURN")
    player.poll()
    assert not player.line.open and player.session.first.env.words == "snow"
    assert player.pressed.names() == ["up"] and player.moving
    press(player, "RIGHT")
    player.step()
    assert player.session.first.env.actions == [2] or player.session.first.env.actions == [3]


def test_examples_are_shown_while_typing(player):
    press(player, "TAB")
    assert player.line.examples == ["plain", "a road at night", "snow"] and player.line.example == 0
    player.present()
    before = player.screen.pixels()
    press(player, "DOWN")
    player.present()
    assert player.line.example == 1 and player.line.text == "a road at night"
    assert not np.array_equal(before, player.screen.pixels())
    press(player, "UP", "UP")
    assert player.line.text == "snow"


def test_full_screen_and_back(player):
    press(player, "f")
    assert player.full and pygame.display.get_surface().get_flags() & pygame.FULLSCREEN
    player.present()
    press(player, "ESCAPE")
    assert player.running and not player.full and not pygame.display.get_surface().get_flags() & pygame.FULLSCREEN
    press(player, "ESCAPE")
    assert not player.running


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
        return player.pressed.names()

    assert post(pygame.JOYAXISMOTION, axis=0, value=-0.9) == ["left"]
    assert post(pygame.JOYHATMOTION, hat=0, value=(0, 1)) == ["left", "up"]
    player.step()
    assert post(pygame.JOYAXISMOTION, axis=0, value=0.0) == ["up"]
    assert post(pygame.JOYBUTTONDOWN, button=0) == ["up", "space"]
    post(pygame.JOYBUTTONUP, button=0)
    post(pygame.JOYBUTTONDOWN, button=7)
    assert player.paused and player.session.first.env.actions == [4]
    post(pygame.JOYDEVICEREMOVED)
    assert player.pressed.names() == []


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


@pytest.mark.parametrize("name", ["car-racing", "doom"])
def test_a_clip_steers_by_what_it_sees(name):
    """The driver's keys, on average, are what the beginner who steers would do; another game gets random ones."""
    session = Session([Side(make_env(name), name)], seed=3)
    turns, pressed = driver(session, np.random.default_rng(0)), []
    for _ in range(80):
        keys, prompt = next(turns)
        assert prompt is None
        session.step(keys)
        pressed.append(keys)
    assert len(set(pressed)) > 1 and any("up" in keys for keys in pressed)
    if name == "car-racing":
        actions = np.array([session.first.keymap.action(keys) for keys in pressed])
        assert 0 < actions[:, 1].mean() < 0.5, "the beginner gives a little gas"
    session.close()
