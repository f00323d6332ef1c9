"""Files made while playing: screenshots, videos, training episodes."""

from __future__ import annotations

from pathlib import Path

import pygame

from worldsim.demos.clip import Recorder
from worldsim.demos.screen import Screen
from worldsim.demos.session import Session


class Saver:
    """Makes numbered files in a folder.

    Args:
        session: that is played.
        screen: that shows it.
        folder: made when the first file is.
        name: what file names begin with; also the folder of the episodes.
        fps: of the videos.
    """

    def __init__(self, session: Session, screen: Screen, folder: Path, name: str, fps: float) -> None:
        """Begin without files."""
        self.session, self.screen, self.folder, self.name, self.fps = session, screen, folder, name, fps
        self._recorder: Recorder | None = None

    @property
    def recorded(self) -> float | None:
        """The length of the video that is being recorded, in seconds; None if there is none."""
        return None if self._recorder is None else self._recorder.frames / self.fps

    def picture(self) -> str:
        """Write the canvas to a png file; return a line that says so."""
        path = self._next(".png")
        pygame.image.save(self.screen.canvas, path)
        return f"Saved {path}"

    def episode(self) -> str:
        """Write the steps since the last reset as an episode; see `Session.save`."""
        path = self.session.save(self.folder / self.name)
        return f"Saved {path}: {len(self.session.history)} steps"

    def start_video(self) -> None:
        """Begin a video; see `Recorder`."""
        height, width = self.screen.pixels().shape[:2]
        self._recorder = Recorder(self._next(".mp4"), (height, width), self.fps)

    def add_frame(self) -> None:
        """Append the canvas to the video. Raises ConfigError when it cannot be written; it is then over."""
        if self._recorder is not None:
            try:
                self._recorder.add(self.screen.pixels())
            except BaseException:
                self._recorder = None
                raise

    def stop_video(self) -> str:
        """Finish the video, if there is one; return a line that says so."""
        recorder, self._recorder = self._recorder, None
        return f"Saved {recorder.close()}" if recorder else ""

    def _next(self, suffix: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        number = 1
        while (path := self.folder / f"{self.name}-{number:03d}{suffix}").exists():
            number += 1
        return path
