"""The line that a prompt is typed into: text, a cursor, and examples to leaf through. No pygame here."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST = 200  # characters


class PromptLine:
    """A line of text that is edited while `open`.

    Attributes:
        text, cursor: what is typed, and before which character the next one goes.
        open: whether keys go here.
        selected: whether all of the text is selected.
        examples, example: what Up and Down choose from, the text that was there first, and which is chosen.
    """

    def __init__(self) -> None:
        """Make a closed, empty line."""
        self.text, self.cursor, self.open, self.selected = "", 0, False, False
        self.examples: list[str] = []
        self.example = 0

    def begin(self, text: str, examples: Sequence[str] = ()) -> None:
        """Open the line with `text`, all of it selected: the first letter typed replaces it."""
        self.open, self.selected = True, True
        self.text, self.cursor = text, len(text)
        self.examples = [text, *(example for example in examples if example != text)]
        self.example = 0

    def close(self) -> str:
        """Close the line and return what was typed, without space around it."""
        self.open = False
        return self.text.strip()

    def type(self, text: str) -> None:
        """Insert `text` at the cursor."""
        if self.selected:
            self.text, self.cursor = "", 0
        text = "".join(letter if letter.isprintable() else " " for letter in text)
        text = text[: LONGEST - len(self.text)]
        self.text = self.text[: self.cursor] + text + self.text[self.cursor :]
        self.cursor += len(text)
        self.selected = False

    def key(self, name: str) -> None:
        """Handle an editing key: left, right, home, end, backspace, delete; up and down show the examples."""
        before, after = self.text[: self.cursor], self.text[self.cursor :]
        if name in ("up", "down"):
            self.example = (self.example + (1 if name == "down" else -1)) % len(self.examples)
            self.text = self.examples[self.example]
            self.cursor = len(self.text)
            self.selected = True
            return
        if self.selected and name in ("backspace", "delete"):
            before = after = ""
        elif name == "backspace":
            before = before[:-1]
        elif name == "delete":
            after = after[1:]
        self.text, self.cursor = before + after, len(before)
        moves = {"left": self.cursor - 1, "right": self.cursor + 1, "home": 0, "end": len(self.text)}
        self.cursor = min(max(moves.get(name, self.cursor), 0), len(self.text))
        self.selected = self.selected and name not in (*moves, "backspace", "delete")
