"""Doom: ViZDoom scenarios as a small environment, with prompts from the scenario and what is in view.

The frames show the free Freedoom graphics that ship inside the `vizdoom` package.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from PIL import Image

from worldsim.data.games.doom_walker import Walker
from worldsim.data.recipe import Recipe
from worldsim.errors import ActionError, ConfigError, MissingDependency, SessionError, did_you_mean

if TYPE_CHECKING:
    import vizdoom

TICS_PER_SECOND = 35
NEAR = 7  # depth units (8 map units each): a wall nearer than this fills the picture from top to bottom
MIN_AREA = 24  # pixels of 160x120: anything smaller is a speck at 64x64
HOLD = 8  # frames a prompt stays, so that it does not flicker
MAX_WORDS = 14

WALK = {
    "": (),
    "up": ("MOVE_FORWARD",),
    "left": ("TURN_LEFT",),
    "right": ("TURN_RIGHT",),
    "left+up": ("TURN_LEFT", "MOVE_FORWARD"),
    "right+up": ("TURN_RIGHT", "MOVE_FORWARD"),
}
STRAFE = {"": (), "left": ("MOVE_LEFT",), "right": ("MOVE_RIGHT",)}
TURRET = {
    "": (),
    "left": ("TURN_LEFT",),
    "right": ("TURN_RIGHT",),
    "space": ("ATTACK",),
    "left+space": ("TURN_LEFT", "ATTACK"),
    "right+space": ("TURN_RIGHT", "ATTACK"),
}


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What the player can do in a ViZDoom scenario, and the words for what it shows."""

    controls: Mapping[str, tuple[str, ...]]  # keys held -> game buttons, in the order of the action space
    places: tuple[str, ...]  # wordings for the scenery
    kinds: Mapping[str, str]  # the game's object name -> kind


SCENARIOS = {
    "health_gathering_supreme": Scenario(
        controls=WALK,
        places=(
            "a grey stone maze over green acid",
            "a maze with a green acid floor",
            "grey stone walls and green acid",
            "an acid floor maze at night",
            "the acid maze of Doom",
        ),
        kinds={"CustomMedikit": "medkit", "Poison": "poison"},
    ),
    "my_way_home": Scenario(
        controls=WALK,
        places=(
            "a maze of rooms",  # each room has walls of its own, so no colour is named
            "rooms and corridors",
            "a walk through many rooms",
            "a maze of rooms in Doom",
        ),
        kinds={"GreenArmor": "armor"},
    ),
    "take_cover": Scenario(
        controls=STRAFE,
        places=(
            "a long grey hall",
            "a hall with a brick wall",
            "a wide grey room with bricks",
            "a firing range in Doom",
        ),
        kinds={"DoomImp": "imp", "DoomImpBall": "fireball"},
    ),
    "defend_the_center": Scenario(
        controls=TURRET,
        places=(
            "a round brown arena",
            "a round arena at night",
            "the middle of a round hall",
            "a circular arena in Doom",
        ),
        kinds={"MarineChainsawVzd": "marine", "Demon": "demon"},
    ),
}
NOUNS = {  # kind -> wordings for one, wordings for several
    "medkit": (("a medkit", "a health kit", "a white medkit"), ("medkits", "health kits", "some medkits")),
    "poison": (("a poison vial", "a vial of poison", "poison"), ("poison vials", "vials of poison")),
    "armor": (("a green armor", "green armor"), ("green armors",)),
    "imp": (("an imp", "a brown imp"), ("imps", "several imps")),
    "fireball": (("a fireball", "a ball of fire"), ("fireballs", "balls of fire")),
    "marine": (("a marine", "a soldier"), ("marines", "soldiers")),
    "demon": (("a pink demon", "a demon"), ("demons", "pink demons")),
}
WALLS = ("a wall right ahead", "facing a wall", "close to a wall")
SIDES = {
    "left": ("to the left", "on the left"),
    "ahead": ("ahead", "in front"),
    "right": ("to the right", "on the right"),
}


@dataclass(frozen=True)
class Thing:
    """One object in view, in pixels of the (120, 160) screen."""

    kind: str
    x: float  # centre column
    area: int

    @property
    def side(self) -> str:
        """The third of the picture it is in: left, ahead or right."""
        return ("left", "ahead", "right")[min(int(self.x * 3 / 160), 2)]


