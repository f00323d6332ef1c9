"""The engine's promise in every process: whatever the caller has set torch to, a session has the same bits."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from worldsim.engine.engine import Engine
from worldsim.threads import OwnThreads, fixed_settings
from worldsim.world import World

NEVER_SEEN = "a purple road under two green moons and a very old lighthouse"


@contextlib.contextmanager
def setting(change: Callable[[Any], object], value: Any, before: Any) -> Iterator[None]:
    change(value)
    try:
        yield
    finally:
        change(before)


SETTINGS: dict[str, Callable[[], Any]] = {
    "2 threads": lambda: setting(torch.set_num_threads, 2, 1),
    "5 threads": lambda: setting(torch.set_num_threads, 5, 1),
    "bf16 autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "inference mode": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients": torch.enable_grad,
    "denormals to zero": lambda: setting(torch.set_flush_denormal, True, False),
    "float64 by default": lambda: setting(torch.set_default_dtype, torch.float64, torch.float32),
    "float16 by default": lambda: setting(torch.set_default_dtype, torch.float16, torch.float32),
    "medium products": lambda: setting(torch.set_float32_matmul_precision, "medium", "highest"),
    "device meta by default": lambda: setting(torch.set_default_device, "meta", None),
    "no oneDNN": lambda: setting(torch._C._set_mkldnn_enabled, False, True),
    "another generator": lambda: setting(torch.manual_seed, 5, 0),
    "deterministic algorithms": lambda: setting(torch.use_deterministic_algorithms, True, False),
}


def play(path: Any, runtime: str, load: bool) -> list[bytes]:
    """Frames, rewards and ends of a session whose prompt nobody has encoded before, with guidance on it."""
    world = World.from_pretrained(path, torch.float32) if load else path
    engine = Engine(world, runtime=runtime, threads=1, memory_mb=8)
    found = []
    try:
        number = engine.open(seed=3, prompt=NEVER_SEEN, guidance=2)
        for action in (1, 0, 1, 1):
            step = engine.step({number: action})[number]
            assert np.isfinite(step.reward) and np.isfinite(step.ended)
            found += [step.frame.tobytes(), np.array([step.reward, step.ended]).tobytes()]
        memory = engine.snapshot(number, share=False).memory
        found += [part.float().numpy().tobytes() for part in vars(memory).values()]
    finally:
        engine.close()
    return found


@pytest.fixture
def expected(world: World) -> list[bytes]:
    return play(world.path, "eager", True)


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_caller_change_no_bit(world: World, expected: list[bytes], name: str) -> None:
    before = torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled
    with SETTINGS[name]():
        held = torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled
        assert play(world.path, "eager", True) == expected
        now = torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled
        assert now == held, "the caller's settings are not what they were"
    assert before == (torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.backends.mkldnn.enabled)


def test_foreign_threads_change_no_bit(world: World, expected: list[bytes]) -> None:
    """Sessions that are played from other threads, one of which computes with other settings meanwhile."""
    stop, found = threading.Event(), []

    def busy() -> None:
        torch.set_num_threads(2)
        while not stop.is_set():
            with torch.autocast("cpu", torch.bfloat16):
                torch.mm(torch.randn(64, 64), torch.randn(64, 64))

    noise = threading.Thread(target=busy)
    noise.start()
    try:
        players = [threading.Thread(target=lambda: found.append(play(world.path, "eager", True))) for _ in range(3)]
        for player in players:
            player.start()
        for player in players:
            player.join()
    finally:
        stop.set()
        noise.join()
    assert found == [expected] * 3


def test_a_neighbours_prompts_change_no_bit(world: World) -> None:
    """Also when so many are encoded that the book forgets the session's own."""
    engine = Engine(World.from_pretrained(str(world.path), torch.float32), threads=1, memory_mb=8)
    alone = Engine(World.from_pretrained(str(world.path), torch.float32), threads=1, memory_mb=8)
    try:
        one, other = engine.open(seed=3, prompt=NEVER_SEEN), engine.open(seed=4)
        single = alone.open(seed=3, prompt=NEVER_SEEN)
        book = engine.world.book
        for turn in range(6):
            if turn == 2:  # as if the neighbour had used MOST_ENCODED others
                del book.prompts[book.key(NEVER_SEEN)]
                engine.set_prompt(one, NEVER_SEEN)
                alone.set_prompt(single, NEVER_SEEN)
            engine.set_prompt(other, f"words number {turn}")
            step, lone = engine.step({one: 1, other: 0})[one], alone.step({single: 1})[single]
            assert np.array_equal(step.frame, lone.frame) and step.reward == lone.reward
    finally:
        engine.close()
        alone.close()


def test_settings_are_given_back_after_an_error() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(ZeroDivisionError), fixed_settings():
            with fixed_settings():
                assert torch.get_default_dtype() == torch.float32
            assert torch.get_default_dtype() == torch.float32
            raise ZeroDivisionError
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_own_threads_take_turns_and_end() -> None:
    own, seen = OwnThreads(2), []
    before = threading.active_count()
    callers = [threading.Thread(target=lambda i=i: own.call(lambda: seen.append(i))) for i in range(20)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted(seen) == list(range(20))
    names = own.call(lambda: own.map(lambda _: threading.current_thread().name, range(8)))
    assert own.call(lambda: own.call(lambda: torch.get_num_threads())) == 1
    assert len(set(names)) <= 2
    own.close()
    assert threading.active_count() == before
    assert own.call(lambda: 7) == 7  # they begin anew
    own.close()
