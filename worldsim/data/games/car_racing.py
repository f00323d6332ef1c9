"""Gymnasium's CarRacing as a game to record: palettes with names, a frame per four physics steps, and a driver."""

from __future__ import annotations

import math
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pygame
from gymnasium import spaces
from gymnasium.utils import EzPickle
from pygame import gfxdraw

from worldsim.data.games.palettes import (
    CLASSIC,
    GROUNDS,
    Palette,
    parse_palette,
    plain_prompt,
    prompt_for,
    road_rgb,
    sample_palette,
)
from worldsim.data.recipe import Recipe
from worldsim.errors import ActionError, ConfigError, InputError, MissingDependency, SessionError

try:
    from Box2D import b2World
    from gymnasium.envs.box2d import car_racing as game
except ImportError as error:
    raise MissingDependency("box2d", "Playing CarRacing", "pip install 'worldsim-engine[record]'") from error

EPISODE_STEPS = 250
LOWEST, HIGHEST = np.array((-1, 0, 0), np.float32), np.array((1, 1, 1), np.float32)  # steer, gas, brake


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
        """The action for each combination of keys, such as "left+up"; "" is no key."""
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
        """The game's own 600x400 picture ("rgb_array") or the frame again ("state_pixels")."""
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


class Driver:
    """Follows the track with random skill, and does enough else that every action is seen in every situation.

    An episode draws a character and its skill (speed, steering gain, noise, keyboard or wheel). A "mixed" character
    alternates spans of plain following with spans of something else: leaving the road, coasting, stopping, spinning,
    random controls, no input. An "expert" follows the road to the end; a "wanderer" leaves it for long and comes back,
    again and again; a "beginner" steers late and taps the gas, slowly.
    """

    CHARACTERS = {"mixed": 0.3, "expert": 0.2, "wanderer": 0.2, "beginner": 0.3}
    LATE = 3  # steps that a beginner steers behind what there is to see
    TAPPED = 0.6, (0.01, 0.15)  # share of a beginner's steps with gas, and how much of it one gives

    # name: (weight, shortest, longest) in steps
    SPANS = {
        "follow": (0.0, 10, 45),
        "excursion": (0.2, 6, 18),
        "coast": (0.12, 6, 20),
        "stop": (0.14, 6, 25),
        "straight": (0.12, 5, 11),
        "random": (0.2, 6, 20),
        "idle": (0.12, 5, 20),
        "spin": (0.1, 6, 20),
    }
    CHANGING = 0.35  # of the episodes change their palette on the way
    KEYBOARD = 0.2  # of the episodes are played by keyboard
    LEAVING = 0.1  # of the episodes drive off the edge of the world
    ROAMING = (20, 60), (3.0, 12.0)  # a wanderer's way off the road: steps, and how many road widths

    def begin(self, rng: np.random.Generator, split: str) -> dict[str, Any]:
        """Draw a character and a palette; return the options for `CarRacingGame.reset`."""
        self.rng = rng
        self.character = str(rng.choice(list(self.CHARACTERS), p=list(self.CHARACTERS.values())))
        self.cruise = rng.uniform(15, 90)  # world units per second; flat out is about 100
        self.gain = rng.uniform(0.8, 2.0)
        self.noise = rng.choice([0.0, 0.1, 0.25, 0.4])
        self.discipline = rng.uniform(0.2, 0.85)  # chance to go on following when a span ends
        self.way = -1 if rng.random() < 0.1 else 1  # against the usual direction
        if self.character == "expert":
            self.discipline, self.noise = 1.0, min(self.noise, 0.1)
        if self.character == "beginner":
            self.discipline, self.noise, self.gain = 1.0, 0.03, rng.uniform(0.8, 1.6)
            self.foot = math.exp(rng.uniform(*np.log(self.TAPPED[1])))
        self.seen = [0.0] * self.LATE  # what a beginner steers by, newest last
        self.distance = 2.5  # of an excursion, in road widths
        self.keyboard = rng.random() < self.KEYBOARD
        self.key_strength = rng.uniform((0.5, 0.5, 0.5), (1.0, 1.0, 0.85))
        self.leaving = rng.random() < self.LEAVING
        self.wobble, self.left, self.span = np.zeros(2), int(rng.integers(5, 50)), "follow"
        self.held, self.held_left = np.zeros(3), 0
        palette = sample_palette(rng, split)
        options = {"palette": str(palette), "prompt": prompt_for(palette, rng), "changes": []}
        if rng.random() < self.CHANGING:
            for step in sorted(rng.choice(np.arange(5, EPISODE_STEPS - 5), rng.integers(1, 4), replace=False)):
                palette = sample_palette(rng, split, other_than=palette)
                options["changes"].append((int(step), str(palette), prompt_for(palette, rng)))
        options["start_tile"] = float(rng.random()) if rng.random() < 0.7 else 0.0
        return options

    def act(self, env: gym.Env, observation: Any, info: dict[str, Any]) -> np.ndarray:
        """The next action, from the true pose of the car."""
        self.left -= 1
        if self.left < 0:
            self._next_span()
        self.wobble += -0.2 * self.wobble + self.noise * np.array((0.6, 0.3)) * self.rng.standard_normal(2)
        steer, gas, brake = self._controls(env.unwrapped)
        if self.character == "beginner":
            self.seen.append(steer)
            gas = self.foot * self.rng.uniform(0.7, 1.4) * (self.rng.random() < self.TAPPED[0])
            steer, brake = self.seen.pop(0), 0.0
        action = np.array([steer + self.wobble[0], gas + self.wobble[1], brake])
        if self.span == "random":
            action = self._random_controls()
        elif self.span == "idle":
            action = np.zeros(3)
        elif self.keyboard:
            # A key is down for a share of the steps that gives the wanted value on average.
            down = np.abs(action) / self.key_strength > self.rng.uniform(0.15, 0.85, 3)
            action = np.sign(action) * down * self.key_strength
        return np.clip(action, LOWEST, HIGHEST).astype(np.float32)

    def _next_span(self) -> None:
        if self.span != "follow" or self.rng.random() < self.discipline:
            self.span = "follow"
        elif self.character == "wanderer":
            self.span = "excursion"
        else:
            weights = np.array([weight for weight, _, _ in self.SPANS.values()])
            self.span = str(self.rng.choice(list(self.SPANS), p=weights / weights.sum()))
        _, shortest, longest = self.SPANS[self.span]
        self.distance = 2.5
        if self.character == "wanderer" and self.span == "excursion":
            (shortest, longest), far = self.ROAMING
            self.distance = self.rng.uniform(*far)
        self.left = int(self.rng.integers(shortest, longest + 1))
        self.side = float(self.rng.choice([-1, 1]))
        self.strength = self.rng.uniform(0.4, 1.0)
        self.random_keys = self.rng.random() < 0.5

    def _controls(self, env: Any) -> tuple[float, float, float]:
        """Steer, gas and brake towards a point ahead on the track, bent by the span in force."""
        track = np.array(env.track)[:, 1:]  # (tiles, 3): direction, x, y
        hull = env.car.hull
        place, speed = np.array(hull.position), float(np.linalg.norm(hull.linearVelocity))
        here = int(np.argmin(((track[:, 1:] - place) ** 2).sum(1)))

        def ahead(distance: float) -> np.ndarray:
            return track[(here + self.way * round(distance / game.TRACK_DETAIL_STEP)) % len(track)]

        direction, x, y = ahead(7 + 0.25 * speed)
        if self.span == "excursion":
            x += self.side * self.distance * game.TRACK_WIDTH * math.cos(direction)
            y += self.side * self.distance * game.TRACK_WIDTH * math.sin(direction)
        if self.leaving:
            x, y = place * 2  # away from the centre of the field
        # The car looks along (-sin, cos) of its angle; a positive error lies to its right.
        dx, dy = x - place[0], y - place[1]
        cos, sin = math.cos(hull.angle), math.sin(hull.angle)
        error = math.atan2(dx * cos + dy * sin, dy * cos - dx * sin)
        steer = self.gain * 1.5 * error + 0.2 * hull.angularVelocity  # the second term damps the swing
        bend = abs((ahead(10 + 0.6 * speed)[0] - track[here, 0] + math.pi) % (2 * math.pi) - math.pi)
        target = self.cruise / (1 + 2.0 * bend + 2.0 * abs(error))
        if not env.on_road and self.span != "excursion":
            target = min(target, 32.0)  # the ground is slippery
        target = max(target, 10.0)
        gas = float(np.clip(0.1 * (target - speed), 0, 1)) * (1 - 0.8 * min(1.0, abs(error)))  # or the tail swings out
        brake = float(np.clip(0.08 * (speed - target - 3), 0, 0.8))
        if self.span == "coast":
            return steer, 0.0, 0.0
        if self.span == "stop":
            return steer, 0.0, self.strength
        if self.span == "straight":
            return 0.0, self.strength, 0.0
        if self.span == "spin":
            return self.side, self.strength if self.left % 8 else 0.0, 0.0
        return steer, gas, brake

    def _random_controls(self) -> np.ndarray:
        """Controls that have nothing to do with the road, held for a few steps."""
        self.held_left -= 1
        if self.held_left < 0:
            self.held_left = int(self.rng.integers(1, 8))
            if self.random_keys:
                down = self.rng.random(3) < (1.0, 0.5, 0.2)
                self.held = np.array([self.rng.integers(-1, 2), 1, 1]) * down * self.key_strength
            else:
                self.held = self.rng.uniform((-1, 0, 0), (1, 1, 1)) * (1, 1, self.rng.random() < 0.25)
        return self.held


def make_env() -> gym.Env:
    """The game as it is recorded."""
    return CarRacingGame()


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

RECIPE = Recipe(
    name="car-racing",
    summary="CarRacing-v3 with named palettes: steer, gas and brake on random tracks, in colours told by the prompt.",
    env_id="CarRacing-v3",
    make_env=make_env,
    make_explorer=Driver,
    fps=12.5,
    episode_steps=EPISODE_STEPS,
    keys=KEYS,
    notices=("Frames are drawn by the code of Gymnasium's CarRacing (MIT licence, Farama Foundation and OpenAI).",),
    packages=("gymnasium", "box2d", "pygame", "numpy"),
    unseen=True,
)
