"""Gymnasium's CarRacing with palettes that have names, and a frame per four physics steps."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pygame
from gymnasium import spaces
from gymnasium.utils import EzPickle
from pygame import gfxdraw

from worldsim.errors import ActionError, ConfigError, InputError, MissingDependency, SessionError
from worldsim.games.car_racing.palettes import CLASSIC, GROUNDS, Palette, parse_palette, road_rgb
from worldsim.games.car_racing.prompts import plain_prompt

try:
    from Box2D import b2World
    from gymnasium.envs.box2d import car_racing as game
except ImportError as error:
    raise MissingDependency("box2d", "Playing CarRacing", "pip install 'worldsim-engine[record]'") from error

LOWEST, HIGHEST = np.array((-1, 0, 0), np.float32), np.array((1, 1, 1), np.float32)  # steer, gas, brake

KEYS: dict[str, tuple[float, float, float]] = {
    "": (0.0, 0.0, 0.0),
    "left": (-0.7, 0.0, 0.0),
    "right": (0.7, 0.0, 0.0),
    "up": (0.0, 0.6, 0.0),
    "down": (0.0, 0.0, 0.6),
    "left+up": (-0.7, 0.6, 0.0),
    "right+up": (0.7, 0.6, 0.0),
    "left+down": (-0.7, 0.0, 0.6),
    "right+down": (0.7, 0.0, 0.6),
}
"""Arrow keys to (steer, gas, brake): less than all, because a key is either up or down."""


class CarRacingGame(game.CarRacing):
    """CarRacing at a recording's pace: one step is `repeat` physics steps of 1/50 s and one small frame.

    Observations are uint8 (size, size, 3). Actions are float32 (steer -1..1 with left negative, gas 0..1, brake 0..1).
    The reward is the sum over the physics steps. `info` holds `prompt` and `labels` ({"road": ..., "ground": ...}).

    Options of `reset`:
        palette: a theme or "road/ground" (default "classic").
        prompt: the words for it (default: plain ones).
        changes: list of (step, palette, prompt); the frame returned by that step (the first one is 1) shows the
            palette, and its info says the prompt.
        start_tile: where on the lap to start, 0..1 (default 0).
    """

    metadata = {"render_modes": ["rgb_array", "state_pixels"], "render_fps": 12.5}

    def __init__(
        self, render_mode: str | None = "rgb_array", repeat: int = 4, size: int = 64, max_steps: int | None = None
    ) -> None:
        """Make the game; `max_steps` truncates episodes (None: never). Raises ConfigError for sizes below 1."""
        if min(repeat, size, 1 if max_steps is None else max_steps) < 1:
            raise ConfigError(f"repeat, size and max_steps must be 1 or more, got {repeat}, {size} and {max_steps}.")
        super().__init__(render_mode=render_mode)
        EzPickle.__init__(self, render_mode, repeat, size, max_steps)  # after the parent's, whose arguments differ
        self.repeat, self.size, self.max_steps = repeat, size, max_steps
        self.metadata = {**self.metadata, "render_fps": game.FPS / repeat}
        self.observation_space = spaces.Box(0, 255, (size, size, 3), np.uint8)
        self._drawing = True
        self._start_tile = 0.0
        self._grass = _grass_squares()

    def get_keys_to_action(self) -> dict[str, np.ndarray]:
        """Get the action for each combination of keys, such as "left+up"; "" is no key."""
        return {key: np.asarray(action, np.float32) for key, action in KEYS.items()}

    def set_palette(self, palette: str | Palette, prompt: str | None = None) -> None:
        """Change the colours from the next frame on, and the prompt (default: plain words)."""
        self.palette = palette if isinstance(palette, Palette) else parse_palette(palette)
        self.prompt = plain_prompt(self.palette) if prompt is None else prompt
        ground, squares = GROUNDS[self.palette.ground]
        self.road_color = np.array(road_rgb(self.palette.road))
        self.bg_color, self.grass_color = np.array(ground), np.array(squares)
        for tile in self.road or []:  # tiles keep a colour each, in an array they share with `road_poly`
            tile.color[:] = self.road_color + (0 if tile.road_visited else 2.55 * (tile.idx % 3))

    @property
    def on_road(self) -> bool:
        """Whether a wheel touches the road."""
        return self.car is not None and any(wheel.tiles for wheel in self.car.wheels)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode on a new track; see the class for `options`. Raises InputError for an unknown one."""
        options = dict(options or {})
        palette, prompt = options.pop("palette", CLASSIC), options.pop("prompt", None)
        changes, start_tile = options.pop("changes", ()), float(options.pop("start_tile", 0.0))
        if options:
            raise InputError(f"Unknown reset options {sorted(options)}. Known: changes, palette, prompt, start_tile.")
        if not 0.0 <= start_tile <= 1.0:
            raise InputError(f"start_tile is a share of the lap, 0..1; got {start_tile}.")
        # A fresh physics world: what an older episode leaves behind (its last time step) must not matter.
        self._destroy()
        self.road, self.car = None, None
        self.world = b2World((0, 0), contactListener=self.contactListener_keepref)
        self.set_palette(palette, prompt)
        self._changes = sorted((int(step), parse_palette(str(name)), text) for step, name, text in changes)
        self._start_tile, self._steps, self._drawing = start_tile, 0, False
        super().reset(seed=seed)
        self.t = 1.0  # skips the zoom of the first second
        self._road_corners = np.array([corners for corners, _ in self.road_poly])  # (tiles, 4, 2)
        return self._frame(), self._info()

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]  -- the parent never truncates
        self, action: np.ndarray | int | None
    ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Repeat an action for one frame. Raises ActionError for a wrong shape or value, SessionError before reset."""
        if action is None:  # the parent's reset settles the car this way
            super().step(cast(int, None))  # allowed, though its types do not say so
            return np.empty(0, np.uint8), 0.0, False, False, {}
        if self.car is None:
            raise SessionError("step was called before reset; call reset first.")
        action = np.asarray(action, np.float32)
        if action.shape != (3,) or not np.isfinite(action).all():
            raise ActionError(f"An action is three finite numbers (steer, gas, brake); got {action!r}.")
        action = np.clip(action, LOWEST, HIGHEST)
        self._steps += 1
        while self._changes and self._changes[0][0] <= self._steps:
            self.set_palette(*self._changes.pop(0)[1:])
        reward, terminated = 0.0, False
        for _ in range(self.repeat):
            _, part, terminated, _, _ = super().step(action)
            reward += part
            if terminated:
                break
        truncated = self.max_steps is not None and self._steps >= self.max_steps
        return self._frame(), float(reward), bool(terminated), truncated, self._info()

    def _info(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "labels": {"road": self.palette.road, "ground": self.palette.ground}}

    def _frame(self) -> np.ndarray:
        self._drawing = True
        try:
            self.state = self._render("state_pixels")
        finally:
            self._drawing = False
        return self.state.copy()

    def render(self) -> np.ndarray | None:
        """Get the game's own 600x400 picture ("rgb_array") or the frame again ("state_pixels")."""
        if self.car is None or self.render_mode is None:
            return cast(None, super().render())  # warns
        self._drawing = True
        try:
            return cast(np.ndarray, super().render())
        finally:
            self._drawing = False

    def _render(self, mode: str) -> Any:
        return super()._render(mode) if self._drawing else None  # drawing costs far more than physics

    def _create_image_array(self, screen: pygame.Surface, size: tuple[int, int]) -> np.ndarray:
        if size == (game.STATE_W, game.STATE_H):
            size = (self.size, self.size)
        return super()._create_image_array(screen, size)  # area average

    def _create_track(self) -> bool:
        if not super()._create_track():
            return False
        shift = int(self._start_tile * len(self.track)) % len(self.track)
        self.track = self.track[shift:] + self.track[:shift]  # the car starts on the first
        for tile in self.road or []:
            tile.idx = (tile.idx - shift) % len(self.track)  # and the lap ends there
        return True

    def _render_road(self, zoom: float, translation: tuple[float, float], angle: float) -> None:
        """Draw what the parent draws, pixel for pixel, but transform all corners at once and skip what is not seen."""
        surface = cast(pygame.Surface, self.surf)
        bounds = game.PLAYFIELD
        field = [(bounds, bounds), (bounds, -bounds), (-bounds, -bounds), (-bounds, bounds)]
        self._draw_colored_polygon(surface, field, self.bg_color, zoom, translation, angle, clip=False)
        turn = np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        for corners, color in ((self._grass, self.grass_color), (self._road_corners, None)):
            corners = corners @ turn * zoom + translation
            seen = (corners.max(1) >= -1).all(1) & (corners.min(1) <= (game.WINDOW_W, game.WINDOW_H)).all(1)
            for i in np.flatnonzero(seen):
                shade = [int(c) for c in (self.road_poly[i][1] if color is None else color)]
                polygon = corners[i].tolist()
                gfxdraw.aapolygon(surface, polygon, shade)
                gfxdraw.filled_polygon(surface, polygon, shade)


def _grass_squares() -> np.ndarray:
    """Corners of the squares on the ground, (400, 4, 2)."""
    corners = np.array([(1, 0), (0, 0), (0, 1), (1, 1)])
    places = np.array([(x, y) for x in range(-20, 20, 2) for y in range(-20, 20, 2)])
    return game.GRASS_DIM * (places[:, None] + corners)
