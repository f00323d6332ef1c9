"""Draw a session: pictures, a line of numbers, the prompt, and messages over them.

Everything is drawn on a canvas of a fixed size that needs no display: a window shows it, a clip is made of it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pygame

from worldsim.demos.view import Overlay, Panel, View

PAPER, WELL, EDGE, CHOSEN = (19, 20, 25), (30, 32, 39), (58, 62, 74), (48, 76, 112)
INK, FAINT = (228, 231, 238), (138, 145, 160)
LIT, WARM, RED = (104, 178, 255), (255, 170, 90), (238, 84, 84)

MARGIN, GAP = 16, 16
CAPTION, STATUS, PROMPT, FOOTER = 24, 38, 34, 30  # heights of the rows
LEAST = (576, 320)  # width of the canvas and height of its pictures, so that the help fits
ROOM_ALONE, ROOM_BESIDE, MOST = 512, 448, 720  # pixels that a picture is scaled up to, and that a large one may have
ARROWS = {  # corners of a triangle about the middle of a keycap
    "left": ((3, -5), (3, 5), (-4, 0)),
    "right": ((-3, -5), (-3, 5), (4, 0)),
    "up": ((-5, 3), (5, 3), (0, -4)),
    "down": ((-5, -3), (5, -3), (0, 4)),
}
MOST_CHOICES = 10  # prompts that are shown at once
MOST_KEYCAPS = 6  # keys shown at all times; of more, only those pressed


class Screen:
    """A canvas for pictures of given sizes.

    Args:
        sizes: (height, width) of each picture.
        scale: whole number that pictures are enlarged by; 0 chooses one that fits.
        smooth: blur the pixels when enlarging.

    Attributes:
        canvas: what was drawn last; both its sides are even, as video wants it.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], *, scale: int = 0, smooth: bool = False) -> None:
        """Lay out the rows."""
        pygame.font.init()
        self.font, self.small = pygame.font.Font(None, 22), pygame.font.Font(None, 19)
        self.smooth = smooth
        self.shown = [_enlarged(size, scale, ROOM_ALONE if len(sizes) == 1 else ROOM_BESIDE) for size in sizes]
        width = sum(w for _, w in self.shown) + GAP * (len(sizes) - 1)
        self.width = max(width + 2 * MARGIN, LEAST[0]) // 2 * 2
        self.tall = max(LEAST[1], *(h for h, _ in self.shown))
        height = MARGIN + CAPTION + self.tall + STATUS + PROMPT + FOOTER + MARGIN // 2
        self.canvas = pygame.Surface((self.width, (height + 1) // 2 * 2), 0, 32)
        left, self.places = (self.width - width) // 2, []
        for high, wide in self.shown:
            self.places.append(pygame.Rect(left, MARGIN + CAPTION + (self.tall - high) // 2, wide, high))
            left += wide + GAP

    def draw(self, view: View) -> None:
        """Draw `view` over everything."""
        self.canvas.fill(PAPER)
        for panel, place in zip(view.panels, self.places, strict=True):
            self._draw_panel(panel, place)
        top = MARGIN + CAPTION + self.tall
        end = self._draw_keys(view.keys, list(view.pressed), top + STATUS // 2)
        x = MARGIN
        for i, text in enumerate(view.status):
            self._text(text, (x, top + STATUS // 2), INK if i == 0 else FAINT, room=end - x)
            digits = re.sub(r"-?[\d.]+", "0000.0", text)  # as wide whatever the number, so that nothing jumps
            x += max(self.font.size(text)[0], self.font.size(digits)[0]) + GAP
        self._draw_prompt(view, pygame.Rect(MARGIN, top + STATUS, self.width - 2 * MARGIN, PROMPT))
        self._text(view.footer, (MARGIN, top + STATUS + PROMPT + FOOTER // 2 + 2), FAINT, self.small)

    def overlay(self, overlay: Overlay) -> None:
        """Draw messages over the view."""
        area = self.places[0].unionall(self.places[1:])
        x = area.left + 8
        for text, color in ((overlay.recording, RED), (overlay.paused, WARM), (overlay.rewinding, LIT)):
            x += self._pill(text, color, x, area.top + 8) + 6 if text else 0
        if overlay.help:
            self._draw_help(overlay.help)
        elif len(overlay.choices) > 1:
            self._draw_choices(overlay.choices, overlay.chosen, area)
        elif overlay.message:
            self._draw_message(overlay.message, WARM if overlay.bad else LIT, area)

    def pixels(self) -> np.ndarray:
        """Copy the canvas, uint8 (H, W, 3)."""
        width, height = self.canvas.get_size()
        return np.frombuffer(pygame.image.tobytes(self.canvas, "RGB"), np.uint8).reshape(height, width, 3)

    def _draw_panel(self, panel: Panel, place: pygame.Rect) -> None:
        height, width = panel.picture.shape[:2]
        surface = pygame.image.frombuffer(np.ascontiguousarray(panel.picture).tobytes(), (width, height), "RGB")
        shrinks = place.height < height or place.width < width
        scale = pygame.transform.smoothscale if self.smooth or shrinks else pygame.transform.scale
        surface = scale(surface, place.size)
        if panel.faded:
            surface.set_alpha(90)
        self.canvas.blit(surface, place)
        pygame.draw.rect(self.canvas, EDGE, place.inflate(2, 2), 1)
        middle = place.top - CAPTION // 2 - 1
        right = self._text(panel.detail, (place.right, middle), FAINT, self.small, right=True)
        self._text(panel.caption, (place.left, middle), INK, room=place.width - right - 12)

    def _draw_keys(self, names: Sequence[str], pressed: Sequence[str], middle: int) -> int:
        """Draw keycaps from the right, pressed ones lit; return where they begin."""
        names = names if len(names) <= MOST_KEYCAPS else [name for name in names if name in pressed]
        x = self.width - MARGIN
        for name in reversed(names[:MOST_KEYCAPS]):
            width = 24 if name in ARROWS else self.small.size(name)[0] + 14
            cap = pygame.Rect(x - width, middle - 11, width, 22)
            ink = PAPER if name in pressed else FAINT
            pygame.draw.rect(self.canvas, LIT if name in pressed else WELL, cap, border_radius=5)
            pygame.draw.rect(self.canvas, LIT if name in pressed else EDGE, cap, 1, border_radius=5)
            if name in ARROWS:
                points = [(cap.centerx + dx, cap.centery + dy) for dx, dy in ARROWS[name]]
                pygame.draw.polygon(self.canvas, ink, points)
            else:
                self._text(name, (cap.left + 7, middle), ink, self.small)
            x = cap.left - 5
        return x

    def _draw_prompt(self, view: View, box: pygame.Rect) -> None:
        typing = view.cursor is not None
        pygame.draw.rect(self.canvas, WELL, box, border_radius=6)
        pygame.draw.rect(self.canvas, LIT if typing else EDGE, box, 1, border_radius=6)
        label = self._text("prompt", (box.left + 10, box.centery), LIT if typing else FAINT, self.small)
        field = pygame.Rect(box.left + 20 + label, box.top + 5, box.width - label - 30, box.height - 10)
        if view.prompt is None:
            self._text("none is taken here", field.midleft, FAINT)
            return
        text = " ".join(view.prompt.splitlines())
        at = self.font.size(text[: view.cursor])[0] if view.cursor is not None else 0
        shift = max(0, at - field.width + 4)  # the cursor stays in sight
        self.canvas.set_clip(field)
        if typing and view.selected and text:
            pygame.draw.rect(self.canvas, CHOSEN, (field.left - shift, field.top + 1, self.font.size(text)[0], 22))
        self._text(text, (field.left - shift, field.centery), INK, room=None if typing else field.width)
        if typing:
            x = field.left - shift + at
            pygame.draw.line(self.canvas, LIT, (x, field.top + 3), (x, field.bottom - 4), 2)
        self.canvas.set_clip(None)

    def _draw_message(self, message: str, color: tuple[int, int, int], area: pygame.Rect) -> None:
        lines = self._wrap(message, area.width - 40)[:6]
        box = pygame.Rect(area.left + 8, 0, area.width - 16, 20 * len(lines) + 14)
        box.bottom = area.bottom - 8
        self._shade(box, 225)
        pygame.draw.rect(self.canvas, color, (box.left, box.top, 4, box.height), border_radius=2)
        for i, line in enumerate(lines):
            self._text(line, (box.left + 14, box.top + 17 + 20 * i), INK)

    def _draw_choices(self, choices: Sequence[str], chosen: int, area: pygame.Rect) -> None:
        first = min(max(0, chosen - MOST_CHOICES // 2), max(0, len(choices) - MOST_CHOICES))
        shown = choices[first : first + MOST_CHOICES]
        box = pygame.Rect(area.left + 8, 0, area.width - 16, 22 * len(shown) + 12)
        box.bottom = area.bottom - 8
        self._shade(box, 225)
        for i, text in enumerate(shown):
            row = pygame.Rect(box.left + 4, box.top + 6 + 22 * i, box.width - 8, 22)
            if first + i == chosen:
                pygame.draw.rect(self.canvas, CHOSEN, row, border_radius=4)
            self._text(text or "(no prompt)", (row.left + 8, row.centery), INK if text else FAINT, room=row.width - 16)

    def _draw_help(self, rows: Sequence[tuple[str, str]]) -> None:
        keys = max(self.font.size(key)[0] for key, _ in rows)
        width = keys + max(self.font.size(text)[0] for _, text in rows) + 64
        box = pygame.Rect(0, 0, width, 22 * len(rows) + 28)
        box.center = (self.width // 2, MARGIN + CAPTION + self.tall // 2)
        self._shade(box, 238)
        pygame.draw.rect(self.canvas, EDGE, box, 1, border_radius=8)
        for i, (key, text) in enumerate(rows):
            middle = box.top + 25 + 22 * i
            self._text(key, (box.left + 20, middle), LIT)
            self._text(text, (box.left + 44 + keys, middle), INK)

    def _pill(self, text: str, color: tuple[int, int, int], x: int, y: int) -> int:
        width = self.small.size(text)[0] + 16
        pygame.draw.rect(self.canvas, color, (x, y, width, 20), border_radius=10)
        self._text(text, (x + 8, y + 10), PAPER, self.small)
        return width

    def _shade(self, box: pygame.Rect, alpha: int) -> None:
        shade = pygame.Surface(box.size, pygame.SRCALPHA, 32)
        pygame.draw.rect(shade, (*PAPER, alpha), shade.get_rect(), border_radius=8)
        self.canvas.blit(shade, box)

    def _text(
        self,
        text: str,
        at: tuple[int, int],
        color: tuple[int, int, int],
        font: pygame.font.Font | None = None,
        *,
        right: bool = False,
        room: int | None = None,
    ) -> int:
        """Write `text` to the right of `at` (or to its left), centred on its line; return how wide it is."""
        font = font or self.font
        if room is not None and font.size(text)[0] > room:
            while text and font.size(text + "...")[0] > room:
                text = text[:-1]
            text += "..."
        image = font.render(text, True, color)
        place = image.get_rect(midright=at) if right else image.get_rect(midleft=at)
        self.canvas.blit(image, place)
        return image.get_width()

    def _wrap(self, text: str, width: int) -> list[str]:
        lines = [""]
        for word in text.split():
            longer = f"{lines[-1]} {word}".strip()
            if self.font.size(longer)[0] <= width:
                lines[-1] = longer
            else:
                lines.append(word)
        return [line for line in lines if line]


def _enlarged(size: tuple[int, int], scale: int, room: int) -> tuple[int, int]:
    """Compute the (height, width) that a picture is shown at: a whole multiple, or less for one that is too large."""
    times = scale or max(1, room // max(size))
    shrink = 1.0 if scale else min(1.0, MOST / max(size))
    return round(size[0] * times * shrink), round(size[1] * times * shrink)


def open_window(title: str) -> pygame.Surface:
    """Open a window that says that `title` is loading. Raises pygame.error if there is no screen."""
    pygame.display.init()
    pygame.font.init()
    display = pygame.display.set_mode((608, 640), pygame.RESIZABLE)
    pygame.display.set_caption(f"worldsim: {title}")
    display.fill(PAPER)
    text = pygame.font.Font(None, 26).render(f"loading {title} ...", True, FAINT)
    display.blit(text, text.get_rect(center=display.get_rect().center))
    pygame.display.flip()
    pygame.event.pump()
    return display


def show(canvas: pygame.Surface) -> None:
    """Show `canvas` in the window, as large as fits."""
    display = pygame.display.get_surface()
    scale = min(display.get_width() / canvas.get_width(), display.get_height() / canvas.get_height())
    if scale != 1:
        size = (max(1, int(canvas.get_width() * scale)), max(1, int(canvas.get_height() * scale)))
        canvas = pygame.transform.smoothscale(canvas, size)
    display.fill(PAPER)
    display.blit(canvas, canvas.get_rect(center=display.get_rect().center))
    pygame.display.flip()
