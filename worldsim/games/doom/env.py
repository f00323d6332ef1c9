"""Doom: ViZDoom scenarios as one environment, with prompts from the scenario, its events and what is in view.

The frames show the free Freedoom graphics that ship inside the `vizdoom` package.
"""

from __future__ import annotations

import importlib.util
import math
import os
import tempfile
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from PIL import Image

from worldsim.errors import ActionError, ConfigError, MissingDependency, SessionError
from worldsim.games.doom.events import EVENTS, RESET, TELL, check_event
from worldsim.games.doom.prompts import Narrator
from worldsim.games.doom.scenarios import CONTROLS, KINDS, SCENARIOS, check_scenario
from worldsim.games.doom.view import WIDTH, Thing, View

if TYPE_CHECKING:
    import vizdoom

TICS_PER_SECOND = 35
MIN_AREA = 24  # pixels of 160x120: anything smaller is a speck
APPEARED = 250  # pixels of 160x120: what has just appeared ahead is larger
RETRY = 6  # steps after which a thing is summoned again if it found no place
SCREENS = ((160, 120), (256, 192), (320, 240), (640, 480))  # that the game can draw, width and height


class DoomGame(gym.Env):
    """A ViZDoom scenario in which events can be triggered at any step.

    Observations are uint8 (height, width, 3). Actions are Discrete: the combinations of keys in `controls`, in that
    order. The reward is the scenario's own, less `hurt` for each point of health that is lost. An episode terminates by
    death (or by reaching the goal) and is truncated at the scenario's timeout; the last observation then repeats the
    last frame drawn, as the game draws none after the end. `info["prompt"]` describes the frame: an event from the step
    it happens, things up to HOLD frames late. `info["labels"]` is the true state of this very frame.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": TICS_PER_SECOND / 3}

    def __init__(
        self,
        scenario: str = "health_gathering_supreme",
        render_mode: str | None = "rgb_array",
        repeat: int = 3,
        size: int | tuple[int, int] = (96, 128),
        controls: str = "all",
        hurt: float = 0.0,
        flashes: bool = False,
    ) -> None:
        """Prepare `scenario`; an action is held for `repeat` game tics (1/35 s each).

        Args:
            scenario: a key of SCENARIOS; the option of this name at reset() changes it.
            render_mode: "rgb_array" or None.
            repeat: game tics a step.
            size: height and width of the observations, or one number for a square.
            controls: "all", which suits every scenario, or "walk", "strafe", "turret": see CONTROLS.
            hurt: reward that each lost point of health (of 100) costs.
            flashes: whether the screen turns red with pain, which would look like the event "red light".

        Raises:
            MissingDependency: vizdoom is not installed.
            ConfigError: an unknown scenario, set of controls or render mode, or `repeat` or `size` out of range.
        """
        check_scenario(scenario)
        if controls not in CONTROLS:
            raise ConfigError(f"Doom has no controls {controls!r}; allowed: {', '.join(CONTROLS)}.")
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"Doom cannot render {render_mode!r}; use 'rgb_array' or None.")
        self.size: tuple[int, int] = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        if repeat < 1 or min(self.size) < 1 or max(self.size) > SCREENS[-1][1]:
            raise ConfigError(f"repeat must be at least 1 and size 1 to {SCREENS[-1][1]}, got {repeat} and {size}.")
        _import_vizdoom()
        self.scenario, self.render_mode, self.repeat = scenario, render_mode, repeat
        self.hurt, self.flashes = hurt, flashes
        self.controls, self._combinations = tuple(CONTROLS[controls]), CONTROLS[controls]
        self._depth = controls != "strafe"  # who only steps aside needs no distances, and drawing them takes time
        self.metadata = {**self.metadata, "render_fps": TICS_PER_SECOND / repeat}
        self.observation_space = gym.spaces.Box(0, 255, (*self.size, 3), np.uint8)
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
        """Start an episode; everything in it follows from the seed, the options and the actions.

        Args:
            seed: of the game and of the wordings.
            options: "scenario", a key of SCENARIOS; "events", a list of (step, name of an event): each is triggered
                before that step, or as soon as the one before it has been told and there is room ahead;
                "invulnerable", true for a player that nothing hurts: the episode lasts until its timeout.

        Raises:
            ConfigError: an unknown scenario or event.
        """
        super().reset(seed=seed)
        options = options or {}
        self._pending = [(int(step), check_event(name)) for step, name in options.get("events", ())]
        scenario = check_scenario(options.get("scenario", self.scenario))
        if self._game is None or scenario != self.scenario:
            self.close()
            self.scenario = scenario
            self._game, self._buttons = self._start()
        for command in RESET:
            self._game.send_game_command(command)
        self._game.set_seed(int(self.np_random.integers(2**31)))
        self._game.new_episode()
        if options.get("invulnerable"):
            self._game.send_game_command("god")
        self._narrator = Narrator(SCENARIOS[self.scenario], self.np_random)
        self._states: dict[str, str] = {}  # slot -> event
        self._event, self._told = "", 0
        self._triggered: list[str] = []
        self._steps = 0
        self._look(self._game)
        return self._observe(), self._info()

    def trigger(self, event: str) -> None:
        """Make `event`, a key of EVENTS, happen in the next step; a thing appears only if there is room ahead.

        Raises:
            SessionError: no running episode.
            ConfigError: an unknown event.
        """
        game = self._running()
        self._triggered.append(check_event(event))
        for command in EVENTS[event].commands:
            game.send_game_command(command)

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Hold the keys of `action` for `repeat` tics.

        Raises:
            SessionError: before a reset, or after the end of an episode.
            ActionError: `action` is outside the action space.
        """
        game = self._running()
        if not self.action_space.contains(action):
            allowed = f"a whole number from 0 to {len(self.controls) - 1}"
            raise ActionError(f"Doom got the action {action!r}; it takes {allowed}, for {self.controls}.")
        planned = None if self._triggered else self._next_planned()
        if planned:
            self.trigger(planned[1])
        reward = game.make_action(self._buttons[int(action)], self.repeat)
        self._steps += 1
        finished = game.is_episode_finished()
        if not finished:
            self._look(game)
        if planned and self._event != planned[1]:
            self._pending.append((self._steps + RETRY, planned[1]))
        truncated = bool(finished and game.is_episode_timeout_reached() and not game.is_player_dead())
        return self._observe(), float(reward), bool(finished and not truncated), truncated, self._info()

    def _running(self) -> vizdoom.DoomGame:
        if self._game is None or self._game.is_episode_finished():
            raise SessionError("There is no running episode of Doom to step; call reset() first.")
        return self._game

    def _next_planned(self) -> tuple[int, str] | None:
        """Take the first planned event that can take place now from the plan."""
        if self._event and self._told < TELL:
            return None
        for i, (step, name) in enumerate(self._pending):
            if step <= self._steps and (self.view.room or not EVENTS[name].thing):
                return self._pending.pop(i)
        return None

    def render(self) -> np.ndarray | None:
        """Get the current frame at the game's own resolution, (120, 160, 3) uint8 or more."""
        return self.view.screen.copy() if self.render_mode == "rgb_array" else None

    def get_keys_to_action(self) -> dict[str, int]:
        """Keys held, such as "left+up", and their action."""
        return {key: action for action, key in enumerate(self.controls)}

    def close(self) -> None:
        """End the game and remove its folder."""
        if self._game is not None:
            self._game.close()
            self._game = None
            self._folder.cleanup()

    def _start(self) -> tuple[vizdoom.DoomGame, list[list[bool]]]:
        vizdoom = _import_vizdoom()
        names = sorted({name for combination in self._combinations.values() for name in combination})
        # without these sections the game makes a folder of its own where the program was started
        self._folder = tempfile.TemporaryDirectory(prefix="worldsim-doom-")
        settings = os.path.join(self._folder.name, "vizdoom.ini")
        with open(settings, "w", encoding="ascii") as file:
            file.writelines(f"[{name}.AutoExec]\n" for name in ("Doom", "Heretic", "Hexen", "Strife", "Chex"))
        wanted = min(1.5 * max(self.size[0], self.size[1] * 3 / 4), SCREENS[-1][1])
        width, height = next(screen for screen in SCREENS if screen[1] >= wanted)
        game = vizdoom.DoomGame()
        game.load_config(os.path.join(vizdoom.scenarios_path, f"{self.scenario}.cfg"))
        game.set_doom_config_path(settings)
        if self._combinations is CONTROLS["all"] and (skill := SCENARIOS[self.scenario].skill):
            game.set_doom_skill(skill)  # in these there are only monsters that events have brought
        names_of_pose = ("POSITION_X", "POSITION_Y", "ANGLE", "VELOCITY_X", "VELOCITY_Y")
        self._pose = [getattr(vizdoom.GameVariable, name) for name in names_of_pose]
        game.set_available_buttons([getattr(vizdoom.Button, name) for name in names])
        game.set_screen_resolution(getattr(vizdoom.ScreenResolution, f"RES_{width}X{height}"))
        game.set_screen_format(vizdoom.ScreenFormat.RGB24)
        game.set_depth_buffer_enabled(self._depth)
        game.set_labels_buffer_enabled(True)
        game.set_render_screen_flashes(self.flashes)
        game.set_damage_taken_penalty(self.hurt)
        game.set_episode_timeout(SCENARIOS[self.scenario].timeout)
        game.add_game_args("+sv_cheats 1")  # or the hardest skill takes no commands
        game.set_window_visible(False)
        game.set_mode(vizdoom.Mode.PLAYER)
        game.init()
        return game, [[name in combination for name in names] for combination in self._combinations.values()]

    def _look(self, game: vizdoom.DoomGame) -> None:
        state = game.get_state()
        if state is None or state.labels is None or (self._depth and state.depth_buffer is None):
            raise SessionError("Doom gave no picture; was the game closed from outside? Make a new environment.")
        screen = np.array(state.screen_buffer)
        height, width = screen.shape[:2]
        scale = WIDTH / width
        x, y, angle, speed_x, speed_y = (game.get_game_variable(variable) for variable in self._pose)
        cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))

        def ahead_left(x: float, y: float) -> tuple[float, float]:
            return x * cos + y * sin, y * cos - x * sin

        things = [
            Thing(
                KINDS[label.object_name],
                (label.x + label.width / 2) * scale,
                area,
                *ahead_left(label.object_position_x - x, label.object_position_y - y),
                motion=ahead_left(label.object_velocity_x, label.object_velocity_y),
            )
            for label in state.labels
            if label.object_name in KINDS and (area := label.width * label.height * scale**2) >= MIN_AREA
        ]
        things.sort(key=lambda thing: (-thing.area, thing.x))
        depth = np.full(WIDTH, 63, np.uint8)
        if state.depth_buffer is not None:
            depth = np.array(state.depth_buffer[height // 2, np.arange(WIDTH) * width // WIDTH])
        self._view = View(screen, depth, tuple(things), (x, y), ahead_left(speed_x, speed_y))
        self._happen(self._view)
        event = EVENTS[self._event] if self._event else None
        states = [EVENTS[name].lasting for slot, name in self._states.items() if event is None or slot != event.slot]
        lasting = tuple(words for words in states if words)
        self._prompt = self._narrator.tell(self._view, event.words if event else (), lasting)

    def _happen(self, view: View) -> None:
        """Note what was triggered in the step that led to this view, and forget an event that has been told."""
        self._told += 1
        if self._told >= TELL:
            self._event = ""
        for name in self._triggered:
            event = EVENTS[name]
            if event.slot:
                self._states[event.slot] = name
            elif not any(t.kind == event.thing and t.area >= APPEARED and t.side == "ahead" for t in view.things):
                continue  # it found no place
            self._event, self._told = name, 0
        self._triggered = []

    def _observe(self) -> np.ndarray:
        picture = Image.fromarray(self.view.screen)
        return np.array(picture.resize((self.size[1], self.size[0]), Image.Resampling.BOX))

    def _info(self) -> dict[str, Any]:
        seen = {thing.kind for thing in self.view.things}
        states = {slot: EVENTS[name].value for slot, name in self._states.items()}
        light, fog = states.get("light", "normal"), states.get("fog", "none")
        labels = {
            "scenario": self.scenario,
            **{kind: kind in seen for kind in KINDS.values()},
            "wall": self.view.wall,
            "light": light,
            "dark": light == "dark",
            "fog": fog,
            "event": self._event,
        }
        return {"prompt": self._prompt, "labels": labels}


def check_vizdoom() -> None:
    """Check that vizdoom is installed, without importing it.

    Raises:
        MissingDependency: it is not.
    """
    if importlib.util.find_spec("vizdoom") is None:
        # its dependency pygame-ce would overwrite pygame, and the game itself needs neither
        raise MissingDependency("vizdoom", "playing Doom", "pip install --no-deps vizdoom")


def _import_vizdoom() -> Any:
    check_vizdoom()
    import vizdoom

    return vizdoom
