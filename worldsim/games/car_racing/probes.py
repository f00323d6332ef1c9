"""CarRacing: where its road is, whether it leads from the car to the edge of the picture, and how it bends."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.envs.box2d import car_racing as game
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from worldsim.data.episodes import Episode
from worldsim.data.policy import Policy
from worldsim.evaluation.probe import Labels, Probe
from worldsim.evaluation.rollout import Runner, Segments
from worldsim.evaluation.steering import Camera, orbit
from worldsim.games.car_racing.adherence import has_palettes, prompt_adherence
from worldsim.games.car_racing.env import CarRacingGame
from worldsim.games.car_racing.palettes import GROUNDS, Palette, parse_palette
from worldsim.games.car_racing.policy import CarRacingPolicy
from worldsim.games.car_racing.prompts import palette_of
from worldsim.games.car_racing.roads import FAR, RoadPolicy, best_palettes, distance_to, look, road_of

AHEAD = (0.34, 0.69)  # rows in which the beginner looks for the road, as shares of the height
FRONT = (slice(0.62, 0.72), slice(0.42, 0.58))  # rows and columns just in front of the car
GAIN, GAS = 2.0, 0.015  # of the beginner: steer per offset of the road from the middle (-1..1); gas on 3 steps of 5
LEAST = 8  # pixels of road without which the beginner keeps the wheel where it is
HAIRPIN = 1.2  # radians: no session begins where the road turns by more within TILES tiles
TILES = 12  # of 3.5 world units each; the picture shows some 8 of them ahead of the car
SPAN = 10  # rows of road without which no bend is measured


class SparingCarRacing(CarRacingGame):
    """CarRacing that draws only wanted frames, which costs forty times what its physics does; others are black."""

    wanted = True

    def _frame(self) -> np.ndarray:
        return super()._frame() if self.wanted else np.zeros((self.size, self.size, 3), np.uint8)


def road_in_view(road: Tensor) -> Tensor:
    """Get the road that is connected with the place in front of the car, bool like `road` (N, h, W)."""
    height, width = road.shape[1:]
    front = torch.zeros_like(road)
    panel = round(height / 0.875)
    rows, columns = FRONT
    down = slice(round(rows.start * panel), round(rows.stop * panel))
    front[:, down, round(columns.start * width) : round(columns.stop * width)] = True
    seen, mask = (road & front).float().unsqueeze(1), road.float().unsqueeze(1)
    while True:
        grown = F.max_pool2d(seen, 5, stride=1, padding=2) * mask  # a gap of one pixel does not end a road
        if torch.equal(grown, seen):
            return seen[:, 0] > 0
        seen = grown


def reaches_edge(seen: Tensor) -> Tensor:
    """Say whether connected road (N, h, W) leads to the upper edge or, above the car, to the sides, bool (N,)."""
    above = seen[:, : round(0.62 * seen.shape[1] / 0.875)]
    edges = [above[:, :2].any(dim=(1, 2)), above[:, :, :2].any(dim=(1, 2)), above[:, :, -2:].any(dim=(1, 2))]
    return torch.stack(edges).any(dim=0)


def bend(seen: Tensor) -> Tensor:
    """Measure the radians that connected road (N, h, W) turns from its near to its far half; nan where short."""
    above = seen[:, : round(0.66 * seen.shape[1] / 0.875)].float()
    columns = (above @ torch.arange(above.shape[2]).float()) / above.sum(dim=2)  # (N, rows), nan without road
    angles = torch.full((len(seen),), math.nan)
    for i, row in enumerate(columns):
        rows = torch.nonzero(~row.isnan())[:, 0]
        if len(rows) >= SPAN:
            far, middle, near = (rows[len(rows) * k // 4 : len(rows) * (k + 2) // 4] for k in range(3))
            points = [(row[part].mean(), part.float().mean()) for part in (near, middle, far)]
            ways = [
                math.atan2(float(b[0] - a[0]), float(a[1] - b[1])) for a, b in zip(points, points[1:], strict=False)
            ]
            angles[i] = abs(ways[1] - ways[0])
    return angles


class CarRacingProbe(Probe):
    """Roads of named colors on named grounds, from above.

    Layout: shares of road and ground; whether a road leads from the car to the picture's edge; how far from the middle
    the road ahead is, 0 to 1; and its bend, in radians. Labels are {"road", "ground"}, names of colors.
    """

    layout_names = ("road", "ground", "road_in_view", "offset", "bend")
    turn_keys = ("left+up", "right+up")
    colored = True
    delay = 3
    key_layout = "road_in_view"

    @property
    def camera(self) -> Camera:
        """From above, about the car."""
        return orbit()

    def open(self) -> gym.Env:
        """Make the game, which can leave frames undrawn."""
        return SparingCarRacing()

    def draw(self, env: gym.Env, wanted: bool) -> None:
        """Draw frames or not."""
        if isinstance(env, SparingCarRacing):
            env.wanted = wanted

    def prompts(self, known: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        """Choose a known prompt for each palette that they name, the first of each."""
        found: dict[Palette, str] = {}
        for text in known:
            if (palette := palette_of(text)) is not None:
                found.setdefault(palette, text)
        return [(text, {"palette": str(palette), "prompt": text}) for palette, text in found.items()]

    def labels(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """Get the palette."""
        return dict(info["labels"])

    def named(self, prompt: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Get the palette."""
        return dict(parse_palette(str(options["palette"]))._asdict())

    def policy(self, rng: np.random.Generator) -> tuple[Policy, dict[str, Any]]:
        """Follow the road at a gentle speed."""
        policy, options = super().policy(rng)
        assert isinstance(policy, CarRacingPolicy)
        policy.cruise, policy.noise, policy.discipline = rng.uniform(10, 20), 0.0, 1.0
        policy.way, policy.keyboard, policy.leaving = 1, False, False
        return policy, options

    def resting(self, env: gym.Env) -> bool:
        """Say whether the car stands."""
        car: Any = env.unwrapped
        return float(np.linalg.norm(car.car.hull.linearVelocity)) < 0.05

    def stop(self, env: gym.Env) -> Any:
        """Brake."""
        return np.array([0.0, 0.0, 0.8], np.float32)

    def fits(self, env: gym.Env, moving: bool) -> bool:
        """Say whether the car is on the road and looks along it, and no hairpin is near."""
        car: Any = env.unwrapped
        track, hull = np.array(car.track)[:, 1:], car.car.hull  # (tiles, 3): direction, x, y
        away = np.linalg.norm(track[:, 1:] - np.array(hull.position), axis=1)
        here = int(away.argmin())
        near = track[(here + np.arange(-4, TILES)) % len(track), 0]
        turns = np.unwrap(near)
        askew = (hull.angle - track[here, 0] + math.pi) % (2 * math.pi) - math.pi
        straight = float(turns.max() - turns.min()) < HAIRPIN and abs(askew) < 0.35
        return straight and float(away[here]) < 0.5 * game.TRACK_WIDTH and car.on_road

    def steer(self, frame: np.ndarray, labels: Labels, held: float) -> float:
        """Towards the middle of the road ahead."""
        height, width = frame.shape[:2]
        rows = slice(round(AHEAD[0] * height), round(AHEAD[1] * height))
        road = road_of(torch.from_numpy(frame).unsqueeze(0), Palette(labels["road"], labels["ground"]))[0, rows]
        columns = torch.nonzero(road)[:, 1].float()
        if len(columns) <= LEAST:
            return held
        return GAIN * float((columns.mean() + 0.5) / width * 2 - 1)

    def steered(self, target: float, step: int, space: gym.Space) -> Any:
        """Steer there, with a little gas on three steps of five."""
        return np.array([np.clip(target, -1, 1), GAS if step % 5 < 3 else 0.0, 0.0], np.float32)

    def layout(self, frames: Tensor, labels: Sequence[Labels]) -> Tensor:
        """See the class; float (N, 5)."""
        values = torch.full((len(frames), len(self.layout_names)), math.nan)
        palettes = _palettes(labels)
        for palette in dict.fromkeys(palettes):
            rows = [i for i, other in enumerate(palettes) if other == palette]
            road = road_of(frames[rows], palette)
            ground = (distance_to(frames[rows], list(GROUNDS[palette.ground])) < FAR) & ~road
            seen = road_in_view(road)
            height = frames.shape[1]
            ahead = road[:, round(AHEAD[0] * height) : round(AHEAD[1] * height)].float()
            middle = (torch.arange(ahead.shape[2]) + 0.5) / ahead.shape[2] * 2 - 1
            offset = (ahead.sum(dim=1) @ middle / ahead.sum(dim=(1, 2))).abs()
            offset[ahead.sum(dim=(1, 2)) <= LEAST] = math.nan
            parts = (road.float().mean(dim=(1, 2)), ground.float().mean(dim=(1, 2)), reaches_edge(seen).float())
            values[rows] = torch.stack([*parts, offset, bend(seen)], dim=1)
        return values

    def palette_adherence(self, frames: Tensor, labels: Sequence[Labels]) -> Tensor:
        """Say whether no other palette explains a frame better, float (S, n)."""
        found = best_palettes(frames.flatten(0, 1))
        named = [Palette(label["road"], label["ground"]) for label in labels for _ in range(frames.shape[1])]
        same = [a == b for a, b in zip(found, named, strict=True)]
        return torch.tensor(same).float().unflatten(0, frames.shape[:2])

    def labelled(self, episodes: Sequence[Episode]) -> bool:
        """Say whether the recording names roads and grounds: without, nobody can tell where the road is."""
        return has_palettes(episodes)

    def free_policy(self, labels: Sequence[Labels], prompts: Sequence[str]) -> RoadPolicy:
        """Follow the road by sight."""
        return RoadPolicy(_palettes(labels), prompts)

    def scene(self, frames: Tensor, labels: Sequence[Labels]) -> dict[str, float]:
        """Measure the shares of frames that show road, ground, car, and the right palette."""
        seen = look(frames, _palettes(labels))
        return {name: float(getattr(seen, name).float().mean()) for name in ("road", "ground", "car", "palette")}

    def prompt_adherence(
        self, runner: Runner, episodes: Sequence[Episode], segments: Segments, count: int, seed: int
    ) -> tuple[dict[str, Any], dict[str, Image.Image]]:
        """Measure whether the named colours win."""
        return prompt_adherence(runner, episodes, segments, count, seed)


def _palettes(labels: Sequence[Labels]) -> list[Palette]:
    return [Palette(label["road"], label["ground"]) for label in labels]


PROBES = {"car-racing": CarRacingProbe}
