"""Sessions: same seed same bits, batch equals singles, observed equals drawn."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from worldsim.diffusion.sampler import SamplerConfig
from worldsim.diffusion.schedules import get_schedule
from worldsim.engine import simulator as simulator_module
from worldsim.engine.simulator import Simulator, State
from worldsim.errors import ConfigError
from worldsim.types import Prompt
from worldsim.world import World


def encode(world: World, *texts: str) -> list[Prompt]:
    return [world.book.encode(text) for text in texts]


def play(simulator: Simulator, seeds: list[int], prompts: list[Prompt], steps: int = 6) -> tuple[torch.Tensor, State]:
    """Latents (B, steps + 1, C, h, w) under a fixed sequence of actions."""
    state = simulator.begin(seeds, prompts)
    frames = [simulator.step(state, None).latents]
    for step in range(steps):
        action = torch.eye(2)[[step % 2] * len(seeds)]
        frames.append(simulator.step(state, action).latents)
    return torch.stack(frames, dim=1), state


def test_same_seed_same_bits(world: World) -> None:
    first, _ = play(Simulator.of(world), [1], encode(world, "a cart"))
    torch.randn(10)  # the global generator has no say
    assert torch.equal(first, play(Simulator.of(world), [1], encode(world, "a cart"))[0])
    assert not torch.equal(first, play(Simulator.of(world), [2], encode(world, "a cart"))[0])


def test_batch_equals_singles(world: World) -> None:
    simulator, prompts = Simulator.of(world), encode(world, "a cart", "", "a cart")
    together, _ = play(simulator, [1, 2, 3], prompts)
    for row, (seed, prompt) in enumerate(zip([1, 2, 3], prompts, strict=True)):
        torch.testing.assert_close(together[row], play(simulator, [seed], [prompt])[0][0], rtol=1e-3, atol=1e-3)


def test_observing_what_was_drawn_goes_on_alike(world: World) -> None:
    """A session that is shown another one's frames continues nearly as that one does: it only remembers less noise."""
    simulator = Simulator.of(world, SamplerConfig(cache_sigma=0.0, history_sigma=0.0))
    frames, drawn = play(simulator, [4], encode(world, "a cart"))
    shown = simulator.begin([4], encode(world, "a cart"))
    for step in range(frames.shape[1]):
        action = None if step == 0 else torch.eye(2)[[(step - 1) % 2]]
        simulator.observe(shown, frames[:, step], action)
    action = torch.eye(2)[[0]]
    torch.testing.assert_close(simulator.step(drawn, action).latents, simulator.step(shown, action).latents)


def test_what_is_observed_does_not_depend_on_the_seed(world: World) -> None:
    """So that sessions which begin with the same clip can share its memory."""
    simulator = Simulator.of(world)
    frames, _ = play(simulator, [4], encode(world, "a cart"), steps=2)
    states = [simulator.begin([seed], encode(world, "a cart")) for seed in (1, 2)]
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
        _, state = play(simulator, seeds, encode(world, "a cart") * len(seeds), steps=2)
        state.guidance = guidance
        rows.append(simulator.step(state, torch.eye(2)[[0] * len(seeds)]).latents)
    torch.testing.assert_close(rows[0][1:2], rows[1], rtol=1e-3, atol=1e-3)
    assert (rows[1] - rows[2]).abs().max() > 1e-3


@pytest.mark.parametrize("cache_sigma", [None, 0.0, 0.1])
def test_a_draw_changes_nothing(world: World, cache_sigma: float | None) -> None:
    simulator = Simulator.of(world, SamplerConfig(cache_sigma=cache_sigma))
    _, state = play(simulator, [1], encode(world, "a cart"))
    before = state.cache.keys.clone()
    outcomes = [simulator.draw(state), simulator.draw(state)]
    assert torch.equal(outcomes[0].latents, outcomes[1].latents)
    assert torch.equal(before, state.cache.keys)
    assert outcomes[0].keys.shape == state.cache.keys[:, 0].shape


def test_guidance_one_is_no_guidance(world: World) -> None:
    plain = Simulator.of(world, SamplerConfig(guidance=1.0, first_guidance=1.0, first_frame_steps=2))
    guided = Simulator.of(world, SamplerConfig(guidance=1.0 + 1e-6, first_guidance=1.0 + 1e-6, first_frame_steps=2))
    torch.testing.assert_close(
        play(plain, [1], encode(world, "a cart"))[0],
        play(guided, [1], encode(world, "a cart"))[0],
        rtol=1e-3,
        atol=1e-3,
    )


def test_outcome_ranges(world: World) -> None:
    simulator = Simulator.of(world)
    state = simulator.begin([1, 2], encode(world, "", "a cart"))
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
            state = simulator.begin([1, 2], encode(world, "a cart") * 2)
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


def test_threads_share_the_table_of_prompts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """More prompts than are stored, from several threads at once: each gets its own."""
    monkeypatch.setattr(simulator_module, "PROMPTS_STORED", 3)
    world.book.encoder_name = None
    width = world.dynamics.config.text_width
    prompts = [Prompt(f"prompt {i}", torch.randn(1 + i % 4, width)) for i in range(8)]
    simulator, alone, before = Simulator.of(world), Simulator.of(world), sys.getswitchinterval()
    single = {prompt: alone.text([prompt]) for prompt in prompts}
    sets = [[prompts[i % 8], prompts[i % 5], prompts[i % 3]][: 1 + i % 3] for i in range(40)]
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(simulator.text, sets * 10))
    finally:
        sys.setswitchinterval(before)
    for asked, parts in zip(sets * 10, found, strict=True):
        for row, prompt in enumerate(asked):
            assert all(torch.equal(part[row], own[0]) for part, own in zip(parts, single[prompt], strict=True))


def test_a_prompt_is_its_states(world: World) -> None:
    """What a simulator stores goes by the states of a prompt, not by its text: there it never looks a text up."""
    states = world.book.encode("a cart").states
    same, other = Prompt("words that nobody knows", states.clone()), Prompt("a cart", states + 0.1)
    assert same == world.book.encode("a cart") != other and len({same, world.book.encode("A  cart"), other}) == 2
    simulator = Simulator.of(world)
    cart, again, moved = (simulator.text([prompt])[0] for prompt in (*encode(world, "a cart"), same, other))
    assert again is cart and not torch.equal(moved, cart)


def test_weights_that_change_are_asked_anew(world: World) -> None:
    """In training nothing that was computed from a prompt is stored."""
    simulator, prompts = Simulator(world.dynamics, frozen=False), encode(world, "a cart")
    before = simulator.text(prompts)[0].clone()
    with torch.no_grad():
        for parameter in world.dynamics.parameters():
            parameter.mul_(1.5)
    assert not torch.equal(simulator.text(prompts)[0], before)
