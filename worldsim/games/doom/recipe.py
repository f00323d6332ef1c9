"""How Doom is recorded: all scenarios with events in one recipe, and each scenario by itself."""

from __future__ import annotations

import functools

import gymnasium as gym

from worldsim.data.recipe import Recipe
from worldsim.games.doom.env import TICS_PER_SECOND, DoomGame, check_vizdoom
from worldsim.games.doom.policy import EPISODE_STEPS, DoomPolicy
from worldsim.games.doom.scenarios import CONTROLS, SCENARIOS


def check_installed() -> None:
    """Raise MissingDependency where vizdoom is not installed; the game itself imports it when it starts."""
    check_vizdoom()


def make_env() -> gym.Env:
    """Make the game as it is recorded: all scenarios, the policy draws one."""
    return DoomGame()


def make_small_env(scenario: str) -> gym.Env:
    """Make one scenario with its own controls, at 64x64; where pain costs reward it can be seen."""
    about = SCENARIOS[scenario]
    return DoomGame(scenario, size=64, controls=about.controls, hurt=about.hurt, flashes=about.hurt > 0)


NOTICES = (
    """The graphics in these frames are those of Freedoom 0.13.0 (https://freedoom.github.io), under this licence:

Copyright (c) 2001-2024 Contributors to the Freedoom project. All rights reserved.

Redistribution and use in source and binary forms, with or without modification, are permitted provided that the
following conditions are met:

  * Redistributions of source code must retain the above copyright notice, this list of conditions and the following
    disclaimer.
  * Redistributions in binary form must reproduce the above copyright notice, this list of conditions and the
    following disclaimer in the documentation and/or other materials provided with the distribution.
  * Neither the name of the Freedoom project nor the names of its contributors may be used to endorse or promote
    products derived from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED WARRANTIES,
INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE ARE
DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT OWNER OR CONTRIBUTORS BE LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL,
SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR
SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY,
WHETHER IN CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE
OF THIS SOFTWARE, EVEN IF ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.

For a list of contributors to the Freedoom project, see the file CREDITS of that project.""",
    "Recorded with ViZDoom (https://github.com/Farama-Foundation/ViZDoom), MIT License, Copyright (C) 2016 by Wojciech "
    "Jaskowski, Michal Kempka, Grzegorz Runc, Jakub Toczek, Marek Wydmuch.",
)


RECIPE = Recipe(
    name="doom",
    summary="four scenarios of Doom with things that appear, lights and fog, in words: walk, turn, strafe, shoot "
    "(the shipped world doom is of doom-health-gathering)",
    env_id="ViZDoom " + ", ".join(SCENARIOS),
    make_env=make_env,
    make_policy=DoomPolicy,
    fps=TICS_PER_SECOND / 3,
    episode_steps=EPISODE_STEPS,
    frame_size=(96, 128),
    keys={key: action for action, key in enumerate(CONTROLS["all"])},
    protect={"invulnerable": True},
    notices=NOTICES,
    packages=("vizdoom", "numpy"),
    unseen=True,
    scheduled_options=("events",),
)


def _small_recipe(scenario: str, summary: str, steps: int = EPISODE_STEPS) -> Recipe:
    return Recipe(
        name=f"doom-{scenario.removesuffix('_supreme').replace('_', '-')}",
        summary=summary,
        env_id=f"ViZDoom {scenario}",
        make_env=functools.partial(make_small_env, scenario),
        make_policy=functools.partial(DoomPolicy, scenario),
        fps=TICS_PER_SECOND / 3,
        episode_steps=steps,
        keys={key: action for action, key in enumerate(CONTROLS[SCENARIOS[scenario].controls])},
        protect={"invulnerable": True},
        notices=NOTICES,
        packages=("vizdoom", "numpy"),
    )


RECIPES = (
    RECIPE,
    _small_recipe("health_gathering_supreme", "walking a stone maze over acid, collecting medkits: the world doom"),
    _small_recipe("my_way_home", "looking for a green armor in a maze of rooms"),
    _small_recipe("take_cover", "dodging the fireballs of imps", steps=700),  # 2100 tics, the scenario's timeout
    _small_recipe("defend_the_center", "shooting at what closes in from all sides"),
)
