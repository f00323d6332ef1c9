"""A toy game, a player over it, and fingers for its keyboard."""

import gc
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

pygame = pytest.importorskip("pygame")
imageio = pytest.importorskip("imageio.v3")

from worldsim.demos.screen import Screen, open_window  # noqa: E402
from worldsim.demos.session import Session, Side  # noqa: E402
from worldsim.demos.window import Player  # noqa: E402
from worldsim.errors import EngineFull, PromptError  # noqa: E402

KEYS = {"": 0, "left": 1, "right": 2, "up": 3, "left+up": 4, "space": 5}


class Toy(gym.Env):
    """A game whose frames show the step and the action."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 200}
    action_space = spaces.Discrete(6)
    observation_space = spaces.Box(0, 255, (20, 30, 3), np.uint8)
    words, limit = "plain", 1000

    def __init__(self):
        self.render_mode, self.actions = "rgb_array", []

    def get_keys_to_action(self):
        return KEYS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.options, self.count, self.actions = dict(options or {}), 0, []
        self.words = self.options.get("prompt", "plain")
        return self._frame(0), self._info()

    def step(self, action):
        self.count += 1
        self.actions.append(int(action))
        return self._frame(action), 0.5, self.count >= self.limit, self.count >= 7, self._info()

    def _frame(self, action):
        noise = self.np_random.integers(0, 255, (20, 30, 3), np.uint8)
        noise[:4, :4] = (self.count % 256, action, 99)
        self.frame = noise
        return noise.copy()

    def _info(self):
        return {"prompt": self.words, "labels": {"length": len(self.words)}}


class Saved:
    """A snapshot of a toy world."""

    def __init__(self, world):
        self.world = world
        self.held = world.count, world.words, tuple(world.actions), world.np_random.bit_generator.state, world.frame
        world.saved.append(self)

    def close(self):
        self.world.saved.remove(self)


class World(Toy):
    """The same as a generated world: with prompts, starts from given frames, and room for so many snapshots."""

    prompts = ["plain", "a road at night", "snow"]
    room = 1000

    def __init__(self):
        super().__init__()
        self.saved = []

    def snapshot(self):
        if len(self.saved) >= self.room:
            raise EngineFull("no room")
        return Saved(self)

    def restore(self, saved):
        assert saved in self.saved
        self.count, self.words, actions, self.np_random.bit_generator.state, self.frame = saved.held
        self.actions = list(actions)
        return self.frame.copy()

    def set_prompt(self, text):
        if "lava" in text:
            raise PromptError(f"no lava: {text}")
        self.words = text


class Endless(Toy):
    """Never truncates."""

    def step(self, action):
        return *super().step(action)[:3], False, self._info()


def make_player(folder, *envs, fps=200.0):
    open_window("toy")
    session = Session([Side(env, f"toy {i}") for i, env in enumerate(envs)], seed=4)
    screen = Screen([side.picture.shape[:2] for side in session.sides])
    return Player(session, screen, folder=folder, name="toy", fps=fps)


def press(player, *keys, up=False):
    for key in keys:
        pygame.event.post(pygame.event.Event(pygame.KEYUP if up else pygame.KEYDOWN, key=getattr(pygame, f"K_{key}")))
    while player.poll():
        pass


def type_text(player, text):
    pygame.event.post(pygame.event.Event(pygame.TEXTINPUT, text=text))
    while player.poll():
        pass


def read_video(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the reader leaves its pipes to the garbage collector
        video = imageio.imread(path)
        gc.collect()
    return video
