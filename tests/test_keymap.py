"""Keys, gamepads and the prompt line."""

import random

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

pygame = pytest.importorskip("pygame")
imageio = pytest.importorskip("imageio.v3")

from toy import KEYS, Toy  # noqa: E402

from worldsim.demos.controls import PressedKeys, axis_key, button_key, hat_keys  # noqa: E402
from worldsim.demos.line import LONGEST, PromptLine  # noqa: E402
from worldsim.envs.keymap import KeyMap, derive_keys, keymap_for, read_keys, rest_action  # noqa: E402
from worldsim.errors import ConfigError  # noqa: E402

pytestmark = pytest.mark.usefixtures("dummy_screen")


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
    held = PressedKeys()
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


def test_a_dict_space_has_keys_for_its_parts() -> None:
    """Also of spaces within it; the action of no key rests everywhere, and every action is in the space."""
    inner = spaces.Dict({"jump": spaces.Discrete(2), "look": spaces.Box(-1, 1, (2,), np.float32)})
    space = spaces.Dict({"body": inner, "tools": spaces.MultiBinary(3)})
    keys = derive_keys(space)
    assert all(space.contains(action) for action in keys.values())
    rest = keys[frozenset()]
    assert rest["body"]["jump"] == 0 and not rest["tools"].any() and not rest["body"]["look"].any()
    left, right = keys[frozenset({"left"})], keys[frozenset({"right"})]
    assert left["body"]["look"][0] == -1 and right["body"]["look"][0] == 1
    assert any(action["body"]["jump"] == 1 for action in keys.values())
    again = read_keys(KeyMap(keys).named(), space)
    assert again.keys() == keys.keys() and all(space.contains(action) for action in again.values())
