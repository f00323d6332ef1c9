"""Import datasets of LeRobot, version 3: many episodes share a file, and tables say where each begins.

    meta/info.json                               features, frames per second, version
    meta/tasks.parquet                           the words of each task
    meta/episodes/chunk-000/file-000.parquet     of each episode: its length, its rows, and when it begins in its videos
    data/chunk-000/file-000.parquet              of each frame: action, reward, task
    videos/CAMERA/chunk-000/file-000.mp4         its picture, unless it lies in the table

An action leads from its frame to the next one, so that the last of an episode leads nowhere and is left out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from PIL import Image, UnidentifiedImageError

from worldsim.data.episodes import Dataset, Episode
from worldsim.data.frames import resize_frame
from worldsim.data.importing import Importer, check_free, ended, importing, make_card
from worldsim.data.video import Video
from worldsim.errors import ConfigError, DataError, MissingDependency, did_you_mean, printable
from worldsim.untrusted import Untrusted, inside, read_json

VERSION = "v3"
MOST_CHOICES = 1024  # whole numbers of one action that are taken for choices


@dataclass(frozen=True, kw_only=True)
class LeRobotImport:
    """Which LeRobot dataset to read, and where to."""

    source: Path
    """The folder of the dataset, with meta/info.json in it."""
    out: Path | None = None
    """The folder of the new dataset (default: data/ and the name of the source)."""
    camera: str | None = None
    """The feature that has the frames, such as observation.images.top (default: the only one with images)."""
    frame_size: tuple[int, int] = (64, 64)
    """Height and width."""
    prompt: str | None = None
    """The words for every frame (default: the task)."""


@dataclass(frozen=True)
class _Span:
    """One episode: its rows in a table, and where it begins in a video."""

    number: int
    length: int
    table: str
    first: int  # row of the whole dataset
    video: str
    begins: float  # seconds


def import_lerobot(config: LeRobotImport) -> Dataset:
    """Make a dataset of a LeRobot dataset; one episode in ten is held out.

    Raises:
        DataError: no such dataset, another version of the format, files that are damaged or do not fit together, or
            something is at `out` already. Nothing is left behind.
        ConfigError: no such camera, or actions that cannot be recorded.
        MissingDependency: pyarrow or PyAV is not installed.
    """
    try:
        import pyarrow as pa
    except ImportError as error:
        raise MissingDependency(
            "pyarrow", "reading a LeRobot dataset", "pip install 'worldsim-engine[exchange]'"
        ) from error
    source, out = config.source, config.out or Path("data") / config.source.absolute().name
    check_free(out)
    try:
        info = _info(source)
        camera = _camera(info["features"], config.camera)
        fps = float(info["fps"])
        is_video = info["features"][camera]["dtype"] == "video"
        spans = _spans(source, camera if is_video else None)
        tasks = _tasks(source)
        space = _space(source, spans)
        provenance = {
            "lerobot": source.absolute().name,
            "camera": camera,
            "robot": printable(str(info.get("robot_type"))),
        }
        card = make_card(
            name=out.name, frame_size=config.frame_size, fps=fps, space=space, keys={}, provenance=provenance
        )
        with importing(out, card) as importer:
            for span, frames in _pictures(source, spans, camera, is_video, fps, config.frame_size):
                _add(source, span, frames, space, tasks, config.prompt, importer)
    except (AttributeError, IndexError, KeyError, TypeError, OverflowError, ValueError, pa.ArrowException) as error:
        if isinstance(error, ConfigError | DataError):
            raise
        reason = f"there is no {error}" if isinstance(error, KeyError) else f"{type(error).__name__}: {error}"
        raise DataError(f"the LeRobot dataset {source} is damaged or incomplete: {reason!s:.300}.") from error
    return Dataset(out)


def _info(source: Path) -> dict[str, Any]:
    path = source / "meta" / "info.json"
    if not path.is_file():
        raise DataError(f"there is no LeRobot dataset at {source}: meta/info.json is missing.")
    try:
        info = read_json(path)
    except Untrusted as error:
        raise DataError(f"{path} cannot be read: {error}.") from error
    version = str(info.get("codebase_version"))
    if not version.startswith(VERSION):
        raise DataError(
            f"{source} is of LeRobot's format {version!r:.20}; allowed: v3.0. Convert it with: python -m "
            "lerobot.datasets.v30.convert_dataset_v21_to_v30"
        )
    return info


def _camera(features: Mapping[str, Any], asked: str | None) -> str:
    cameras = [name for name, about in features.items() if about.get("dtype") in ("video", "image")]
    if asked is not None and asked not in cameras:
        raise ConfigError(f"the feature {asked!r} has no images.{did_you_mean(asked, cameras)}")
    if asked is None and len(cameras) != 1:
        raise ConfigError(f"{len(cameras)} features have images: {sorted(cameras)}; say which one with --camera.")
    return asked or cameras[0]


def _spans(source: Path, camera: str | None) -> list[_Span]:
    """Read where every episode lies, in their order."""
    spans = []
    for path in sorted((source / "meta" / "episodes").glob("*/*.parquet")):
        for row in _rows(path, ["episode_index", "length", "dataset_from_index", "data/", f"videos/{camera}/"]):
            video, begins = "", 0.0
            if camera is not None:
                video = _place("videos", row, f"videos/{camera}/", camera) + ".mp4"
                begins = float(row[f"videos/{camera}/from_timestamp"])
            table = _place("data", row, "data/") + ".parquet"
            spans.append(
                _Span(
                    int(row["episode_index"]), int(row["length"]), table, int(row["dataset_from_index"]), video, begins
                )
            )
    if not spans:
        raise DataError(f"the LeRobot dataset {source} has no episodes in meta/episodes.")
    return sorted(spans, key=lambda span: span.number)


def _place(top: str, row: Mapping[str, Any], prefix: str, camera: str | None = None) -> str:
    """Path of a file without its ending, from numbers: what a file says of paths is not followed."""
    chunk, file = int(row[f"{prefix}chunk_index"]), int(row[f"{prefix}file_index"])
    folder = Path(top) if camera is None else inside(Path(top), camera)
    return str(folder / f"chunk-{chunk:03d}" / f"file-{file:03d}")


def _rows(path: Path, wanted: list[str]) -> list[dict[str, Any]]:
    """Read rows of a table, the columns that begin with one of the words."""
    import pyarrow.parquet as pq

    names = [name for name in pq.read_schema(path).names if any(name.startswith(word) for word in wanted)]
    return pq.read_table(path, columns=names).to_pylist()


def _tasks(source: Path) -> dict[int, str]:
    path = source / "meta" / "tasks.parquet"
    if not path.is_file():
        return {}
    rows = _rows(path, [""])
    texts = [name for name in (rows[0] if rows else {}) if name != "task_index"]  # the words are the table's index
    return {int(row["task_index"]): str(row[texts[0]]) for row in rows} if texts else {}


def _numbers(source: Path, span: _Span) -> dict[str, np.ndarray]:
    """Read what the table says of an episode's frames, but pictures."""
    import pyarrow.parquet as pq

    path = source / span.table
    table = pq.read_table(path, filters=[("episode_index", "==", span.number)], columns=_columns(path))
    if table.num_rows != span.length:
        raise DataError(f"{path} has {table.num_rows} rows of episode {span.number}; meta/episodes says {span.length}.")
    table = table.sort_by("frame_index") if "frame_index" in table.column_names else table
    return {name: np.asarray(table[name].to_pylist()) for name in table.column_names}


