"""The view of a session: plain data between playing and drawing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from worldsim.demos.line import PromptLine
from worldsim.demos.session import Session


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A picture, uint8 (H, W, 3), with words above it; it is faded after the end of its episode."""

    picture: np.ndarray
    caption: str
    detail: str = ""
    faded: bool = False


@dataclass(frozen=True, kw_only=True)
class View:
    """All that is drawn and recorded; an `Overlay` is drawn over it and not recorded."""

    panels: Sequence[Panel]
    status: Sequence[str]
    keys: Sequence[str]
    pressed: Iterable[str]
    prompt: str | None  # None: no prompt is taken
    cursor: int | None = None  # before which letter the next one goes, while the line is open
    selected: bool = False  # the next letter replaces the whole line
    footer: str = ""


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """Messages over a view; an empty one is not drawn."""

    message: str = ""
    bad: bool = False
    recording: str = ""
    paused: str = ""
    rewinding: str = ""
    help: Sequence[tuple[str, str]] = ()
    choices: Sequence[str] = ()  # prompts, while one is typed
    chosen: int = 0


def view_of(
    session: Session,
    pressed: Sequence[str],
    *,
    footer: str = "",
    fps: float | None = None,
    line: PromptLine | None = None,
) -> View:
    """Make the view of a session.

    Args:
        session: to be shown.
        pressed: keys, in the order they were pressed.
        footer: the last row.
        fps: measured frames per second; None for a clip.
        line: the prompt line; a closed one is not shown.
    """
    first, two = session.first, len(session.sides) > 1
    panels = [
        Panel(
            picture=side.picture,
            caption=side.name + ("  (over)" if side.over else ""),
            detail=f"reward {side.total:.1f}   {side.step_ms:.1f} ms" if two else "",
            faded=side.over,
        )
        for side in session.sides
    ]
    status = [] if fps is None else [f"{fps:.1f} fps"]
    status += [f"{session.step_ms:.1f} ms/step", f"frame {session.steps}"]
    status += [] if two else [f"reward {first.total:.1f}"]
    prompt = session.prompt or first.prompt
    typed = line if line is not None and line.open else None
    return View(
        panels=panels,
        status=status,
        keys=first.keymap.names,
        pressed=first.keymap.choose(pressed),
        prompt=typed.text if typed else prompt if prompt or session.takes_prompt else None,
        cursor=typed.cursor if typed else None,
        selected=typed is not None and typed.selected,
        footer=footer,
    )
