"""Exceptions at any moment of a remote call, and forks: the next call brings caller and host level, or says why not."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hosting import HostProcess, digest, drive

import worldsim.envs  # noqa: F401  -- registers the ids
from worldsim.bridges.client import RemoteEngine
from worldsim.bridges.client.connection import ConnectionConfig
from worldsim.engine.records import SessionSpec
from worldsim.errors import WorldsimError

# An exception that comes between `open` and its `with` leaves a file to the collector, which closes it and warns.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <_io:pytest.PytestUnraisableExceptionWarning")

PATIENT = ConnectionConfig(timeout=5.0, patience=60.0)


class Interrupt(BaseException):
    """As Ctrl-C is, which a test runner would take for itself."""


def interrupted(seconds: float, call: Callable[[], Any]) -> bool:
    """Call something, and raise an exception in it some time from now, unless it ends before; say whether it was."""
    armed = True

    def interrupt(*_: Any) -> None:
        if armed:
            raise Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        call()
        armed = False
    except Interrupt:
        return True
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    return False


def frames_of(engine: RemoteEngine, steps: int) -> list[str]:
    number = engine.open_all([SessionSpec(seed=3, prompt="a cart")])[0]
    frames = [digest(engine.step({number: 1})[number].frame) for _ in range(steps)]
    engine.close(number)
    return frames


def test_interrupted_steps(host: HostProcess) -> None:
    """Whenever it comes: each later step works, and its frame is that of its number."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng, engine = random.Random(seed), RemoteEngine(host.address, config=PATIENT)
    right, hits = frames_of(engine, 120), 0
    number = engine.open_all([SessionSpec(seed=3, prompt="a cart")])[0]
    first = engine.sessions[number].step
    while (done := engine.sessions[number].step - first) < len(right) - 1:
        hits += interrupted(rng.uniform(0.0002, 0.02), lambda: engine.step({number: 1}))
        step = engine.step({number: 1})[number]
        assert digest(step.frame) == right[step.step - first - 1] and step.step - first > done
    assert hits > 5
    engine.close()


OPERATIONS = ("open", "open several", "step", "step several", "prompt", "fork", "snapshot", "restore", "close")


@pytest.mark.parametrize("name", OPERATIONS)
def test_interrupted_calls(host: HostProcess, name: str) -> None:
    """Every call can be interrupted, again and again; the sessions go on, and at the end none is left at the host."""
    rng, engine = random.Random(name), RemoteEngine(host.address, config=PATIENT)
    watcher = RemoteEngine(host.address, config=PATIENT)
    left = watcher.connection.call("stats").header["stats"]["sessions"]
    sessions = engine.open_all([SessionSpec(seed=i, prompt="a cart") for i in range(3)])
    kept = engine.snapshot(sessions[0])
    calls: dict[str, Any] = {
        "open": lambda: engine.open_all([SessionSpec(seed=1)]),
        "open several": lambda: engine.open_all([SessionSpec(seed=1), SessionSpec(seed=2)]),
        "step": lambda: engine.step({sessions[0]: 0}),
        "step several": lambda: engine.step({number: 0 for number in sessions}),
        "prompt": lambda: engine.set_prompt(sessions[0], ""),
        "fork": lambda: engine.fork(sessions[0]),
        "snapshot": lambda: engine.snapshot(sessions[0]),
        "restore": lambda: engine.restore(kept, sessions[0]),
        "close": lambda: (engine.close(engine.fork(sessions[0])), engine._leave()),
    }
    for _ in range(12):
        for _ in range(rng.randrange(1, 3)):
            interrupted(rng.uniform(0.0002, 0.01), calls[name])
        steps = engine.step({number: 1 for number in sessions})
        assert [steps[n].step for n in sessions] == [engine.sessions[n].step for n in sessions]
        for number in sessions:
            message = watcher.connection.call("render", session=engine.sessions[number].token)
            assert message.header["step"] == engine.sessions[number].step
            assert np.array_equal(message.buffers["frame"], engine.sessions[number].frame)
    engine.close()
    assert watcher.connection.call("stats").header["stats"]["sessions"] == left
    watcher.close()


def test_interrupted_environments(host: HostProcess) -> None:
    single = gym.make("worldsim/Remote-v0", address=host.address, disable_env_checker=True).unwrapped
    vector = gym.make_vec("worldsim/Remote-v0", num_envs=3, address=host.address)
    for env, action in ((single, 1), (vector, np.array([1, 0, 1]))):
        env.reset(seed=1)
        for part in drive(10):
            interrupted(0.001 + part * 0.002, lambda env=env, action=action: env.step(action))
            env.step(action)
        env.reset(seed=2)
        env.step(action)
        env.close()


FORK = """
import os, sys, time
import gymnasium as gym, worldsim.envs
env = gym.make("worldsim/Remote-v0", address=sys.argv[1], disable_env_checker=True).unwrapped
env.reset(seed=1)
env.step(1)
child = os.fork()
if not child:
    begun = time.monotonic()
    try:
        env.step(0)
    except Exception as error:
        ended = type(error).__name__ == "BridgeError" and "fork" in str(error) and time.monotonic() - begun < 5
        env.close()
        mine = gym.make("worldsim/Remote-v0", address=sys.argv[1], disable_env_checker=True)
        mine.reset(seed=1)
        mine.step(1)
        mine.close()
        os._exit(0 if ended else 3)
    os._exit(4)
_, status = os.waitpid(child, 0)
env.step(0)
env.close()
sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_fork_has_no_connection_of_its_parent(host: HostProcess) -> None:
    done = subprocess.run([sys.executable, "-c", FORK, host.address], timeout=60, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_host_that_is_gone_is_said_each_time(host: HostProcess) -> None:
    engine = RemoteEngine(host.address, config=ConnectionConfig(timeout=0.2, patience=0.5))
    number = engine.open_all([SessionSpec(seed=1)])[0]
    engine.connection.address = "tcp://127.0.0.1:1"
    engine.connection._connect()
    for _ in range(2):
        with pytest.raises(WorldsimError, match="not answered"):
            engine.step({number: 0})
    engine.connection.address = host.address
    engine.connection._connect()
    assert engine.step({number: 1})[number].step == engine.sessions[number].step
    engine.close()
