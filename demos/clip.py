"""Video files: what a window shows, or a whole clip played without one."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np

from worldsim.demos.screen import Screen
from worldsim.demos.session import Session
from worldsim.demos.view import view_of
from worldsim.envs.keymap import KeyMap
from worldsim.errors import ConfigError, MissingDependency

HOLD = (4, 16)  # shortest and longest time that the seeded driver holds keys, in steps
TAP = (1, 2)  # the same of a turn


class Recorder:
    """Writes an mp4 file, frame by frame.

    Args:
        path: the file; its folder is made.
        size: (height, width) of the frames, both even.
        fps: frames per second.

    Raises:
        MissingDependency: ffmpeg is not there.
        ConfigError: the file cannot be written.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float) -> None:
        """Start ffmpeg."""
        try:
            import imageio_ffmpeg
        except ImportError as error:
            raise MissingDependency("imageio-ffmpeg", "Recording video", "pip install 'imageio[ffmpeg]'") from error
        self.path, self.size, self.fps, self.frames = path, size, fps, 0
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.open("wb").close()  # ffmpeg would only say so when the file is closed
        except OSError as error:
            raise ConfigError(f"cannot write the video {path}: {error}. Choose another --out.") from error
        self._writer: Generator[None, bytes | None, None] = imageio_ffmpeg.write_frames(
            str(path),
            (size[1], size[0]),
            fps=fps,  # pyright: ignore[reportArgumentType]  -- says int, writes two decimals
            codec="libx264",
            quality=8,
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=[
                "-preset",
                "veryfast",
                "-threads",
                "1",
                "-movflags",
                "+faststart",
            ],  # the world needs the CPU
        )
        self._writer.send(None)

    def add(self, frame: np.ndarray) -> None:
        """Append a frame, uint8 (H, W, 3). Raises ConfigError when the file cannot be written any more."""
        try:
            self._writer.send(np.ascontiguousarray(frame).tobytes())
        except (OSError, StopIteration) as error:
            reason = (str(error).splitlines() or ["ffmpeg has stopped"])[0]
            self.path.unlink(missing_ok=True)  # half a video plays nowhere
            raise ConfigError(f"the video {self.path} cannot be written: {reason}. Is the disk full?") from error
        self.frames += 1

    def close(self) -> str:
        """Finish the file; return what it is in words. One without frames would be no video and is removed."""
        self._writer.close()
        if not self.path.exists():
            return f"nothing: {self.path} could not be written"
        if not self.frames:
            self.path.unlink()
            return f"nothing: {self.path} has no frames"
        height, width = self.size
        return (
            f"{self.path}: {self.frames} frames of {width}x{height} at {self.fps:g} fps, "
            f"{self.path.stat().st_size / 1024:.0f} KB"
        )


Turn = tuple[tuple[str, ...], str | None]
"""The keys pressed for one step, and the prompt to set before it."""


def read_script(script: str, keymap: KeyMap) -> list[Turn]:
    """Read turns from text such as `up*10 left+up*5 "a road at night" none*3`: keys and steps; quoted, a prompt.

    Raises:
        ConfigError: a word that is not of this form, or a key the game does not have.
    """
    turns: list[Turn] = []
    prompt: str | None = None
    for quoted, word in re.findall(r'"([^"]*)"|(\S+)', script):
        if not word:
            prompt = quoted
            continue
        match = re.fullmatch(r"([^*]+?)(?:\*([1-9]\d*))?", word)
        keys = tuple(match[1].lower().split("+")) if match else ()
        keys = () if keys in (("none",), ("-",)) else keys
        unknown = [key for key in keys if not keymap.knows(key)]
        if match is None or unknown:
            raise ConfigError(
                f"cannot play the keys {word!r}; allowed: names joined by +, then *STEPS, such as up*10. "
                f'Names here: {", ".join(keymap.names)}, none; and "words in quotes" set the prompt.'
            )
        for _ in range(int(match[2] or 1)):
            turns.append((keys, prompt))
            prompt = None
    if prompt is not None or not turns:
        raise ConfigError(f"the keys {script!r} must end with at least one step, such as up*10.")
    return turns


def random_turns(keymap: KeyMap, rng: np.random.Generator) -> Iterator[Turn]:
    """Sample the keys of a driver that mostly goes ahead and taps left and right in turns."""
    combos = [tuple(sorted(combo)) for combo in keymap.entries]
    likes = np.array([3.0 if "up" in combo else 0.4 if "down" in combo or not combo else 1.0 for combo in combos])
    last = "right"
    while True:
        combo = combos[rng.choice(len(combos), p=likes / likes.sum())]
        side = {"left", "right"} & set(combo)
        if side == {last}:  # not twice to the same side: a car would leave its road within seconds
            continue
        last = next(iter(side), last)
        for _ in range(int(rng.integers(*(TAP if side else HOLD), endpoint=True))):
            yield combo, None


def write_clip(
    session: Session, screen: Screen, path: Path, *, fps: float, steps: int, turns: Iterator[Turn], title: str = ""
) -> str:
    """Play `steps` steps as fast as they go and write them to an mp4 file; return what was made, in words.

    Every frame of the file is one step; an episode that ends is followed by another.

    Raises:
        PromptError, MissingDependency: a prompt of the turns cannot be taken.
        ConfigError: the file cannot be written.
    """
    height, width = screen.pixels().shape[:2]
    recorder = Recorder(path, (height, width), fps)
    spent = slowest = 0.0
    try:
        for _ in range(steps):
            pressed, prompt = next(turns)
            if prompt is not None:
                session.set_prompt(prompt)
            if session.over:
                session.reset()
            began = time.perf_counter()
            session.step(pressed)
            took = time.perf_counter() - began
            spent, slowest = spent + took, max(slowest, took)
            screen.draw(view_of(session, pressed, footer=title))
            recorder.add(screen.pixels())
    finally:
        made = recorder.close()
    return (
        f"{made}; the world made {steps / max(spent, 1e-9):.1f} steps a second "
        f"({1000 * spent / steps:.1f} ms a step, the slowest {1000 * slowest:.1f} ms)"
    )
