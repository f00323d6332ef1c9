"""What the measures need to know of one game: where to begin, how to steer by sight, and how a picture is laid out.

A `Probe` is the part that differs between games; the base class knows nothing of any game and measures no layout.
Probes of single games are in `probe_doom` and `probe_car_racing`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from torch import Tensor

from worldsim.data.recipe import Recipe
from worldsim.errors import MissingDependency
from worldsim.evaluation import real
from worldsim.evaluation.steering import Camera, pan
from worldsim.world import World

Labels = Mapping[str, Any]
"""What the game says of a session beside its prompt, such as the names of its colors."""


class Probe:
    """A game as the measures see it.

    Attributes:
        recipe: how the game is made and played.
        layout_names: the layout measures of a frame, in the order of `layout`.
        turn_keys: keys that turn left and right.
        camera: how a turn moves the picture.
        right: the sign of a turn's amount (see `steering.turns`) when the player turns right.
        colored: whether prompts name colors that can be seen, and first frames are drawn from words.
        delay: steps after which the steering beginner acts on what it saw, about 300 ms.
    """

    layout_names: tuple[str, ...] = ()
    turn_keys: tuple[str, str] = ("left", "right")
    right = -1.0
    delay = 4
    colored = False
    settle = 16  # steps without a key after which a player that walked stands still

    def __init__(self, recipe: Recipe) -> None:
        """Measure the game of a recipe."""
        self.recipe = recipe

    @property
    def camera(self) -> Camera:
        """How a turn moves the picture."""
        return pan()

    def open(self) -> gym.Env:
        """Make the real game. Raises MissingDependency where it is not installed."""
        return self.recipe.make_env()

    def draw(self, env: gym.Env, wanted: bool) -> None:
        """Tell the game whether the next frames are wanted: some games are slow to draw."""

    def prompts(self, known: Sequence[str]) -> list[tuple[str, dict[str, Any]]]:
        """The prompts that sessions are played under, of those a world knows, with the options of a reset to match."""
        plain = sorted(known, key=lambda text: (len(text.split(",")), len(text)))
        return [(text, {}) for text in plain[:1]] or [("", {})]

    def labels(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """What `layout` and `steer` need to know of a session, from an info of the game."""
        return {}

    def named(self, prompt: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """The labels of a session that begins from a prompt, one of `prompts` with its options."""
        return {}

    def explorer(self, rng: np.random.Generator) -> tuple[Any, dict[str, Any]]:
        """A policy that plays up to a start, and the options of the reset that it asks for."""
        explorer = self.recipe.make_explorer()
        options = explorer.begin(rng, "heldout")
        return explorer, {key: value for key, value in options.items() if key not in real.SUDDEN}

    def resting(self, env: gym.Env) -> bool:
        """Whether the player has come to rest."""
        return True

    def stop(self, env: gym.Env) -> Any:
        """The action that brings the player to rest."""
        return self.recipe.keys[""]

    def fits(self, env: gym.Env, moving: bool) -> bool:
        """Whether a session may begin here."""
        return True

    def steer(self, frame: np.ndarray, labels: Labels, held: float) -> float:
        """Where to go, -1 (left) to 1 (right), seen in one frame uint8 (H, W, 3); `held` is the last answer."""
        return float(brightest(frame))

    def steered(self, wish: float, step: int, space: gym.Space) -> Any:
        """The action that goes where `wish` says."""
        names = list(self.recipe.keys)
        side = "left" if wish < 0 else "right"
        wanted = "up" if abs(wish) < 0.15 else f"{side}+up" if abs(wish) < 0.6 else side
        options = [name for name in (wanted, side, "") if name in names] or names
        return self.recipe.keys[options[0]]

    def layout(self, frames: Tensor, labels: Sequence[Labels]) -> Tensor:
        """The layout measures of frames uint8 (N, H, W, 3), one label each; float (N, len(layout_names)).

        A measure that a frame does not have (the place of a sky that is not there) is nan.
        """
        return frames.new_empty(len(frames), 0).float()

    def palette_kept(self, frames: Tensor, labels: Sequence[Labels]) -> Tensor | None:
        """Which frames uint8 (S, n, H, W, 3) show the colors of their session, float (S, n); None: no colors named."""
        return None


def brightest(frame: np.ndarray) -> float:
    """The brightest part of the middle rows of a frame (H, W, 3), -1 (left edge) to 1 (right edge)."""
    height, width = frame.shape[:2]
    columns = frame[height // 3 : 2 * height // 3].astype(np.float32).mean(axis=(0, 2))
    body = max(1, width // 8)
    smooth = np.convolve(np.pad(columns, body, mode="edge"), np.ones(2 * body + 1) / (2 * body + 1), mode="valid")
    return 2 * (float(smooth.argmax()) + 0.5) / width - 1


def recipe_of(world: World) -> Recipe | None:
    """The recipe of the game that a world was recorded from, or None where it is not known or not installed."""
    recording = dict(world.card.provenance.get("recording") or {})
    try:
        from worldsim.data.games import recipes

        known = recipes()
    except MissingDependency:
        return None
    named = known.get(str(recording.get("recipe") or ""))
    found = [recipe for recipe in known.values() if recipe.env_id == recording.get("env_id")]
    return named or (found[0] if found else None)


def probe_of(world: World) -> Probe | None:
    """The probe of a world's game, or None where the game is not known, not installed or has other actions."""
    recipe = recipe_of(world)
    if recipe is None or "" not in recipe.keys:
        return None
    probe: Probe
    if recipe.name == "car-racing":
        from worldsim.evaluation.probe_car_racing import CarRacingProbe

        probe = CarRacingProbe(recipe)
    elif recipe.name == "doom-health-gathering":
        from worldsim.evaluation.probe_doom import DoomProbe

        probe = DoomProbe(recipe)
    else:
        probe = Probe(recipe)
    try:
        env = probe.open()
    except MissingDependency:
        return None
    same = env.action_space == world.action_space
    env.close()
    return probe if same else None
