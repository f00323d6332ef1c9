"""The keys that are pressed on a keyboard and on gamepads, by name. No pygame here."""

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
    (("f", "f11"), "full_screen", "full screen, window"),
    (("h", "f1"), "help", "this help"),
    (("escape",), "quit", "quit"),
)
"""(keys, method of Player, what it does). A key that the game uses itself is the game's; each has another."""

FOOTER = "Tab prompt   R reset   P pause   C picture   V video   E episode   H help   Esc quit"
TYPING = "Enter apply   Esc cancel   Up, Down choose an example   The game waits"


class PressedKeys:
    """Keys that are down, and keys that were tapped between two steps.

    A source is what holds a key: a key of the keyboard, an axis of a pad. It holds one at a time.
    """

    def __init__(self) -> None:
        """Begin without pressed keys."""
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
        """Say whether `source` holds a key."""
        return source in self._down

    def release(self) -> None:
        """Release all keys."""
        self._down.clear()
        self._tapped.clear()

    def names(self) -> list[str]:
        """List keys in the order they were pressed, tapped ones since the last `stepped` among them."""
        down = list(self._down.values())
        return [name for name in self._tapped if name not in down] + down

    def stepped(self) -> None:
        """Forget the taps, after a step has used them."""
        self._tapped.clear()


def axis_key(axis: int, value: float) -> str:
    """Get the key that an axis of a gamepad at `value` (-1..1) stands for, or ""."""
    low, high = AXES.get(axis, ("", ""))
    return high if value > PUSHED else low if value < -PUSHED else ""


def hat_keys(value: tuple[int, int]) -> tuple[str, str]:
    """Get the keys, or "", that the directions of a gamepad's cross stand for."""
    across, along = value
    return ("left", "", "right")[across + 1], ("down", "", "up")[along + 1]


def button_key(button: int, keymap: KeyMap) -> str:
    """Get the key that a button of a gamepad stands for, or "": the game's keys besides arrows, then up and down."""
    names = [name for name in keymap.names if name not in ARROWS and not name.isdigit()][:4]
    buttons = names + ["up", "down"][len(names) :]
    return buttons[button] if button < len(buttons) else ""


def help_rows(keymap: KeyMap) -> list[tuple[str, str]]:
    """List what each key does, as (keys, words)."""
    names = {"escape": "Esc", "return": "Enter"}
    rows = [("  ".join(keymap.names[:8]), "play (WASD are arrows, too)")]
    return rows + [("  ".join(names.get(key, key.capitalize()) for key in keys), words) for keys, _, words in COMMANDS]
