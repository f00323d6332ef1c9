"""The first minute in the player's window: it waits for keys and words, shows examples, and a clip drives well."""

import time

import numpy as np
import pytest

pygame = pytest.importorskip("pygame")
pytest.importorskip("imageio.v3")

from toy import World, make_player, press, type_text  # noqa: E402

import worldsim.envs  # noqa: E402, F401 -- registers the ids
from worldsim.demos.driver import driver  # noqa: E402
from worldsim.demos.session import Session, Side  # noqa: E402
from worldsim.demos.worlds import make_env  # noqa: E402

pytestmark = pytest.mark.usefixtures("dummy_screen")


@pytest.fixture
def player(tmp_path):
    return make_player(tmp_path, World())


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
