"""Sessions: same seed same bits, batch equals singles, observed equals drawn."""

from __future__ import annotations

import pytest
import torch

from worldsim.diffusion.flow import schedule
from worldsim.engine.noise import HISTORY, SAMPLE, keyed_noise
from worldsim.engine.simulator import SamplerConfig, Simulator, State
from worldsim.world import World


def play(simulator: Simulator, seeds: list[int], prompts: list[str], steps: int = 6) -> tuple[torch.Tensor, State]:
    """Latents (B, steps + 1, C, h, w) under a fixed sequence of actions."""
    state = simulator.begin(seeds, prompts)
    frames = [simulator.step(state, None).latents]
    for step in range(steps):
        action = torch.eye(2)[[step % 2] * len(seeds)]
        frames.append(simulator.step(state, action).latents)
    return torch.stack(frames, dim=1), state


def test_noise_is_a_function_of_its_key() -> None:
    steps = torch.tensor([3, 3, 4])
    noise = keyed_noise([1, 2, 1], steps, SAMPLE, (2, 50))
    assert torch.equal(noise, keyed_noise([1, 2, 1], steps, SAMPLE, (2, 50)))
    assert torch.equal(noise[2:], keyed_noise([1], torch.tensor([4]), SAMPLE, (2, 50)))
    assert len({tuple(row.flatten().tolist()) for row in noise}) == 3
    assert not torch.equal(noise, keyed_noise([1, 2, 1], steps, HISTORY, (2, 50)))
    assert abs(float(keyed_noise([5], torch.tensor([0]), 0, (20000,)).std()) - 1) < 0.02


def test_same_seed_same_bits(world: World) -> None:
    first, _ = play(Simulator.of(world), [1], ["a cart"])
    torch.randn(10)  # the global generator has no say
    assert torch.equal(first, play(Simulator.of(world), [1], ["a cart"])[0])
    assert not torch.equal(first, play(Simulator.of(world), [2], ["a cart"])[0])


def test_batch_equals_singles(world: World) -> None:
    simulator = Simulator.of(world)
    together, _ = play(simulator, [1, 2, 3], ["a cart", "", "a cart"])
    for row, (seed, prompt) in enumerate(zip([1, 2, 3], ["a cart", "", "a cart"], strict=True)):
        torch.testing.assert_close(together[row], play(simulator, [seed], [prompt])[0][0], rtol=1e-3, atol=1e-3)


def test_observing_what_was_drawn_goes_on_the_same(world: World) -> None:
    """A session that is shown another one's frames continues as that one does."""
    simulator = Simulator.of(world)
    frames, drawn = play(simulator, [4], ["a cart"])
    shown = simulator.begin([4], ["a cart"])
    for step in range(frames.shape[1]):
        action = None if step == 0 else torch.eye(2)[[(step - 1) % 2]]
        simulator.observe(shown, frames[:, step], action)
    action = torch.eye(2)[[0]]
    assert torch.equal(simulator.step(drawn, action).latents, simulator.step(shown, action).latents)


def test_guidance_one_is_no_guidance(world: World) -> None:
    plain = Simulator.of(world, SamplerConfig(guidance=1.0, first_guidance=1.0, first_steps=2))
    guided = Simulator.of(world, SamplerConfig(guidance=1.0 + 1e-6, first_guidance=1.0 + 1e-6, first_steps=2))
    torch.testing.assert_close(play(plain, [1], ["a cart"])[0], play(guided, [1], ["a cart"])[0], rtol=1e-3, atol=1e-3)


def test_outcome_ranges(world: World) -> None:
    simulator = Simulator.of(world)
    state = simulator.begin([1, 2], ["", "a cart"])
    outcome = simulator.step(state, None)
    assert outcome.latents.shape == (2, *state.history.shape[2:])
    assert outcome.reward.shape == outcome.ended.shape == (2,)
    assert ((outcome.ended >= 0) & (outcome.ended <= 1)).all()


@pytest.mark.parametrize("shift", [0.2, 0.5, 1.0, 3.0])
def test_schedules_fall_from_noise_to_data(shift: float) -> None:
    levels = schedule(5, shift)
    assert (levels[0], levels[-1]) == (1, 0)
    assert levels == sorted(levels, reverse=True) and len(set(levels)) == 6
    even = schedule(5)
    assert all((a < b) == (shift < 1) for a, b in zip(levels[1:-1], even[1:-1], strict=True) if shift != 1)
