"""The transformer's promises: identity at birth, causality, cache equals no cache, batch equals singles."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

from worldsim.errors import ConfigError
from worldsim.models.attention import attend
from worldsim.models.conditioning import ContextInputs
from worldsim.models.config import GATE_OPEN, GATE_START, DiTConfig
from worldsim.models.dit import DiT, DiTOutput
from worldsim.models.initialise import set_gate
from worldsim.models.kv_cache import KVCache
from worldsim.models.layers import SquaredReLU
from worldsim.models.masks import Mask, block_causal, documents
from worldsim.models.patch import patchify, unpatchify
from worldsim.models.rope import _filled, rope, rotate
from worldsim.types import TextContext

B, T, K, A, C, SIZE, TOKENS = 2, 6, 2, 2, 4, 4, 3
EXTRAS = {"camera_size": 5, "image_width": 7, "memory_width": 6, "fresh_noise": True}


def build(**changes: Any) -> DiT:
    settings: dict = {
        "latent_channels": C, "latent_size": (SIZE, SIZE), "width": 32, "heads": 2, "pattern": "stst",
        "text_layers": (0,), "history": K, "action_history": A, "action_size": 3, "text_width": 8, "context": 4,
    }  # fmt: skip
    model = DiTConfig(**(settings | changes)).build()
    for parameter in model.parameters():  # gates start at zero: a test of an identity would prove nothing
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def conditions(batch: int = B, frames: int = T, **extras: Any) -> ContextInputs:
    mask = (torch.rand(batch, frames, K) > 0.3).float()
    states = torch.randn(2, TOKENS, 8)
    return ContextInputs(
        actions=torch.randn(batch, frames, A, 3),
        action_mask=torch.ones(batch, frames, A),
        text=TextContext(
            states, torch.tensor([[True, True, False], [True, True, True]]), torch.randint(0, 2, (batch, frames))
        ),
        previous=torch.randn(batch, frames, C, SIZE, SIZE),
        previous_mask=mask[..., -1].clone(),
        history=torch.randn(batch, frames, K, C, SIZE, SIZE),
        history_mask=mask,
        history_sigma=torch.rand(batch, frames),
        **extras,
    )


def cut(given: ContextInputs, rows: slice, frames: slice) -> ContextInputs:
    """Some rows and frames of conditions."""
    changed: dict[str, Any] = {}
    for field in dataclasses.fields(given):
        value = getattr(given, field.name)
        if isinstance(value, TextContext):
            changed[field.name] = TextContext(value.states, value.mask, value.index[rows, frames])
        elif value is not None:
            changed[field.name] = value[rows] if field.name == "memory" else value[rows, frames]
    return dataclasses.replace(given, **changed)


def run(model: DiT, x: Tensor, sigma: Tensor, given: ContextInputs, **options: Any) -> DiTOutput:
    return model(x, sigma, model.encode_context(given), **options)


def test_an_open_gate_leaves_what_is_predicted() -> None:
    """Worlds from before there was a base play on to the bit."""
    model, given, frames = build(newest_base=False), conditions(), noisy()
    set_gate(model, GATE_OPEN)
    other = dataclasses.replace(given, previous=torch.randn_like(given.previous))
    with torch.no_grad():
        assert torch.equal(run(model, *frames, given).sample, run(model, *frames, other).sample)
        set_gate(model, GATE_START)
        assert not torch.equal(run(model, *frames, given).sample, run(model, *frames, other).sample)


def noisy(batch: int = B, frames: int = T) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, frames, C, SIZE, SIZE), torch.rand(batch, frames)


def test_starts_as_a_share_of_the_newest_frame() -> None:
    model = DiTConfig(latent_channels=C, latent_size=(SIZE, SIZE), width=32, heads=2, history=K, action_history=A,
                      text_width=8).build()  # fmt: skip
    given = conditions()
    kept = (1 - torch.sigmoid(torch.tensor(GATE_START))) * given.previous_mask[..., None, None, None]
    torch.testing.assert_close(run(model, *noisy(), given).sample, given.previous * kept)
    assert 0 < float(kept.mean()) < 1  # some frames have a newest one, some have none


@torch.no_grad()
def test_no_frame_sees_a_later_one() -> None:
    model, (x, sigma), given = build(), noisy(), conditions()
    before = run(model, x, sigma, given).sample
    x[:, 3:] += 1
    given.actions[:, 3:] += 1
    after = run(model, x, sigma, given).sample
    assert torch.equal(before[:, :3], after[:, :3])
    assert (before[:, 3:] != after[:, 3:]).any(dim=(0, 2, 3, 4)).all()


@torch.no_grad()
def test_bidirectional_frames_see_later_ones() -> None:
    model, (x, sigma), given = build(), noisy(), conditions()
    before = run(model, x, sigma, given, mask="full").sample
    x[:, -1] += 1
    assert (before[:, 0] != run(model, x, sigma, given, mask="full").sample[:, 0]).any()


@torch.no_grad()
@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2)])
def test_cache_equals_no_cache(patch: tuple[int, int, int]) -> None:
    """Frame by frame through the cache equals one pass over a window, also one longer than the cache."""
    model, (x, sigma), given = build(patch=patch, context=T - 3), noisy(), conditions()
    cache, whole = KVCache.empty(model.config, B), run(model, x, sigma, given)
    for frame in range(T):
        one = cut(given, slice(None), slice(frame, frame + 1))
        step = run(model, x[:, frame : frame + 1], sigma[:, frame : frame + 1], one, cache=cache)
        assert step.kv is not None
        cache = cache.append(*step.kv)
        torch.testing.assert_close(step.sample[:, 0], whole.sample[:, frame], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(step.reward[:, 0], whole.reward[:, frame], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_full_cache_equals_recent_frames() -> None:
    """With one time layer nothing older than the cache can matter, so the window of its frames must give the same."""
    model, (x, sigma), given = build(pattern="t", context=3), noisy(), conditions()
    cache, step = KVCache.empty(model.config, B), None
    for frame in range(T):
        one = cut(given, slice(None), slice(frame, frame + 1))
        step = run(model, x[:, frame : frame + 1], sigma[:, frame : frame + 1], one, cache=cache)
        assert step.kv is not None
        cache = cache.append(*step.kv)
    assert step is not None
    window = slice(T - 4, T)
    whole = run(model, x[:, window], sigma[:, window], cut(given, slice(None), window))
    torch.testing.assert_close(step.sample[:, 0], whole.sample[:, -1], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sessions_of_different_age_share_a_batch() -> None:
    model = build()
    x, sigma = noisy(frames=T)
    given = conditions()
    alone = [KVCache.empty(model.config, 1), KVCache.empty(model.config, 1)]
    for row, frames in ((0, 5), (1, 2)):
        for frame in range(frames):
            here = (slice(row, row + 1), slice(frame, frame + 1))
            step = run(model, x[here], sigma[here], cut(given, *here), cache=alone[row])
            assert step.kv is not None
            alone[row] = alone[row].append(*step.kv)
    both = KVCache(*(torch.cat([getattr(cache, name) for cache in alone]) for name in ("keys", "values", "count")))
    last = (slice(None), slice(T - 1, T))
    together = run(model, x[last], sigma[last], cut(given, *last), cache=both).sample
    for row, cache in enumerate(alone):
        here = (slice(row, row + 1), slice(T - 1, T))
        single = run(model, x[here], sigma[here], cut(given, *here), cache=cache).sample
        torch.testing.assert_close(together[row : row + 1], single, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_attention_along_time_is_the_same_in_steps_and_windows() -> None:
    """A model of space layers alone has an empty cache; one of time layers alone sees all that was pushed."""
    for pattern, layers in (("s", 0), ("t", 1)):
        model, (x, sigma), given = build(pattern=pattern), noisy(frames=1), conditions(frames=1)
        step = run(model, x, sigma, given, cache=KVCache.empty(model.config, B))
        torch.testing.assert_close(step.sample, run(model, x, sigma, given).sample, rtol=1e-4, atol=1e-4)
        assert step.kv is not None and step.kv[0].shape[2] == layers


@torch.no_grad()
def test_every_condition_matters() -> None:
    extras: dict[str, Any] = {"camera": torch.randn(B, T, 5), "image": torch.randn(B, T, 7)}
    extras["memory"] = torch.randn(B, 3, 6)
    model, (x, sigma), given = build(**EXTRAS), noisy(), conditions(**extras)
    assert given.history_mask is not None and isinstance(given.text, TextContext) and given.history is not None
    given.history_mask[:] = 1
    noise = torch.randn_like(x)
    before = run(model, x, sigma, given, noise=noise).sample
    for name in ("history", "history_sigma", "actions", "action_mask", "previous", *extras):
        changed = dataclasses.replace(given, **{name: getattr(given, name) * 0.5 + 0.1})
        assert (run(model, x, sigma, changed, noise=noise).sample != before).any(), name
    text = dataclasses.replace(given, text=dataclasses.replace(given.text, states=given.text.states + 0.1))
    assert (run(model, x, sigma, text, noise=noise).sample != before).any()
    assert (run(model, x, sigma, given, noise=noise + 1).sample != before).any()
    absent = dataclasses.replace(given, history_mask=torch.zeros_like(given.history_mask))
    other = dataclasses.replace(absent, history=torch.randn_like(given.history))
    assert torch.equal(run(model, x, sigma, absent).sample, run(model, x, sigma, other).sample)


@torch.no_grad()
def test_extra_inputs_begin_as_nothing() -> None:
    """A recipe that needs one goes on from a world without: the weights that are new change nothing at first."""
    plain = build()
    model = DiTConfig(**(dataclasses.asdict(plain.config) | EXTRAS)).build().eval()
    missing, unexpected = model.load_state_dict(plain.state_dict(), strict=False)
    assert (
        missing
        and not unexpected
        and all(name.split(".")[0] in ("noise", "camera", "image", "blocks") for name in missing)
    )
    extras: dict[str, Any] = {"camera": torch.randn(B, T, 5), "image": torch.randn(B, T, 7)}
    extras["memory"] = torch.randn(B, 3, 6)
    (x, sigma), given = noisy(), conditions()
    before = run(plain, x, sigma, given).sample
    after = run(model, x, sigma, dataclasses.replace(given, **extras), noise=torch.randn_like(x)).sample
    assert torch.equal(before, after)


@torch.no_grad()
def test_a_model_without_history_runs() -> None:
    """Offline video has none; the frame before is still a base."""
    model, (x, sigma), given = build(history=0), noisy(), conditions()
    plain = dataclasses.replace(given, history=None, history_mask=None, history_sigma=None)
    assert model.history is None
    whole, cache = run(model, x, sigma, plain).sample, KVCache.empty(model.config, B)
    assert torch.equal(whole, run(model, x, sigma, given).sample)
    step = run(model, x[:, :1], sigma[:, :1], cut(plain, slice(None), slice(0, 1)), cache=cache)
    torch.testing.assert_close(step.sample[:, 0], whole[:, 0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(2, 2, 2), (1, 3, 2), (6,)])
def test_several_frames_after_a_cache_equal_one_pass(sizes: tuple[int, ...]) -> None:
    model, (x, sigma), given = build(context=3), noisy(), conditions()
    cache, whole, first = KVCache.empty(model.config, B), run(model, x, sigma, given), 0
    for size in sizes:
        part = slice(first, first + size)
        step = run(model, x[:, part], sigma[:, part], cut(given, slice(None), part), cache=cache)
        assert step.kv is not None and step.kv[0].shape[1] == size
        cache, first = cache.append(*step.kv), first + size
        torch.testing.assert_close(step.sample, whole.sample[:, part], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(step.termination, whole.termination[:, part], rtol=1e-4, atol=1e-4)
    assert cache.count.tolist() == [T] * B


@torch.no_grad()
@pytest.mark.parametrize(
    ("mask", "sees"),
    [
        ("causal", lambda a, b: 0 <= a - b <= 4),
        ("full", lambda a, b: True),
        (block_causal(T, 2), lambda a, b: b // 2 <= a // 2),
        (documents(torch.tensor([0, 0, 0, 1, 1, 2])), lambda a, b: [0, 0, 0, 1, 1, 2][a] == [0, 0, 0, 1, 1, 2][b]),
    ],
)
def test_a_frame_sees_what_its_mask_says(mask: Mask, sees: Any) -> None:
    model, (x, sigma), given = build(pattern="t"), noisy(), conditions()
    before = run(model, x, sigma, given, mask=mask).sample
    for changed in range(T):
        other = x.clone()
        other[:, changed] += 1
        differs = (run(model, other, sigma, given, mask=mask).sample != before).flatten(2).any(dim=2).all(dim=0)
        assert differs.tolist() == [bool(sees(frame, changed)) for frame in range(T)]


def test_a_mask_of_another_kind_is_refused() -> None:
    model, frames, given = build(), noisy(), conditions()
    with pytest.raises(ConfigError, match="the mask is 'future'; allowed: 'causal', 'full', or a bool tensor .6, 6."):
        run(model, *frames, given, mask="future")
    with pytest.raises(ConfigError, match="the mask is torch.bool .2, 2.; allowed: bool .6, 6."):
        run(model, *frames, given, mask=torch.ones(2, 2, dtype=torch.bool))


@torch.no_grad()
def test_patches_that_span_frames() -> None:
    """Two frames a token: causal between tokens, both frames of one see each other."""
    model, (x, sigma), given = build(patch=(2, 2, 2)), noisy(), conditions()
    sigma = sigma[:, ::2].repeat_interleave(2, dim=1)
    before = run(model, x, sigma, given)
    assert before.sample.shape == x.shape and before.reward.shape[:2] == (B, T) == before.termination.shape
    x[:, 3] += 1
    after = run(model, x, sigma, given).sample
    differs = (after != before.sample).flatten(2).any(dim=2).all(dim=0)
    assert differs.tolist() == [False, False, True, True, True, True]


@torch.no_grad()
def test_a_patch_of_two_frames_has_the_base_of_its_first() -> None:
    """The frame before the clip is not there: neither of the first two frames may begin from it."""
    model, (x, sigma), given = build(patch=(2, 1, 1)), noisy(), conditions()
    given.previous_mask = (torch.arange(T) > 0).float().expand(B, T)
    other = dataclasses.replace(given, previous=given.previous + (torch.arange(T) < 2).float()[:, None, None, None])
    assert torch.equal(run(model, x, sigma, given).sample, run(model, x, sigma, other).sample)


def test_a_copy_of_a_compiled_model_has_weights_of_its_own() -> None:
    model = build()
    for block in model.blocks:
        block.compiled = block.forward  # type: ignore[assignment]  -- stands for what torch.compile gives
    other = copy.deepcopy(model)
    assert all(block.compiled is None for block in other.blocks) and pickle.dumps(model)
    run(other, *noisy(), conditions()).sample.sum().backward()
    assert all(p.grad is None for p in model.parameters())
    assert any(p.grad is not None for p in other.blocks.parameters())


def test_tables_of_rotations_serve_training_after_inference_mode() -> None:
    model, frames, given = build(), noisy(frames=3), conditions(frames=3)
    _filled.cache_clear()
    with torch.inference_mode():
        run(model, *frames, given)
    run(model, *frames, given).sample.sum().backward()


@torch.no_grad()
def test_noise_levels_are_not_rounded_with_the_weights() -> None:
    exact = build().sigma
    rounded = copy.deepcopy(exact).to(torch.bfloat16)
    for parameter, whole in zip(rounded.parameters(), exact.parameters(), strict=True):
        whole.copy_(parameter.float())
    sigma = torch.tensor([0.3, 0.7, 1.0])
    torch.testing.assert_close(rounded(sigma).float(), exact(sigma), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("patch", [(1, 1, 1), (1, 2, 2), (2, 1, 4), (3, 2, 1)])
def test_patches_go_back_to_frames(patch: tuple[int, int, int]) -> None:
    frames = torch.randn(B, T, C, SIZE, SIZE)
    parts = patchify(frames, patch)
    assert parts.shape == (B, T // patch[0], SIZE * SIZE // patch[1] // patch[2], C * patch[0] * patch[1] * patch[2])
    assert torch.equal(unpatchify(parts, patch, (SIZE, SIZE)), frames)


@torch.no_grad()
def test_other_outputs() -> None:
    """Velocity and noise have no base; a learned variance is a second set of channels."""
    model, (x, sigma), given = build(output="eps", newest_base=False, learned_variance=True), noisy(), conditions()
    set_gate(model, GATE_OPEN)
    out = run(model, x, sigma, given)
    assert out.log_var is not None and out.log_var.shape == out.sample.shape == x.shape
    assert not torch.equal(out.log_var, out.sample)
    assert build()(x, sigma, build().encode_context(given)).log_var is None


@torch.no_grad()
def test_other_sizes_run() -> None:
    model = build()
    given = conditions()
    given.history, given.previous = torch.randn(B, T, K, C, 6, 10), torch.randn(B, T, C, 6, 10)
    assert run(model, torch.randn(B, T, C, 6, 10), torch.rand(B, T), given).sample.shape == (B, T, C, 6, 10)


@pytest.mark.parametrize(
    "bad",
    [
        {"width": 30},
        {"pattern": "sx"},
        {"pattern": ""},
        {"patch": (0, 1, 1)},
        {"patch": (1, 3, 1)},
        {"text_layers": (9,)},
        {"output": "y"},
        {"output": "v"},
        {"history": -1},
        {"action_history": 0},
    ],
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