@dataclass(frozen=True)
class View:
    """The true state behind one frame."""

    screen: np.ndarray  # (120, 160, 3) uint8
    depth: np.ndarray  # (160,) distance to the wall along the horizon, 1 (touching) to 63 (far)
    things: tuple[Thing, ...]  # largest first

    @property
    def wall(self) -> bool:
        """Whether the picture shows nothing but wall."""
        return bool(np.sort(self.depth)[-16] < NEAR)  # all but a tenth of the columns

    def summary(self) -> tuple[tuple[str, str, bool], ...]:
        """What a prompt tells: (kind, side, several) of each kind in view, the nearest kind first."""
        kinds = dict.fromkeys(thing.kind for thing in self.things)
        groups = [[thing for thing in self.things if thing.kind == kind] for kind in kinds]
        # several only if they are on one side, as the prompt names one side for all
        return tuple((g[0].kind, g[0].side, sum(thing.side == g[0].side for thing in g) > 1) for g in groups)


class Narrator:
    """Words for what is in view: new words only when the view has changed and the old ones have been held a while."""

    def __init__(self, scenario: Scenario, rng: np.random.Generator) -> None:
        """Draw all wordings from `rng`."""
        self.scenario, self.rng = scenario, rng
        self.told: Any = None
        self.age = HOLD
        self.prompt = ""

    def tell(self, view: View) -> str:
        """The prompt in force for this view."""
        seen = (view.summary(), view.wall)
        self.age += 1
        if seen != self.told and self.age >= HOLD:
            self.told, self.age = seen, 0
            self.prompt = self._word(*seen)
        return self.prompt

    def _word(self, summary: tuple[tuple[str, str, bool], ...], wall: bool) -> str:
        parts = [f"{self._pick(NOUNS[kind][several])} {self._pick(SIDES[side])}" for kind, side, several in summary]
        parts = [self._pick(self.scenario.places), *parts, *([self._pick(WALLS)] if wall else [])]
        while sum(len(part.split()) for part in parts) > MAX_WORDS:
            parts.pop()
        if len(parts) == 2 and self.rng.random() < 0.3:
            parts.reverse()
        return ", ".join(parts)

    def _pick(self, wordings: tuple[str, ...]) -> str:
        return wordings[self.rng.integers(len(wordings))]


