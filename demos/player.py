"""Play a world or any game in a window: `worldsim play`, or `play(PlayConfig(...))`.

Keys: see COMMANDS, or H in the window. Without a screen the same call writes a clip.
"""

from __future__ import annotations

import itertools
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from tyro.conf import Positional, arg

from worldsim.demos.session import Session, Side, View
from worldsim.demos.worlds import make_env, short_name
from worldsim.errors import ConfigError

if TYPE_CHECKING:
    from worldsim.demos.screen import Screen  # brings pygame, which `play` keeps from greeting

CLIP_STEPS = 250  # of a clip, when nothing is said


@dataclass(frozen=True, kw_only=True)
class PlayConfig:
    """What to play, and how."""

    world: Annotated[str, Positional, arg(metavar="WORLD")] = "car-racing"
    """A shipped world (car-racing, doom and so on), a game it was recorded from (real-car-racing, real-doom), a
    world folder, a hub id, or any Gymnasium id."""
    beside: str | None = None
    """Another one, shown beside it and stepped with the same keys, such as real-car-racing."""
    prompt: str | None = None
    """What to begin with (default: the world's own)."""
    seed: int | None = None
    """Of the first episode; the same seed and keys give the same frames."""
    fps: float | None = None
    """Frames per second (default: the world's own)."""
    scale: int = 0
    """Enlarge pictures by a whole number; 0 chooses one that fits."""
    smooth: bool = False
    """Blur the pixels when enlarging."""
    view: View = "frame"
    """Show the observation of an agent, if it is an image, or the render of the environment."""
    out: Path = Path("play")
    """Folder for screenshots, videos and episodes, or the mp4 file of a clip."""
    frame_size: tuple[int, int] | None = None
    """Height and width of the frames in saved episodes (default: as they are, large ones 64 64)."""
    headless: bool = False
    """Write a clip and open no window."""
    steps: int = 0
    """Stop after so many steps; 0 is never, and as long as --keys or 250 in a clip."""
    keys: str | None = None
    """What a clip plays, such as 'up*20 left+up*5 "a road at night" none*3'; it repeats. Default: a seeded driver that
    steers by what it sees in a world whose game is known."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("scale", "steps", "seed"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} is {value}; it must be at least 0.")
        if self.fps is not None and not 0 < self.fps <= 1000:
            raise ConfigError(f"fps is {self.fps}; allowed: above 0, up to 1000.")
        if self.view not in ("frame", "render"):
            raise ConfigError(f"view is {self.view!r}; allowed: 'frame', 'render'.")
        if self.frame_size is not None and (len(self.frame_size) != 2 or min(self.frame_size) < 1):
            raise ConfigError(f"frame_size is {self.frame_size}; it must be a height and a width of at least 1.")

    @property
    def folder(self) -> Path:
        """The folder of all files that are saved from the window."""
        return self.out.parent if self.out.suffix == ".mp4" else self.out

    @property
    def clip(self) -> Path:
        """The file of a clip."""
        return self.out if self.out.suffix == ".mp4" else self.out / f"{short_name(self.world)}.mp4"


def play(config: PlayConfig) -> Path | None:
    """Play in a window, or write a clip where no window can open; print a summary. Returns the file of the clip.

    Raises:
        WorldNotFound: no such world or environment.
        WorldError: it is there, but cannot be made.
        PromptError: the prompt cannot be taken.
        ConfigError: the environment cannot be shown or played, or the clip cannot be written.
    """
    began = time.perf_counter()
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    if not config.headless:
        if (reason := open_window_or_say_why(config.world)) is None:
            return _play_in_window(config, began)
        print(
            f"There is no screen here ({reason}), so this writes a clip to {config.clip} instead of opening a window."
        )
        print("--headless asks for a clip, --steps for its length, --out for its place.", flush=True)
    return _write_clip(config)


def open_window_or_say_why(title: str) -> str | None:
    """Open a window that says that `title` is loading; return why if it cannot open."""
    import pygame

    from worldsim.demos.screen import open_window

    asked = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))
    if sys.platform.startswith("linux") and not asked:
        return "neither DISPLAY nor WAYLAND_DISPLAY is set"
    try:
        open_window(title)
    except pygame.error as error:
        return str(error)
    if not os.environ.get("SDL_VIDEODRIVER") and (driver := pygame.display.get_driver()) in ("offscreen", "dummy"):
        pygame.display.quit()
        return f"only the driver {driver!r} works"
    return None


def make_session(config: PlayConfig) -> Session:
    """Make and reset the environments of `config`; see `play` for what it raises."""
    names = [config.world] if config.beside is None else [config.world, config.beside]
    sides: list[Side] = []
    try:
        for name in names:
            sides.append(Side(make_env(name), name, config.view))
        return Session(sides, prompt=config.prompt, seed=config.seed, frame_size=config.frame_size)
    except BaseException:
        for side in sides:
            side.env.close()
        raise


def _screen(config: PlayConfig, session: Session) -> Screen:
    from worldsim.demos.screen import Screen

    return Screen([side.picture.shape[:2] for side in session.sides], scale=config.scale, smooth=config.smooth)


def _play_in_window(config: PlayConfig, began: float) -> None:
    import pygame

    from worldsim.demos.window import Player

    session = None
    try:
        session = make_session(config)
        fps = config.fps or session.fps
        player = Player(session, _screen(config, session), folder=config.folder, name=short_name(config.world), fps=fps)
        first = time.perf_counter() - began
        player.run(config.steps)
        print(
            f"{player.total_steps} steps at {player.reached_fps:.1f} of {fps:g} frames a second, "
            f"{session.step_ms:.1f} ms a step; the first frame came after {first:.1f} s"
        )
    finally:
        if session is not None:
            session.close()
        pygame.quit()


def _write_clip(config: PlayConfig) -> Path:
    from worldsim.demos.clip import read_script, write_clip
    from worldsim.demos.driver import driver

    session = make_session(config)
    try:
        keymap = session.first.keymap
        script = None if config.keys is None else read_script(config.keys, keymap)
        rng = np.random.default_rng([session.seed, 1])  # not the stream of the environment
        made = write_clip(
            session,
            _screen(config, session),
            config.clip,
            fps=config.fps or session.fps,
            steps=config.steps or (len(script) if script else CLIP_STEPS),
            turns=itertools.cycle(script) if script else driver(session, rng),
            title=f"worldsim play {config.world}" + (f" --beside {config.beside}" if config.beside else ""),
        )
    finally:
        session.close()
    print(made)
    return config.clip