def _columns(path: Path) -> list[str]:
    import pyarrow.parquet as pq

    known = ("action", "next.reward", "next.done", "task_index", "frame_index", "episode_index")
    return [name for name in pq.read_schema(path).names if name in known]


def _space(source: Path, spans: list[_Span]) -> spaces.Space:
    """Find the action space: choices where an action is one whole number, else a box around what there is."""
    low = high = None
    whole = True
    for span in spans:
        actions = _numbers(source, span)["action"]
        if actions.dtype.kind not in "biuf" or not np.isfinite(actions.astype(np.float64)).all():
            raise DataError(f"episode {span.number} has actions that are no finite numbers.")
        actions = actions.reshape(span.length, -1)
        whole = whole and actions.shape[1] == 1 and actions.dtype.kind in "biu"
        if low is not None and low.shape != actions.shape[1:]:
            raise DataError(f"episode {span.number} has actions of {actions.shape[1]} numbers, others of {len(low)}.")
        low = actions.min(0) if low is None else np.minimum(low, actions.min(0))
        high = actions.max(0) if high is None else np.maximum(high, actions.max(0))
    assert low is not None and high is not None
    if whole and low[0] >= 0 and high[0] < MOST_CHOICES:
        return spaces.Discrete(int(high[0]) + 1)
    return spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)


