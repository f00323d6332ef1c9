"""A scripted policy for CarRacing: it follows the track, and does enough else that a recording covers every action."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from gymnasium.envs.box2d import car_racing as game

from worldsim.games.car_racing.env import HIGHEST, LOWEST
from worldsim.games.car_racing.palettes import sample_palette
from worldsim.games.car_racing.prompts import prompt_for

EPISODE_STEPS = 250


class CarRacingPolicy:
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

    def act(self, env: Any, observation: Any, info: dict[str, Any]) -> np.ndarray:
        """Choose the next action from the true pose of the car."""
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
