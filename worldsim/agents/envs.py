"""The environments that an agent learns and plays in: a world or the real game, in the same wrappers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn, VecEnvWrapper

from worldsim.agents.discrete import DiscreteActions
from worldsim.data.admission import read_reward
from worldsim.data.episodes import Dataset, count_steps, read_episode
from worldsim.data.frames import see_frame
from worldsim.data.recipe import Recipe
from worldsim.data.record import RecordConfig, recipe_for
from worldsim.envs.keymap import keymap_for
from worldsim.envs.stable_baselines import SB3VecEnv
from worldsim.envs.vector_env import WorldVectorEnv
from worldsim.errors import ConfigError, DataError
from worldsim.world import World

TRIES = 200  # looks for a clip that has the labels asked for, for each that is wanted


class SeenFrames(gym.Wrapper):
    """A game whose observation is the frame, as a recording has it."""

    def __init__(self, env: gym.Env, size: tuple[int, int]) -> None:
        """Show frames of `size` (height, width)."""
        super().__init__(env)
        self.size = size
        self.observation_space = spaces.Box(0, 255, (*size, 3), np.uint8)

    def reset(self, **kwargs: Any) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(**kwargs)
        return see_frame(self.env, observation, self.size), info

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Pass on the action."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        frame = see_frame(self.env, observation, self.size)
        return frame, read_reward(reward), bool(terminated), bool(truncated), info


def make_game(recipe: Recipe, max_steps: int | None = None) -> gym.Env:
    """Make the real game of a recipe, with the recording's frames and length of episodes."""
    return TimeLimit(SeenFrames(recipe.make_env(), recipe.frame_size), max_steps or recipe.episode_steps)


def find_game(name: str, frame_size: tuple[int, int] | None = None) -> Recipe:
    """Find the recipe of a game, or make one for a Gymnasium id, with frames of another size if one is given.

    Raises:
        DataError: there is no such game.
    """
    return recipe_for(RecordConfig(game=name, frame_size=frame_size))


def game_keys(recipe: Recipe) -> tuple[spaces.Space, dict[str, Any]]:
    """Get the action space of a game and the actions of its keys."""
    env = recipe.make_env()
    try:
        keys = dict(recipe.keys)
        if not keys and env.has_wrapper_attr("get_keys_to_action"):
            keys = keymap_for(env).named()
        return env.action_space, keys
    finally:
        env.close()


@contextlib.contextmanager
def closed_unless(envs: VecEnv) -> Iterator[None]:
    """Close environments that were made for something which is then refused."""
    try:
        yield
    except BaseException:
        envs.close()
        raise


def check_world_game(world: World, recipe: Recipe) -> None:
    """Refuse a world of another game than the one of `recipe`, where both say which they are.

    Raises:
        ConfigError: they have other actions, or other names.
    """
    space, _ = game_keys(recipe)
    if world.action_space != space:
        raise ConfigError(
            f"the world {world.card.name} has the action space {world.action_space}, the game {recipe.name} has {space}"
            "; name the game that the world is of (worldsim info WORLD says which)."
        )
    recording = world.card.provenance.get("recording")
    known = recording.get("env_id") if isinstance(recording, dict) else None
    if isinstance(known, str) and known.split(":")[-1] != recipe.env_id.split(":")[-1]:
        raise ConfigError(
            f"the world {world.card.name} is of {known!r:.100}, the game {recipe.name} is {recipe.env_id!r}; name the "
            "game that the world is of (worldsim info WORLD says which)."
        )


def real_games(recipe: Recipe, count: int, max_steps: int | None = None) -> VecEnv:
    """Make some real games in this process."""
    factories: list[Callable[[], gym.Env]] = [partial(make_game, recipe, max_steps)] * count
    return DummyVecEnv(factories)


def imagined_envs(world: str | Path, count: int, **settings: Any) -> SB3VecEnv:
    """Begin some episodes in a world; `settings` are those of `WorldVectorEnv`."""
    env = gym.make_vec("worldsim/World-v0", world=world, num_envs=count, autoreset_mode="SameStep", **settings)
    return SB3VecEnv(env)


def frame_size(env: VecEnv) -> tuple[int, int]:
    """Get the height and width of the frames of some games."""
    height, width, *_ = env.observation_space.shape or (0, 0)
    return int(height), int(width)


def world_of(env: VecEnv) -> WorldVectorEnv:
    """Get the world under some wrappers.

    Raises:
        ConfigError: there is no world.
    """
    inner = env.unwrapped
    if not isinstance(inner, SB3VecEnv):
        raise ConfigError("these are real games, not a world.")
    return inner.env


class DiscreteEnvs(VecEnvWrapper):
    """Games whose actions are numbers of a discrete action set."""

    def __init__(self, venv: VecEnv, actions: DiscreteActions) -> None:
        """Choose among `actions`."""
        super().__init__(venv, action_space=spaces.Discrete(len(actions)))
        self.values = actions.values

    def step_async(self, actions: np.ndarray) -> None:
        """Pass on the chosen actions."""
        self.venv.step_async(self.values[np.asarray(actions)])

    def reset(self) -> Any:
        """Begin episodes."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Return the results of the games."""
        return self.venv.step_wait()


