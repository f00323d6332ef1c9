"""What the measures need to know of one game: where to begin, how to steer by sight, and the layout of a frame.

A `Probe` holds what differs between games; the base class knows no game and measures no layout. The probe of a game
is in the game's folder, where `worldsim.registry` finds it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from PIL import Image
from torch import Tensor

from worldsim.data.episodes import Episode
from worldsim.data.policy import Policy
from worldsim.data.recipe import Recipe
from worldsim.errors import MissingDependency
from worldsim.evaluation import real
from worldsim.evaluation.event_book import EventBook
from worldsim.evaluation.rollout import RolloutPolicy, Runner, Segments
from worldsim.evaluation.steering import Camera, pan
from worldsim.registry import Game, find_recipe, recipe_recorded
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
        colored: whether prompts name visible colors, and first frames are sampled from prompts.
        delay: steps after which the steering beginner acts on what it saw, about 300 ms.
        settle: steps without a key after which a player that walked stands still.
        key_layout: the layout measure, of those that are yes or no, that tells a bad session; "" for none.
        events: what can be typed while playing, or None.
    """

    layout_names: tuple[str, ...] = ()
    turn_keys: tuple[str, str] = ("left", "right")
    right = -1.0
    delay = 4
    colored = False
    settle = 16
    key_layout = ""
    events: EventBook | None = None

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
        """Choose prompts to play under, of those a world knows, with the options of a reset to match."""
        plain = sorted(known, key=lambda text: (len(text.split(",")), len(text)))
        return [(text, {}) for text in plain[:1]] or [("", {})]

    def labels(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """Say what `layout` and `steer` need to know of a session, from an info of the game."""
        return {}

    def named(self, prompt: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Get the labels of a session that begins from a prompt, one of `prompts` with its options."""
        return {}

    def policy(self, rng: np.random.Generator) -> tuple[Policy, dict[str, Any]]:
        """Begin an episode of the policy that plays up to a start; return it and the options of its reset."""
        policy = self.recipe.make_policy()
        return policy, real.begin_options(self.recipe, policy, rng)

    def resting(self, env: gym.Env) -> bool | None:
        """Say whether the player has come to rest; None for a game in which players stop at once without a key."""
        return None

    def stop(self, env: gym.Env) -> Any:
        """Get the action that brings the player to rest."""
        return self.recipe.keys[""]

    def fits(self, env: gym.Env, moving: bool) -> bool:
        """Say whether a session may begin here."""
        return True

    def steer(self, frame: np.ndarray, labels: Labels, held: float) -> float:
        """Say where to steer, -1 (left) to 1 (right), from one frame uint8 (H, W, 3); `held` is the last answer."""
        return float(brightest(frame))

    def steered(self, target: float, step: int, space: gym.Space) -> Any:
        """Get the action that steers to `target`."""
        names = list(self.recipe.keys)
        side = "left" if target < 0 else "right"
        wanted = "up" if abs(target) < 0.15 else f"{side}+up" if abs(target) < 0.6 else side
        instead = "" if wanted == "up" else side  # who cannot go ahead waits
        options = [name for name in (wanted, instead, "") if name in names] or names
        return self.recipe.keys[options[0]]

    def layout(self, frames: Tensor, labels: Sequence[Labels]) -> Tensor:
        """Get the layout measures of frames uint8 (N, H, W, 3), one label each; float (N, len(layout_names)).

        A measure that a frame does not have (the place of a sky that is not there) is nan.
        """
        return frames.new_empty(len(frames), 0).float()

    def palette_adherence(self, frames: Tensor, labels: Sequence[Labels]) -> Tensor | None:
        """Say which frames uint8 (S, n, H, W, 3) show their session's colors, float (S, n); None: no colors named."""
        return None

    def labelled(self, episodes: Sequence[Episode]) -> bool:
        """Say whether a recording has the labels that this probe needs to look at its frames."""
        return True

    def free_policy(self, labels: Sequence[Labels], prompts: Sequence[str]) -> RolloutPolicy | None:
        """Make a policy that plays a long free run of some sessions by sight; None: recorded actions are played."""
        return None

    def scene(self, frames: Tensor, labels: Sequence[Labels]) -> dict[str, float]:
        """Say what the end of such a run shows, as shares of frames uint8 (N, H, W, 3), one label each."""
        return {}

    def prompt_adherence(
        self, runner: Runner, episodes: Sequence[Episode], segments: Segments, count: int, seed: int
    ) -> tuple[dict[str, Any], dict[str, Image.Image]] | None:
        """Measure whether a world shows what its prompts name; None: this game has no such prompts.

        Args:
            runner: predicts the frames.
            episodes: recorded ones.
            segments: recorded contexts to change the prompt in.
            count: starts from prompts alone, of each kind.
            seed: of the choice of prompts.

        Returns:
            The report, and contact sheets by the names of their files.
        """
        return None


def brightest(frame: np.ndarray) -> float:
    """Get the brightest part of the middle rows of a frame (H, W, 3), -1 (left edge) to 1 (right edge)."""
    height, width = frame.shape[:2]
    columns = frame[height // 3 : 2 * height // 3].astype(np.float32).mean(axis=(0, 2))
    body = max(1, width // 8)
    smooth = np.convolve(np.pad(columns, body, mode="edge"), np.ones(2 * body + 1) / (2 * body + 1), mode="valid")
    return 2 * (float(smooth.argmax()) + 0.5) / width - 1


def recipe_of(world: World) -> Recipe | None:
    """Find the recipe of the game that a world was recorded from; None where it is not known or not installed."""
    recording = dict(world.card.provenance.get("recording") or {})
    try:
        named = find_recipe(str(recording.get("recipe") or ""))
    except MissingDependency:
        return None
    return named or recipe_recorded(str(recording.get("env_id") or ""))


def probe_of(world: World) -> Probe | None:
    """Make the probe of a world's game; None where the game is not known, not installed or has other actions."""
    recipe = recipe_of(world)
    if recipe is None or "" not in recipe.keys:
        return None
    try:
        probe = Game(recipe.package).probe(recipe) or Probe(recipe)
        env = probe.open()
    except MissingDependency:
        return None
    same = env.action_space == world.action_space
    env.close()
    return probe if same else None
