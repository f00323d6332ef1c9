"""fork, spawn, pickle and deepcopy of environments, as vector environments, tree searches and evaluators make them."""

from __future__ import annotations

import copy
import multiprocessing as mp
import pickle
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

import worldsim.envs  # noqa: F401  -- registers the environments
from worldsim.engine.engine import Engine
from worldsim.errors import ConfigError
from worldsim.world import World

WAIT = 120  # seconds for a process to begin on a busy machine


def make(path: Any, **kwargs: Any) -> gym.Env:
    return gym.make("worldsim/World-v0", world=path, **kwargs)


def make_vector(path: Any, **kwargs: Any) -> Any:
    return gym.make_vec("worldsim/World-v0", num_envs=2, world=path, threads=1, **kwargs)


def frames(env: Any, actions: list[int]) -> list[np.ndarray]:
    many = getattr(env, "num_envs", None)
    return [env.step(action if many is None else np.full(many, action))[0] for action in actions]


def alike(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


MAKERS: dict[str, Callable[..., Any]] = {
    "single": make,
    "unwrapped": lambda path: make(path).unwrapped,
    "time limit": lambda path: make(path, max_episode_steps=50),
    "with a prompt": lambda path: make(path, prompt="a cart"),
    "vector": make_vector,
    "same step": lambda path: make_vector(path, autoreset_mode="SameStep"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_a_deep_copy_forks(world: World, kind: str) -> None:
    env = MAKERS[kind](world.path)
    env.reset(seed=1)
    frames(env, [1, 0])
    copied = copy.deepcopy(env)
    later = frames(copied, [1, 1, 0])
    assert alike(later, frames(env, [1, 1, 0])), "a copy goes on as its original"
    env.reset()
    copied.reset()
    assert alike(frames(copied, [1, 0]), frames(env, [1, 0])), "so do its generators"
    env.reset()
    assert not alike(frames(copied, [1, 0]), frames(env, [0, 1])), "and neither changes the other"
    env.close()
    frames(copied, [1])
    copied.close()


@pytest.mark.parametrize("kind", MAKERS)
def test_a_pickle_is_made_anew(world: World, kind: str) -> None:
    env = MAKERS[kind](world.path)
    env.reset(seed=1)
    frames(env, [1])
    again = pickle.loads(pickle.dumps(env))
    one, other = env.reset(seed=5)[0], again.reset(seed=5)[0]
    assert np.array_equal(one, other) and alike(frames(env, [1, 0]), frames(again, [1, 0]))
    assert again.unwrapped.spec == env.unwrapped.spec and again.unwrapped.engine is not env.unwrapped.engine
    env.close()
    again.close()


def test_a_shared_engine_is_not_pickled(world: World) -> None:
    engine = Engine(world, threads=1, memory_mb=8)
    with pytest.raises(ConfigError, match="shares the engine"):
        pickle.dumps(gym.make("worldsim/World-v0", engine=engine))
    engine.close()


def in_child(env: Any, path: str, queue: Any) -> None:
    """Step the parent's environment, if there is one, then one of its own."""
    inherited = None if env is None else frames(env, [1, 0])
    own = make(path)
    own.reset(seed=1)
    queue.put((inherited, frames(own, [1, 0])))


def from_child(method: str, env: Any, path: str) -> Any:
    context: Any = mp.get_context(method)
    queue = context.Queue()
    process = context.Process(target=in_child, args=(env, path, queue))
    process.start()
    try:
        return queue.get(timeout=WAIT)
    finally:
        process.kill()
        process.join()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "in use"])
def test_a_forked_child_goes_on(world: World, used: bool) -> None:
    """The child has none of its parent's threads, and makes its own; the parent goes on too."""
    env = make(world.path)
    env.reset(seed=1)
    if used:
        frames(env, [1, 1])
        env.reset(seed=1)
    inherited, own = from_child("fork", env, str(world.path))
    assert alike(inherited, own) and alike(own, frames(env, [1, 0]))
    env.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_async_vector_environments_by_fork(world: World) -> None:
    single = make(world.path)
    first = single.reset(seed=5)[0]
    env = gym.make_vec("worldsim/World-v0", 2, vectorization_mode="async", world=str(world.path))
    assert isinstance(env, gym.vector.AsyncVectorEnv)
    env.reset_async(seed=5)
    observations, _ = env.reset_wait(timeout=WAIT)
    assert np.array_equal(observations[0], first)
    env.step_async(np.array([1, 0]))
    assert np.array_equal(env.step_wait(timeout=WAIT)[0][0], frames(single, [1])[0])
    env.close()
    single.close()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_spawned_child_gets_a_pickle(world: World, method: str) -> None:
    env = make(world.path)
    env.reset(seed=1)
    expected = frames(env, [1, 0])
    inherited, own = from_child(method, None, str(world.path))
    assert inherited is None and alike(own, expected)
    env.close()