def _pictures(
    source: Path, spans: list[_Span], camera: str, is_video: bool, fps: float, size: tuple[int, int]
) -> Iterator[tuple[_Span, list[np.ndarray]]]:
    """Yield each episode with its frames; every video is read once."""
    if not is_video:
        for span in spans:
            yield span, [resize_frame(frame, size) for frame in _images(source, span, camera)]
        return
    files: dict[str, list[_Span]] = defaultdict(list)
    for span in spans:
        files[span.video].append(span)
    for file, inside_file in files.items():
        waiting = sorted(inside_file, key=lambda span: span.begins)
        frames: list[np.ndarray] = []
        for number, (time, frame) in enumerate(Video(source / file).timed()):
            # Times of a video are whole ticks: half a frame is far more than they are off.
            place = (number / fps if time is None else time) + 0.5 / fps
            if waiting and place >= waiting[0].begins:
                frames.append(resize_frame(frame, size))
                if len(frames) == waiting[0].length:
                    yield waiting.pop(0), frames
                    frames = []
        if waiting:
            raise DataError(f"the video {source / file} ends before episode {waiting[0].number} does.")


def _images(source: Path, span: _Span, camera: str) -> Iterator[np.ndarray]:
    """Yield the frames of an episode that lie in its table as PNG or JPEG."""
    import pyarrow.parquet as pq

    path = source / span.table
    columns = [camera, *(name for name in _columns(path) if name == "frame_index"), "episode_index"]
    table = pq.read_table(path, filters=[("episode_index", "==", span.number)], columns=columns)
    table = table.sort_by("frame_index") if "frame_index" in table.column_names else table
    for value in table[camera].to_pylist():
        try:
            with Image.open(BytesIO(value["bytes"])) as image:
                yield np.asarray(image.convert("RGB"))
        except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
            raise DataError(f"cannot read a picture of episode {span.number} in {path}: {error}.") from error


def _add(
    source: Path,
    span: _Span,
    frames: list[np.ndarray],
    space: spaces.Space,
    tasks: Mapping[int, str],
    prompt: str | None,
    importer: Importer,
) -> None:
    columns, steps = _numbers(source, span), span.length - 1
    if steps < 1:
        return
    index = columns.get("task_index", np.zeros(span.length, int)).reshape(-1)
    texts = [prompt if prompt is not None else tasks.get(int(i), "") for i in index]
    distinct = list(dict.fromkeys(texts))
    shape = (steps, *(space.shape or ()))
    done = columns.get("next.done", np.zeros(span.length, bool)).reshape(-1)
    rewards = columns.get("next.reward", np.zeros(span.length)).reshape(-1)
    importer.add(
        Episode(
            frames=np.stack(frames),
            actions=columns["action"].reshape(span.length, -1)[:-1].reshape(shape).astype(space.dtype),
            rewards=np.asarray(rewards[:-1], np.float32),
            **ended(steps, bool(done[-2])),
            prompt_index=np.asarray([distinct.index(text) for text in texts], np.int32),
            prompts=[{"text": text} for text in distinct],
            meta={"lerobot_episode": span.number},
        )
    )