class ActionRepeat(VecEnvWrapper):
    """Repeats each action: a random policy then moves further, and effects are fewer actions away."""

    def __init__(self, venv: VecEnv, steps: int) -> None:
        """Repeat each action for `steps` steps, or until the episode ends."""
        super().__init__(venv)
        self.steps = steps

    def step_async(self, actions: np.ndarray) -> None:
        """Note the actions."""
        self.actions = actions

    def reset(self) -> Any:
        """Begin episodes."""
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        """Take the steps; add up the rewards of an episode's steps.

        A game that began anew meanwhile has a few steps behind it, whose rewards belong to no action.
        """
        frames, rewards, over, infos = self.venv.step(self.actions)
        rewards, over, infos = np.array(rewards), np.array(over), list(infos)
        for _ in range(self.steps - 1):
            frames, more, ended, found = self.venv.step(self.actions)
            rewards += np.where(over, 0, more)
            infos = [old if was else new for old, was, new in zip(infos, over, found, strict=True)]
            over |= ended
        return frames, rewards, over, infos


class Grayscale(VecEnvWrapper):
    """Frames without colour, (H, W, 1)."""

    def __init__(self, venv: VecEnv) -> None:
        """Drop the colours."""
        shape = (*(venv.observation_space.shape or ())[:2], 1)
        super().__init__(venv, observation_space=spaces.Box(0, 255, shape, np.uint8))

    def reset(self) -> np.ndarray:
        """Begin episodes."""
        return to_grayscale(np.asarray(self.venv.reset()))

    def step_wait(self) -> VecEnvStepReturn:
        """Return the results of the games."""
        frames, rewards, over, infos = self.venv.step_wait()
        for info in infos:
            if "terminal_observation" in info:
                info["terminal_observation"] = to_grayscale(info["terminal_observation"])
        return to_grayscale(np.asarray(frames)), rewards, over, infos


def to_grayscale(frames: np.ndarray) -> np.ndarray:
    """Turn uint8 frames (..., H, W, 3) into their brightness, uint8 (..., H, W, 1)."""
    # Whole numbers, so that one frame alone and many have the same bits.
    weighed = frames.astype(np.uint16) @ np.array([77, 150, 29], np.uint16)  # of 256
    return (weighed >> 8).astype(np.uint8)[..., None]


def agent_observation(
    venv: VecEnv, actions: DiscreteActions | None, stack: int, grayscale: bool, action_repeat: int = 1
) -> VecEnv:
    """Put the wrappers between any games and a learner: actions, colours, frame stack, and a note of each episode."""
    venv = VecMonitor(venv)
    venv = venv if actions is None else DiscreteEnvs(venv, actions)
    venv = Grayscale(venv) if grayscale else venv
    venv = ActionRepeat(venv, action_repeat) if action_repeat > 1 else venv
    return VecFrameStack(venv, stack) if stack > 1 else venv


def sample_starts(
    path: str | Path,
    count: int,
    context_frames: int,
    where: Sequence[str] = (),
    seed: int = 0,
    anywhere: bool = True,
    split: str = "train",
) -> list[dict[str, Any]]:
    """Choose clips of recorded episodes for a world to begin from.

    Args:
        path: of the dataset.
        count: how many.
        context_frames: of each, or fewer near the beginning of an episode.
        where: labels that the last frame must have, such as "ground=grass" or "scenario=take_cover".
        seed: of the choice.
        anywhere: end them anywhere in an episode; False takes the episodes' first frames only.
        split: of the dataset.

    Returns:
        {"frames": uint8 (T, H, W, 3), "actions": (T - 1, ...), "prompt": str} of each.

    Raises:
        DataError: there are no such episodes or clips.
        ConfigError: a label that is not NAME=VALUE.
    """
    pairs = [label.partition("=") for label in where]
    if any(not sign for _, sign, _ in pairs):
        raise ConfigError(f"where is {list(where)}; allowed: labels such as ground=grass.")
    paths, rng = Dataset(path).episodes(split), np.random.default_rng(seed)
    if not paths:
        raise DataError(f"dataset {path} has no episodes in split {split!r}; record more of it.")
    lengths: dict[Path, int] = {}
    found: list[dict[str, Any]] = []
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        file = paths[rng.integers(len(paths))]
        if file not in lengths:
            lengths[file] = count_steps(file)
        last = int(rng.integers(lengths[file])) if anywhere else 0  # the very last frame may be after the end
        clip = read_episode(file, max(0, last + 1 - context_frames), last)
        prompt = clip.prompts[clip.prompt_index[-1]]
        if all(str(prompt.get(name)) == value for name, _, value in pairs):
            found.append({"frames": clip.frames, "actions": clip.actions, "prompt": prompt["text"]})
    if not found:
        raise DataError(f"dataset {path} has no frames with the labels {list(where)} among {TRIES * count} looked at.")
    return found
