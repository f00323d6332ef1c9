"""Sessions: same seed same bits, batch equals singles, observed equals drawn."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from worldsim.diffusion.sampler import SamplerConfig
from worldsim.diffusion.schedules import get_schedule
from worldsim.engine.simulator import Simulator, State
from worldsim.errors import ConfigError
from worldsim.world import World


def play(simulator: Simulator, seeds: list[int], prompts: list[str], steps: int = 6) -> tuple[torch.Tensor, State]:
    """Latents (B, steps + 1, C, h, w) under a fixed sequence of actions."""
    state = simulator.begin(seeds, prompts)
    frames = [simulator.step(state, None).latents]
    for step in range(steps):
        action = torch.eye(2)[[step % 2] * len(seeds)]
        frames.append(simulator.step(state, action).latents)
    return torch.stack(frames, dim=1), state


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


def test_observing_what_was_drawn_goes_on_alike(world: World) -> None:
    """A session that is shown another one's frames continues nearly as that one does: it only remembers less noise."""
    simulator = Simulator.of(world, SamplerConfig(cache_sigma=0.0, history_sigma=0.0))
    frames, drawn = play(simulator, [4], ["a cart"])
    shown = simulator.begin([4], ["a cart"])
    for step in range(frames.shape[1]):
        action = None if step == 0 else torch.eye(2)[[(step - 1) % 2]]
        simulator.observe(shown, frames[:, step], action)
    action = torch.eye(2)[[0]]
    torch.testing.assert_close(simulator.step(drawn, action).latents, simulator.step(shown, action).latents)


def test_what_is_observed_does_not_depend_on_the_seed(world: World) -> None:
    """So that sessions which begin with the same clip can share its memory."""
    simulator = Simulator.of(world)
    frames, _ = play(simulator, [4], ["a cart"], steps=2)
    states = [simulator.begin([seed], ["a cart"]) for seed in (1, 2)]
    for state in states:
        for step in range(frames.shape[1]):
            simulator.observe(state, frames[:, step], None if step == 0 else torch.eye(2)[[0]])
    assert torch.equal(states[0].cache.keys, states[1].cache.keys)
    assert states[0].cache.keys.any()


def test_guidance_is_a_matter_of_each_session(world: World) -> None:
    """Rows with and without guidance share a pass, and each is what it is alone."""
    simulator = Simulator.of(world, SamplerConfig(first_frame_steps=2))
    rows = []
    for seeds, guidance in (([1, 2, 3], [1.0, 3.0, 1.0]), ([2], [3.0]), ([2], [1.0])):
        _, state = play(simulator, seeds, ["a cart"] * len(seeds), steps=2)
        state.guidance = guidance
        rows.append(simulator.step(state, torch.eye(2)[[0] * len(seeds)]).latents)
    torch.testing.assert_close(rows[0][1:2], rows[1], rtol=1e-3, atol=1e-3)
    assert (rows[1] - rows[2]).abs().max() > 1e-3


@pytest.mark.parametrize("cache_sigma", [None, 0.0, 0.1])
def test_a_draw_changes_nothing(world: World, cache_sigma: float | None) -> None:
    simulator = Simulator.of(world, SamplerConfig(cache_sigma=cache_sigma))
    _, state = play(simulator, [1], ["a cart"])
    before = state.cache.keys.clone()
    outcomes = [simulator.draw(state), simulator.draw(state)]
    assert torch.equal(outcomes[0].latents, outcomes[1].latents)
    assert torch.equal(before, state.cache.keys)
    assert outcomes[0].keys.shape == state.cache.keys[:, 0].shape


def test_guidance_one_is_no_guidance(world: World) -> None:
    plain = Simulator.of(world, SamplerConfig(guidance=1.0, first_guidance=1.0, first_frame_steps=2))
    guided = Simulator.of(world, SamplerConfig(guidance=1.0 + 1e-6, first_guidance=1.0 + 1e-6, first_frame_steps=2))
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
    levels = get_schedule(5, shift)
    assert (levels[0], levels[-1]) == (1, 0)
    assert levels == sorted(levels, reverse=True) and len(set(levels)) == 6
    even = get_schedule(5)
    assert all((a < b) == (shift < 1) for a, b in zip(levels[1:-1], even[1:-1], strict=True) if shift != 1)


def test_no_noise_is_one_future_and_shared_noise_another_draw(world: World) -> None:
    """Without noise all seeds see the same next frame; with it they differ, however it is spread."""
    for shared in (0.0, 0.5, 1.0):
        for scale, same in ((0.0, True), (1.0, False)):
            sampler = SamplerConfig(
                num_denoising_steps=1, noise_scale=scale, spatially_shared_noise=shared, history_sigma=0.0
            )
            simulator = Simulator.of(world, sampler)
            state = simulator.begin([1, 2], ["a cart", "a cart"])
            state.step += world.dynamics.config.history
            drawn = simulator.draw(state).latents
            assert torch.equal(drawn[0], drawn[1]) == same, (shared, scale)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"solver": "nope"}, "no objective 'nope'"),
        ({"solver": "ddpm"}, "the model predicts 'x' .learned_variance False., .* takes 'x' .learned_variance True."),
    ],
)
def test_a_sampler_that_does_not_fit_the_model_is_refused(world: World, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Simulator.of(world, SamplerConfig(**changes))


def test_threads_share_the_table_of_prompts(world: World) -> None:
    """More sets of prompts than are kept, from several threads at once."""
    simulator, before = Simulator.of(world), sys.getswitchinterval()
    sets = [("a cart", "") * (1 + i % 12) + ("a cart",) * (i // 12) for i in range(40)]
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda one: len(simulator.text(one)[0]), sets * 10))
    finally:
        sys.setswitchinterval(before)
    assert found == [len(one) for one in sets] * 10
