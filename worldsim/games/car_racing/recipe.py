"""How CarRacing is recorded."""

from __future__ import annotations

import gymnasium as gym

from worldsim.data.recipe import Recipe
from worldsim.games.car_racing.env import KEYS, CarRacingGame
from worldsim.games.car_racing.policy import EPISODE_STEPS, CarRacingPolicy


def make_env() -> gym.Env:
    """Make the game as it is recorded."""
    return CarRacingGame()


RECIPE = Recipe(
    name="car-racing",
    summary="CarRacing-v3 with named palettes: steer, gas and brake on random tracks, in colours told by the prompt.",
    env_id="CarRacing-v3",
    make_env=make_env,
    make_policy=CarRacingPolicy,
    fps=12.5,
    episode_steps=EPISODE_STEPS,
    keys=KEYS,
    notices=("Frames are drawn by the code of Gymnasium's CarRacing (MIT licence, Farama Foundation and OpenAI).",),
    packages=("gymnasium", "box2d", "pygame", "numpy"),
    unseen=True,
    scheduled_options=("changes",),
)

RECIPES = (RECIPE,)
