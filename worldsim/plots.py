"""Draws curves of a training run, and tables, as PNG, with nothing but Pillow."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from worldsim.files import replacing

WIDTH, HEIGHT, MARGIN = 420, 220, 40  # pixels of a panel
MOST_POINTS, MOST_PANELS = 2000, 24
INK, PALE, BLUE = (40, 40, 40), (210, 210, 210), (40, 90, 180)
Points = Sequence[tuple[float, float]]


def draw_curves(folder: Path) -> None:
    """Draw what a run has logged in `log.jsonl` as `curves.png`, a panel for each number; nothing without a log."""
    series: dict[str, list[tuple[float, float]]] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in (folder / "log.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError, TypeError, AttributeError):  # a line that was cut off
                values = json.loads(line)
                for name, value in values.items():
                    if name not in ("step", "seconds") and math.isfinite(value):
                        series.setdefault(name, []).append((float(values["step"]), float(value)))
    if series:
        with replacing(folder / "curves.png") as partial:
            panels(series).save(partial, format="PNG")


def panels(series: Mapping[str, Points]) -> Image.Image:
    """Draw each series (x, y) in a panel of its own, two in a row."""
    names = list(series)[:MOST_PANELS]
    columns = min(2, len(names))
    picture = Image.new("RGB", (WIDTH * columns, HEIGHT * math.ceil(len(names) / columns)), "white")
    for place, name in enumerate(names):
        _panel(picture, (place % columns * WIDTH, place // columns * HEIGHT), name, series[name])
    return picture


def _panel(picture: Image.Image, corner: tuple[int, int], name: str, points: Points) -> None:
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default_imagefont()
    left, top = corner[0] + MARGIN + 20, corner[1] + MARGIN - 10
    right, bottom = corner[0] + WIDTH - 20, corner[1] + HEIGHT - MARGIN
    points = points[:: max(1, len(points) // MOST_POINTS)]
    (x0, x1), (y0, y1) = ((min(values), max(values)) for values in zip(*points, strict=True))
    across, up = (x1 - x0) or 1.0, (y1 - y0) or 1.0
    draw.rectangle((left, top, right, bottom), outline=PALE)
    places = [(left + (x - x0) / across * (right - left), bottom - (y - y0) / up * (bottom - top)) for x, y in points]
    if len(places) > 1:
        draw.line(places, fill=BLUE, width=2)
    else:
        draw.ellipse((places[0][0] - 2, places[0][1] - 2, places[0][0] + 2, places[0][1] + 2), fill=BLUE)
    draw.text((left, corner[1] + 12), f"{name}, now {points[-1][1]:.4g}".encode("ascii", "replace"), INK, font)
    for value, height in ((y1, top), (y0, bottom - 10)):
        draw.text((corner[0] + 6, height), f"{value:.3g}", INK, font)
    for value, place in ((x0, left), (x1, right - 40)):
        draw.text((place, bottom + 6), f"{value:.0f}", INK, font)


def table_picture(text: str) -> Image.Image:
    """Draw lines of text, a table say, in letters of one width."""
    font, lines = ImageFont.load_default_imagefont(), text.splitlines() or [""]
    width, height = 6 * max(map(len, lines)) + 20, 14 * len(lines) + 20
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for place, line in enumerate(lines):
        draw.text((10, 10 + 14 * place), line.encode("latin-1", "replace"), INK, font)
    return picture
