"""Make datasets from plain video and a log of actions.

A video is a file that ffmpeg's libraries read through PyAV (mp4, avi, gif, webm, ...), or a folder of PNGs in the order
of their names. Its log is beside it and has the same name: play.mp4 and play.csv, or run1/ and run1.jsonl.
`worldsim.data.actionlog` specifies the log. Time: `align` says which step a row is about; there is no other guess.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from worldsim.data.actionlog import ActionLog, read_actions, read_log
from worldsim.data.episodes import Dataset, Episode
from worldsim.data.foreign import FRAMES_PER_SECOND
from worldsim.data.frames import resize_frame
from worldsim.data.importing import Importer, check_free, ended, importing, make_card
from worldsim.errors import ConfigError, DataError, MissingDependency

LOGS = (".csv", ".jsonl", ".ndjson")


@dataclass(frozen=True, kw_only=True)
class VideoImport:
    """Which videos to import, and how."""

    videos: tuple[Path, ...]
    """Video files or folders of PNGs."""
    out: Path | None = None
    """The folder of the new dataset (default: data/ and the name of the first video)."""
    log: Path | None = None
    """The action log of a single video (default: beside each video, with the same name and .csv or .jsonl)."""
    align: Literal["to-next", "from-last"] = "to-next"
    """What a row is about: the step from its frame to the next one (what was held while the frame was shown), or the
    step from the last frame to its frame. The row without a step, the last or the first, only counts for its prompt."""
    frame_size: tuple[int, int] = (64, 64)
    """Height and width."""
    fps: float | None = None
    """Frames per second of game time (default: what the first video says, or 30)."""
    num_actions: int | None = None
    """How many choices a column `action` has (default: the largest number found, and 1)."""
    low: float = -1.0
    """The least value of action_0, action_1 ..."""
    high: float = 1.0
    prompt: str = ""
    """The words for every frame, where a log has no column `prompt`."""
    episode_steps: int = 500
    """Long videos are cut into episodes of so many steps, so that one in ten can be held out."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.align not in ("to-next", "from-last"):
            raise ConfigError(f"align is {self.align!r}; allowed: 'to-next', 'from-last'.")
        if (
            min(self.frame_size) < 1
            or self.episode_steps < 1
            or (self.num_actions or 1) < 1
            or not self.low < self.high
        ):
            raise ConfigError("frame_size, episode_steps and num_actions must be at least 1, and low less than high.")
        if self.fps is not None and not self.fps > 0:
            raise ConfigError(f"fps is {self.fps}; it must be more than 0.")
        if self.log is not None and len(self.videos) != 1:
            raise ConfigError(
                f"one log for {len(self.videos)} videos; leave --log out, and put each log beside its video."
            )


def import_video(config: VideoImport) -> Dataset:
    """Make a dataset of videos and their action logs.

    A row with `terminated` ends an episode, and the next frame begins one. Episodes share no frame.

    Raises:
        DataError: no such video or log, one that cannot be read, unknown columns, rows and frames that do not match, or
            something is at `out` already. Nothing is left behind.
        MissingDependency: a video, but PyAV is not installed.
    """
    if not config.videos:
        raise DataError("no videos were given.")
    out = config.out or Path("data") / config.videos[0].stem
    check_free(out)
    logs = [read_log(config.log or find_log(video), config.prompt) for video in config.videos]
    found = read_actions(logs, config.num_actions, config.low, config.high)
    first = Video(config.videos[0])
    card = make_card(
        name=out.name,
        frame_size=config.frame_size,
        fps=config.fps or first.fps or FRAMES_PER_SECOND,
        space=found.space,
        keys=found.keys,
        provenance={"videos": [video.name for video in config.videos], "align": config.align},
    )
    with importing(out, card) as importer:
        for path, log, actions in zip(config.videos, logs, found.of_log, strict=True):
            _import(Video(path), log, actions, config, importer)
    return Dataset(out)


def find_log(video: Path) -> Path:
    """Find the action log beside a video.

    Raises:
        DataError: there is no log, or more than one.
    """
    found = [path for suffix in LOGS if (path := video.with_suffix(suffix)).is_file() and path != video]
    if len(found) != 1:
        names = " or ".join(str(video.with_suffix(suffix)) for suffix in LOGS[:2])
        raise DataError(
            f"{video} has {len(found)} action logs beside it; there must be one, {names}, or give it with --log."
        )
    return found[0]


