"""What is held down on a keyboard and on gamepads, as names of keys. No pygame here."""

from __future__ import annotations

from collections.abc import Hashable

from worldsim.envs.keymap import ARROWS, KeyMap

PUSHED = 0.5  # how far a stick or trigger must go to count
AXES = {0: ("left", "right"), 1: ("up", "down"), 4: ("", "down"), 5: ("", "up")}  # left stick, then triggers
PAD_COMMANDS = {6: "reset", 7: "pause"}  # back and start, as most pads number them

COMMANDS = (
    (("tab", "return"), "type_prompt", "type a prompt"),
    (("r", "f2"), "reset", "new episode"),
    (("p", "space", "f4"), "pause", "pause, go on"),
    (("n", "f3"), "single_step", "one step while paused"),
    (("backspace", "f6"), "rewind", "hold to rewind, up to 30 s"),
    (("c", "f12"), "screenshot", "screenshot (png)"),
    (("v", "f9"), "record", "start, stop video (mp4)"),
    (("e", "f5"), "save", "save as training episode"),
    (("h", "f1"), "help", "this help"),
    (("escape",), "quit", "quit"),
)
"""(keys, method of Player, what it does). A key that the game uses itself is the game's; each has another."""

FOOTER = "Tab prompt   R reset   P pause   C picture   V video   E episode   H help   Esc quit"
TYPING = "Enter apply   Esc cancel   Up, Down examples"


class Held:
    """Keys that are down, and those that were down for a moment between two steps.

    A source is what holds a key: a key of the keyboard, an axis of a pad. It holds one at a time.
    """

    def __init__(self) -> None:
        """Nothing is held."""
        self._down: dict[Hashable, str] = {}
        self._tapped: dict[str, None] = {}

    def hold(self, source: Hashable, name: str) -> bool:
        """Let `source` hold the key `name`, or none if that is empty; return whether this changed anything."""
        if self._down.get(source, "") == name:
            return False
        self._down.pop(source, None)
        if name:
            self._down[source] = name
            self._tapped.pop(name, None)
            self._tapped[name] = None
        return True

    def holds(self, source: Hashable) -> bool:
        """Whether `source` holds a key."""
        return source in self._down

    def release(self) -> None:
        """Let go of everything."""
        self._down.clear()
        self._tapped.clear()

    def names(self) -> list[str]:
        """Keys in the order they were pressed, with those that were only tapped since the last `stepped`."""
        down = list(self._down.values())
        return [name for name in self._tapped if name not in down] + down

    def stepped(self) -> None:
        """A step has seen the taps: forget them."""
        self._tapped.clear()


def axis_key(axis: int, value: float) -> str:
    """The key that an axis of a gamepad at `value` (-1..1) stands for, or ""."""
    low, high = AXES.get(axis, ("", ""))
    return high if value > PUSHED else low if value < -PUSHED else ""


def hat_keys(value: tuple[int, int]) -> tuple[str, str]:
    """The keys, or "", that the directions of a gamepad's cross stand for."""
    across, along = value
    return ("left", "", "right")[across + 1], ("down", "", "up")[along + 1]


def button_key(button: int, keymap: KeyMap) -> str:
    """The key that a button of a gamepad stands for, or "": the game's keys besides arrows, then up and down."""
    names = [name for name in keymap.names if name not in ARROWS and not name.isdigit()][:4]
    buttons = names + ["up", "down"][len(names) :]
    return buttons[button] if button < len(buttons) else ""


def help_rows(keymap: KeyMap) -> list[tuple[str, str]]:
    """What each key does, as (keys, words)."""
    names = {"escape": "Esc", "return": "Enter"}
    rows = [("  ".join(keymap.names[:8]), "play (WASD are arrows, too)")]
    return rows + [("  ".join(names.get(key, key.capitalize()) for key in keys), words) for keys, _, words in COMMANDS]
