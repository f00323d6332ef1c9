"""Contact sheets: many frames in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worldsim.data.episodes import Dataset, read_episode
from worldsim.data.frames import check_frames
from worldsim.data.recipe import SPLITS
from worldsim.errors import ConfigError, DataError, FrameError

GAP = 2  # pixels between frames
TEXT = 11  # height of a caption's letters, in pixels
PAPER, INK = (24, 24, 24), (230, 230, 230)


def contact_sheet(
    frames: Sequence[np.ndarray] | np.ndarray, columns: int, scale: int = 1, captions: Sequence[str] | None = None
) -> Image.Image:
    """Draw frames in rows, from left to right and top to bottom.

    Args:
        frames: uint8 (H, W, 3) each, all of one size.
        columns: frames in a row.
        scale: each pixel becomes a square of so many.
        captions: above the frames, one for each row or one for each frame; what does not fit is cut off.

    Raises:
        ConfigError: no frames, `columns` or `scale` below 1, or another number of captions.
        FrameError: a frame that is not uint8 (H, W, 3), or of another size than the first.
    """
    if columns < 1 or scale < 1 or len(frames) == 0:
        raise ConfigError(f"a sheet of {len(frames)} frames, {columns} columns, scale {scale}: all must be at least 1.")
    checked = [check_frames(frame, f"frame {i}") for i, frame in enumerate(frames)]
    if len({frame.shape for frame in checked}) > 1:
        sizes = ", ".join(sorted({str(frame.shape) for frame in checked}))
        raise FrameError(f"frames of several sizes ({sizes}) on one sheet; resize them first.")
    rows = -(-len(frames) // columns)
    captions = captions or []
    if len(captions) not in (0, rows, len(frames)):
        raise ConfigError(
            f"{len(captions)} captions; allowed: none, {rows} (one a row) or {len(frames)} (one a frame)."
        )
    head = TEXT + 4 if captions else 0
    height, width = checked[0].shape[0] * scale + GAP + head, checked[0].shape[1] * scale + GAP
    across = min(columns, len(frames))
    image = Image.new("RGB", (across * width + GAP, rows * height + GAP), PAPER)
    for i, frame in enumerate(checked):
        row, column = divmod(i, columns)
        frame = frame.repeat(scale, axis=0).repeat(scale, axis=1)
        image.paste(Image.fromarray(frame), (column * width + GAP, row * height + GAP + head))
    in_row = 1 if len(captions) == rows else columns
    room = (across * width if in_row == 1 else width) - GAP
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(TEXT)
    for i, caption in enumerate(captions):
        row, column = divmod(i, in_row)
        draw.text((column * width + GAP, row * height + GAP), _fit(caption, room, font), INK, font)
    return image


def _fit(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Return as much of the beginning of `text` as is at most `width` pixels wide."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


@dataclass(frozen=True, kw_only=True)
class ContactSheet:
    """What to draw of a dataset."""

    dataset: Path
    """The folder of the dataset."""
    out: Path = Path("sheet.png")
    """The picture to write."""
    episodes: int = 8
    """Rows: an episode each, from all splits by turns."""
    columns: int = 12
    """Frames of an episode, from its first to its last."""
    scale: int = 1
    """Each pixel becomes a square of so many."""


def dataset_contact_sheet(
    dataset: Dataset | str | Path, path: str | Path, episodes: int = 8, columns: int = 12, scale: int = 1
) -> Path:
    """Write a picture of a dataset to `path`: a row for each of `episodes` episodes, from all splits by turns.

    A row shows `columns` frames from the first to the last of its episode, under the prompt of the first.

    Raises:
        ConfigError: `episodes`, `columns` or `scale` below 1.
        DataError: no dataset there, or it has no episodes.
    """
    if episodes < 1 or columns < 1:
        raise ConfigError(f"a sheet of {episodes} episodes with {columns} frames each: both must be at least 1.")
    dataset = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    turns = zip_longest(*(dataset.episodes(split) for split in SPLITS))
    files = [file for turn in turns for file in turn if file is not None][:episodes]
    if not files:
        raise DataError(f"dataset {dataset.path} has no episodes yet; record some.")
    frames, captions = [], []
    for file in files:
        episode = read_episode(file)
        places = np.linspace(0, len(episode), columns).round().astype(int)
        frames.extend(episode.frames[places])
        captions.append(f"{file.parent.name} {int(file.stem)}: {episode.texts()[0] or '(no prompt)'}")
    contact_sheet(frames, columns, scale, captions).save(path)
    return Path(path)