class Video:
    """Frames of a video file or of a folder of PNGs.

    Attributes:
        fps: frames per second, None if the video does not say.
    """

    def __init__(self, path: Path) -> None:
        """Read the properties of the video at `path`.

        Raises:
            DataError: nothing is, or it is no video.
            MissingDependency: it is a file, and PyAV is not installed.
        """
        self.path = path
        self.fps: float | None = None
        self._images: list[Path] = []
        if path.is_dir():
            self._images = sorted(path.glob("*.png"), key=_by_number)
            if not self._images:
                raise DataError(f"the folder {path} has no .png files.")
        elif path.is_file():
            with self._open() as container:
                rate = _film(container).average_rate
            self.fps = float(rate) if rate else None
        else:
            raise DataError(f"there is no video {path}.")

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield the frames, uint8 (H, W, 3), in order.

        Raises:
            DataError: a frame cannot be read.
        """
        return (frame for _, frame in self.timed())

    def timed(self) -> Iterator[tuple[float | None, np.ndarray]]:
        """Yield the time of each frame in seconds, None where the video does not say, and the frame; in order.

        As many frames as the file has, also if at uneven times.

        Raises:
            DataError: a frame cannot be read.
        """
        if self._images:
            for path in self._images:
                try:
                    with Image.open(path) as image:
                        yield None, np.asarray(image.convert("RGB"))
                except (OSError, UnidentifiedImageError) as error:
                    raise DataError(f"cannot read the frame {path}: {error}") from error
            return
        with self._open() as container:
            for frame in container.decode(_film(container)):
                turned = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                yield frame.time, np.ascontiguousarray(turned)

    @contextlib.contextmanager
    def _open(self) -> Iterator[Any]:
        """Open the file as a container with a video; what is wrong with it is a DataError, also later."""
        try:
            import av
            import av.error
        except ImportError as error:
            raise MissingDependency("av", "reading a video", "pip install 'worldsim-engine[video]'") from error
        try:
            # An absolute path: ffmpeg would take "12:30.mp4" for an address.
            with av.open(str(self.path.absolute())) as container:
                if _film(container) is None:
                    raise DataError(
                        f"cannot read the video {self.path}: it has no video stream, only sound or a picture on its "
                        "cover. Give the file that has the frames."
                    )
                yield container
        except DataError:
            raise
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise DataError(f"cannot read the video {self.path}: {_reason(error)}") from error


def _film(container: Any) -> Any:
    """Get the first video stream that is no picture on the cover; None if there is none."""
    from av.stream import Disposition

    films = (part for part in container.streams.video if not part.disposition & Disposition.attached_pic)
    return next(films, None)


def _import(video: Video, log: ActionLog, actions: np.ndarray, config: VideoImport, importer: Importer) -> None:
    """Cut one video into episodes; frames are dropped as soon as they are written."""
    ends = _ends(log, config)
    frames: list[np.ndarray] = []
    start = seen = 0
    for frame in video:
        if seen < len(log):
            frames.append(resize_frame(frame, config.frame_size))
            if ends[seen]:
                if len(frames) > 1:
                    importer.add(_episode(frames, start, log, actions, config))
                frames, start = [], seen + 1
        seen += 1
    if seen != len(log):
        raise DataError(
            f"the video {video.path} has {seen} frames, but {log.path} has {len(log)} rows; every frame needs one row. "
            "Screen recorders often drop or repeat frames: log the actions with the frames that were written."
        )


def _ends(log: ActionLog, config: VideoImport) -> np.ndarray:
    """Say which frames are the last of an episode, bool (N,)."""
    ends = np.zeros(len(log), bool)
    length = 0
    for index in range(len(log)):
        length += 1
        over = log.terminated[index] if config.align == "from-last" else index > 0 and log.terminated[index - 1]
        ends[index] = (over and length > 1) or length > config.episode_steps or index == len(log) - 1
        length = 0 if ends[index] else length
    return ends


def _episode(frames: list[np.ndarray], start: int, log: ActionLog, actions: np.ndarray, config: VideoImport) -> Episode:
    steps = len(frames) - 1
    first = start + (config.align == "from-last")  # the row of the first step
    rows = slice(first, first + steps)
    texts = log.prompts[start : start + len(frames)]
    distinct = list(dict.fromkeys(texts))
    return Episode(
        frames=np.stack(frames),
        actions=actions[rows],
        rewards=log.rewards[rows],
        **ended(steps, bool(log.terminated[rows][-1])),
        prompt_index=np.asarray([distinct.index(text) for text in texts], np.int32),
        prompts=[{"text": text} for text in distinct],
        meta={"log": log.path.name, "first_frame": start},
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


def _by_number(path: Path) -> list[tuple[int, str]]:
    """Make a sort key that puts frame2 before frame10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.stem)]
