"""The transformer's promises: identity at birth, causality, cache equals no cache, batch equals singles."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from worldsim.errors import ConfigError
from worldsim.models.attention import attend
from worldsim.models.conditions import Conditions
from worldsim.models.dit import GATE_OPEN, GATE_START, DiT, DiTConfig
from worldsim.models.kv_cache import KVCache
from worldsim.models.layers import SquaredReLU, rope, rotate

B, T, K, A, C, SIZE, WORDS = 2, 6, 2, 2, 4, 4, 3


def build(**changes: Any) -> DiT:
    settings: dict = {
        "latent_channels": C, "latent_size": (SIZE, SIZE), "width": 32, "heads": 2, "pattern": "stst",
        "text_layers": (0,), "history": K, "action_history": A, "action_size": 3, "text_width": 8, "context": 4,
    }  # fmt: skip
    model = DiTConfig(**(settings | changes)).build()
    for parameter in model.parameters():  # gates start at zero: a test of an identity would prove nothing
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def conditions(batch: int = B, frames: int = T) -> Conditions:
    return Conditions(
        history=torch.randn(batch, frames, K, C, SIZE, SIZE),
        newest=torch.randn(batch, frames, C, SIZE, SIZE),
        present=(torch.rand(batch, frames, K) > 0.3).float(),
        history_sigma=torch.rand(batch, frames),
        actions=torch.randn(batch, frames, A, 3),
        known=torch.ones(batch, frames, A),
        text=torch.randn(2, WORDS, 8),
        text_mask=torch.tensor([[True, True, False], [True, True, True]]),
        prompt_index=torch.randint(0, 2, (batch, frames)),
    )


def cut(given: Conditions, rows: slice, frames: slice) -> Conditions:
    """Some rows and frames of conditions."""
    fields = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
    shared = ("text", "text_mask")
    return Conditions(**{name: value if name in shared else value[rows, frames] for name, value in fields.items()})


def test_an_open_gate_leaves_what_is_drawn() -> None:
    """Worlds from before there was a base play on to the bit."""
    model, given, frames = build(newest_base=False), conditions(), noisy()
    model.open_gate(GATE_OPEN)
    other = dataclasses.replace(given, newest=torch.randn_like(given.newest))
    with torch.no_grad():
        assert torch.equal(model(*frames, given).latents, model(*frames, other).latents)
        model.open_gate(GATE_START)
        assert not torch.equal(model(*frames, given).latents, model(*frames, other).latents)


def noisy(batch: int = B, frames: int = T) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, frames, C, SIZE, SIZE), torch.rand(batch, frames)


def test_starts_as_a_share_of_the_newest_frame() -> None:
    model = DiTConfig(latent_channels=C, latent_size=(SIZE, SIZE), width=32, heads=2, history=K, action_history=A,
                      text_width=8).build()  # fmt: skip
    given = conditions()
    prediction = model(*noisy(), given)
    kept = (1 - torch.sigmoid(torch.tensor(GATE_START))) * given.present[..., -1, None, None, None]
    torch.testing.assert_close(prediction.latents, given.newest * kept)
    assert 0 < float(kept.mean()) < 1  # some frames have a newest one, some have none


@torch.no_grad()
def test_no_frame_sees_a_later_one() -> None:
    model, (x, sigma), given = build(), noisy(), conditions()
    before = model(x, sigma, given).latents
    x[:, 3:] += 1
    given.actions[:, 3:] += 1
    after = model(x, sigma, given).latents
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any(dim=(0, 2, 3, 4)).all()


@torch.no_grad()
def test_bidirectional_frames_see_later_ones() -> None:
    model, (x, sigma), given = build(), noisy(), conditions()
    before = model(x, sigma, given, causal=False).latents
    x[:, -1] += 1
    assert (before[:, 0] != model(x, sigma, given, causal=False).latents[:, 0]).any()


@torch.no_grad()
@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2)])
def test_cache_equals_no_cache(patch: tuple[int, int, int]) -> None:
    """Frame by frame through the cache equals one pass over a window, also one longer than the cache."""
    model, (x, sigma), given = build(patch=patch, context=T - 3), noisy(), conditions()
    cache, whole = model.empty_cache(B), model(x, sigma, given)
    for frame in range(T):
        one = cut(given, slice(None), slice(frame, frame + 1))
        step = model(x[:, frame : frame + 1], sigma[:, frame : frame + 1], one, cache=cache)
        cache = cache.append(*step.written)
        torch.testing.assert_close(step.latents[:, 0], whole.latents[:, frame], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(step.reward[:, 0], whole.reward[:, frame], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_full_cache_equals_recent_frames() -> None:
    """With one time layer nothing older than the cache can matter, so the window of its frames must give the same."""
    model, (x, sigma), given = build(pattern="t", context=3), noisy(), conditions()
    cache, step = model.empty_cache(B), None
    for frame in range(T):
        one = cut(given, slice(None), slice(frame, frame + 1))
        step = model(x[:, frame : frame + 1], sigma[:, frame : frame + 1], one, cache=cache)
        cache = cache.append(*step.written)
    assert step is not None
    window = slice(T - 4, T)
    whole = model(x[:, window], sigma[:, window], cut(given, slice(None), window))
    torch.testing.assert_close(step.latents[:, 0], whole.latents[:, -1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sessions_of_different_age_share_a_batch() -> None:
    model = build()
    x, sigma = noisy(frames=T)
    given = conditions()
    alone = [model.empty_cache(1), model.empty_cache(1)]
    for row, frames in ((0, 5), (1, 2)):
        for frame in range(frames):
            here = (slice(row, row + 1), slice(frame, frame + 1))
            alone[row] = alone[row].append(*model(x[here], sigma[here], cut(given, *here), cache=alone[row]).written)
    both = KVCache(*(torch.cat([getattr(cache, name) for cache in alone]) for name in ("keys", "values", "count")))
    last = (slice(None), slice(T - 1, T))
    together = model(x[last], sigma[last], cut(given, *last), cache=both).latents
    for row, cache in enumerate(alone):
        here = (slice(row, row + 1), slice(T - 1, T))
        single = model(x[here], sigma[here], cut(given, *here), cache=cache).latents
        torch.testing.assert_close(together[row : row + 1], single, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_attention_along_time_is_the_same_in_steps_and_windows() -> None:
    """A model of space layers alone has an empty cache; one of time layers alone sees all that was pushed."""
    for pattern, layers in (("s", 0), ("t", 1)):
        model, (x, sigma), given = build(pattern=pattern), noisy(frames=1), conditions(frames=1)
        step = model(x, sigma, given, cache=model.empty_cache(B))
        torch.testing.assert_close(step.latents, model(x, sigma, given).latents, rtol=1e-4, atol=1e-4)
        assert step.written[0].shape[1] == layers


@torch.no_grad()
def test_long_sums_in_parts_are_the_same_sums() -> None:
    model, (x, sigma), given = build(), noisy(), conditions()
    whole = model(x, sigma, given).latents
    for block in model.blocks:
        block.mlp.parts = 4  # type: ignore[union-attr]
    torch.testing.assert_close(whole, model(x, sigma, given).latents, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_every_condition_matters() -> None:
    model, (x, sigma), given = build(), noisy(), conditions()
    given.present[:] = 1
    before = model(x, sigma, given).latents
    for name in ("history", "history_sigma", "actions", "known", "text"):
        changed = dataclasses.replace(given, **{name: getattr(given, name) * 0.5 + 0.1})
        assert (model(x, sigma, changed).latents != before).any(), name
    absent = dataclasses.replace(given, present=torch.zeros_like(given.present))
    other = dataclasses.replace(absent, history=torch.randn_like(given.history))
    assert torch.equal(model(x, sigma, absent).latents, model(x, sigma, other).latents)


@torch.no_grad()
def test_other_sizes_run() -> None:
    model = build()
    given = conditions()
    given.history, given.newest = torch.randn(B, T, K, C, 6, 10), torch.randn(B, T, C, 6, 10)
    assert model(torch.randn(B, T, C, 6, 10), torch.rand(B, T), given).latents.shape == (B, T, C, 6, 10)


@pytest.mark.parametrize(
    "bad", [{"width": 30}, {"pattern": "sx"}, {"pattern": ""}, {"patch": (2, 1, 1)}, {"text_layers": (9,)}]
)
def test_bad_configs_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        DiTConfig(**bad)


def test_attention_is_the_same_with_and_without_gradients() -> None:
    """Training takes another path than play; masks and values must mean the same in both."""
    query, key, value = (torch.randn(2, 3, n, 8) for n in (5, 7, 7))
    mask = torch.rand(2, 1, 5, 7) > 0.4
    mask[..., 0] = True
    for given in (None, mask):
        trained = attend(query, key, value, given)
        with torch.no_grad():
            torch.testing.assert_close(trained, attend(query, key, value, given), rtol=1e-5, atol=1e-5)


def test_squared_relu_has_the_right_gradient() -> None:
    x = torch.randn(40, dtype=torch.double, requires_grad=True)
    assert torch.equal(SquaredReLU.apply(x), x.clamp(min=0) ** 2)
    torch.autograd.gradcheck(SquaredReLU.apply, (x,))


@torch.no_grad()
def test_turning_keeps_lengths_and_depends_on_distance_alone() -> None:
    """What rotary positions promise: the product of two turned vectors is that of their distance."""
    x, y = torch.randn(2, 16)
    at = [rope(torch.tensor([[float(place)]]), 16, 100.0) for place in (0, 3, 5, 8)]
    turned = [(rotate(x, *turn), rotate(y, *turn)) for turn in at]
    torch.testing.assert_close(turned[2][0].norm(), x.norm())
    torch.testing.assert_close((turned[1][0] * turned[0][1]).sum(), (turned[3][0] * turned[2][1]).sum())