class DoomGame(gym.Env):
    """A ViZDoom scenario at 64x64.

    Observations are uint8 (size, size, 3). Actions are Discrete: the combinations of keys in `controls`, in that order.
    The reward is the scenario's own. An episode terminates by death (or by reaching the goal) and is truncated at the
    scenario's timeout; the last observation then repeats the last frame drawn, as the game draws none after the end.
    `info["prompt"]` describes the frame, up to HOLD frames late; `info["labels"]` is the true state of this very frame.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": TICS_PER_SECOND / 3}

    def __init__(
        self,
        scenario: str = "health_gathering_supreme",
        render_mode: str | None = "rgb_array",
        repeat: int = 3,
        size: int = 64,
    ) -> None:
        """Prepare `scenario`; an action is held for `repeat` game tics (1/35 s each).

        Raises:
            MissingDependency: vizdoom is not installed.
            ConfigError: an unknown scenario or render mode, or `repeat` or `size` below 1.
        """
        if scenario not in SCENARIOS:
            raise ConfigError(f"Doom has no controls for the scenario {scenario!r}.{did_you_mean(scenario, SCENARIOS)}")
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"Doom cannot render {render_mode!r}; use 'rgb_array' or None.")
        if repeat < 1 or size < 1:
            raise ConfigError(f"repeat and size must be at least 1, got repeat={repeat} and size={size}.")
        _import_vizdoom()
        self.scenario, self.render_mode, self.repeat, self.size = scenario, render_mode, repeat, size
        self.controls = tuple(SCENARIOS[scenario].controls)
        self.metadata = {**self.metadata, "render_fps": TICS_PER_SECOND / repeat}
        self.observation_space = gym.spaces.Box(0, 255, (size, size, 3), np.uint8)
        self.action_space = gym.spaces.Discrete(len(self.controls))
        self._game: vizdoom.DoomGame | None = None
        self._view: View | None = None

    @property
    def view(self) -> View:
        """The true state behind the current frame.

        Raises:
            SessionError: before the first reset.
        """
        if self._view is None:
            raise SessionError("Doom has no frame yet; call reset() first.")
        return self._view

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start an episode; everything in it follows from the seed and the actions."""
        super().reset(seed=seed)
        if self._game is None:
            self._game, self._buttons = self._start()
        self._game.set_seed(int(self.np_random.integers(2**31)))
        self._game.new_episode()
        self._narrator = Narrator(SCENARIOS[self.scenario], self.np_random)
        self._look(self._game)
        return self._observe(), self._info()

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold the keys of `action` for `repeat` tics.

        Raises:
            SessionError: before a reset, or after the end of an episode.
            ActionError: `action` is outside the action space.
        """
        game = self._game
        if game is None or game.is_episode_finished():
            raise SessionError("There is no running episode of Doom to step; call reset() first.")
        if not self.action_space.contains(action):
            allowed = f"a whole number from 0 to {len(self.controls) - 1}"
            raise ActionError(f"Doom got the action {action!r}; it takes {allowed}, for {self.controls}.")
        reward = game.make_action(self._buttons[int(action)], self.repeat)
        finished = game.is_episode_finished()
        if not finished:
            self._look(game)
        truncated = bool(finished and game.is_episode_timeout_reached() and not game.is_player_dead())
        return self._observe(), float(reward), bool(finished and not truncated), truncated, self._info()

    def render(self) -> np.ndarray | None:
        """The current frame at the game's own resolution, (120, 160, 3) uint8."""
        return self.view.screen.copy() if self.render_mode == "rgb_array" else None

    def get_keys_to_action(self) -> dict[str, int]:
        """The action for each combination of keys, such as "left+up"; "" is no key."""
        return {key: action for action, key in enumerate(self.controls)}

    def close(self) -> None:
        """Stop the game; it may be called again."""
        if self._game is not None:
            self._game.close()
            self._game = None
            self._folder.cleanup()

    def _start(self) -> tuple[vizdoom.DoomGame, list[list[bool]]]:
        vizdoom = _import_vizdoom()
        controls = SCENARIOS[self.scenario].controls
        names = sorted({name for combination in controls.values() for name in combination})
        # without these sections the game makes a folder of its own where the program was started
        self._folder = tempfile.TemporaryDirectory(prefix="worldsim-doom-")
        settings = os.path.join(self._folder.name, "vizdoom.ini")
        with open(settings, "w", encoding="ascii") as file:
            file.writelines(f"[{name}.AutoExec]\n" for name in ("Doom", "Heretic", "Hexen", "Strife", "Chex"))
        game = vizdoom.DoomGame()
        game.load_config(os.path.join(vizdoom.scenarios_path, f"{self.scenario}.cfg"))
        game.set_doom_config_path(settings)
        game.set_available_buttons([getattr(vizdoom.Button, name) for name in names])
        game.set_screen_resolution(vizdoom.ScreenResolution.RES_160X120)
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_depth_buffer_enabled(True)
        game.set_labels_buffer_enabled(True)
        game.set_window_visible(False)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.init()
        return game, [[name in combination for name in names] for combination in controls.values()]

    def _look(self, game: vizdoom.DoomGame) -> None:
        state = game.get_state()
        if state is None or state.depth_buffer is None or state.labels is None:
            raise SessionError("Doom gave no picture; was the game closed from outside? Make a new environment.")
        kinds = SCENARIOS[self.scenario].kinds
        things = [
            Thing(kinds[label.object_name], label.x + label.width / 2, label.width * label.height)
            for label in state.labels
            if label.object_name in kinds and label.width * label.height >= MIN_AREA
        ]
        things.sort(key=lambda thing: (-thing.area, thing.x))
        horizon = state.depth_buffer.shape[0] // 2
        self._view = View(np.array(state.screen_buffer), np.array(state.depth_buffer[horizon]), tuple(things))
        self._prompt = self._narrator.tell(self._view)

    def _observe(self) -> np.ndarray:
        picture = Image.fromarray(self.view.screen)
        return np.array(picture.resize((self.size, self.size), Image.Resampling.BOX))

    def _info(self) -> dict[str, Any]:
        seen = {thing.kind for thing in self.view.things}
        labels: dict[str, Any] = {kind: kind in seen for kind in SCENARIOS[self.scenario].kinds.values()}
        return {"prompt": self._prompt, "labels": {"scenario": self.scenario, **labels, "wall": self.view.wall}}


def _import_vizdoom() -> Any:
    try:
        import vizdoom
    except ImportError as error:
        # its dependency pygame-ce would overwrite pygame, and the game itself needs neither
        raise MissingDependency("vizdoom", "playing Doom", "pip install --no-deps vizdoom") from error
    return vizdoom


def make_env(scenario: str = "health_gathering_supreme") -> gym.Env:
    """The environment of a scenario."""
    return DoomGame(scenario)


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


def _recipe(name: str, scenario: str, summary: str) -> Recipe:
    return Recipe(
        name=name,
        summary=summary,
        env_id=f"ViZDoom {scenario}",
        make_env=functools.partial(make_env, scenario),
        make_explorer=Walker,
        fps=TICS_PER_SECOND / 3,
        episode_steps=400,
        keys={key: action for action, key in enumerate(SCENARIOS[scenario].controls)},
        notices=NOTICES,
        packages=("vizdoom", "numpy"),
    )


RECIPES = (
    _recipe("doom", "health_gathering_supreme", "walking a stone maze over acid, collecting medkits"),
    _recipe("doom-my-way-home", "my_way_home", "looking for a green armor in a maze of rooms"),
    _recipe("doom-take-cover", "take_cover", "dodging the fireballs of imps"),
    _recipe("doom-defend-the-center", "defend_the_center", "shooting at what closes in from all sides"),
)
