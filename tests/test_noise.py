"""Noise: a function of its key alone, normal, and unrelated between rows, steps and draws."""

from __future__ import annotations

import hashlib

import pytest
import torch

from worldsim.diffusion.noise import HISTORY, NEVER, SAMPLE, _quantiles, ends, keys_of, normal, row_keys, uniform

ROWS, COUNT = 256, 1024
ZERO = torch.zeros(ROWS, dtype=torch.long)


def test_noise_is_a_function_of_its_key() -> None:
    steps, keys = torch.tensor([3, 3, 4]), keys_of([1, 2, 1])
    noise = normal(keys, steps, SAMPLE, (2, 51))
    torch.randn(10)  # the global generator has no say
    assert torch.equal(noise, normal(keys, steps, SAMPLE, (2, 51)))
    for row in range(3):
        assert torch.equal(noise[row : row + 1], normal(keys[row : row + 1], steps[row : row + 1], SAMPLE, (2, 51)))
    assert torch.equal(noise.flatten(1)[:, :30], normal(keys, steps, SAMPLE, (30,)))  # a longer row begins as a shorter
    assert len({tuple(row.flatten().tolist()) for row in noise}) == 3
    assert not torch.equal(noise, normal(keys, steps, HISTORY, (2, 51)))


def test_noise_is_the_same_everywhere() -> None:
    """Made once; if the formula changes, every replay does: say so in CHANGELOG and write the new figures here."""
    words = normal(keys_of([7, 2**63 + 5]), torch.tensor([0, 100_000]), SAMPLE, (4, 3, 5))
    assert hashlib.sha256(words.numpy().tobytes()).hexdigest()[:16] == "818d170c7eef7880"
    assert [round(float(x), 4) for x in words.flatten()[:4]] == [-0.1842, -0.6858, 1.0867, 0.7891]


def _check_normal(noise: torch.Tensor) -> None:
    """Moments, and the share within each of 64 quantiles, of unrelated normal numbers (R, N)."""
    count = noise.numel()
    for power, expected, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float(noise.double().pow(power).mean()) - expected) < 5 * (variance / count) ** 0.5
    shares = torch.histc(torch.special.ndtr(noise.double()).float(), 64, 0, 1)
    chi2 = float(((shares - count / 64) ** 2 / (count / 64)).sum())
    assert abs(chi2 - 63) < 5 * (2 * 63) ** 0.5


def _check_unrelated(a: torch.Tensor, b: torch.Tensor) -> None:
    """Correlation of numbers at the same places, and of their squares, (R, N) each."""
    root = a.numel() ** 0.5
    assert abs(float((a * b).double().mean())) * root < 5
    assert abs(float(((a**2 - 1) * (b**2 - 1)).double().mean())) * root / 2 < 5


KEYS = {
    "seeds in a row": (keys_of(range(ROWS)), ZERO),
    "large seeds": (keys_of([3**40 + 2**32 * i for i in range(ROWS)]), ZERO + 9),
    "steps": (keys_of([5] * ROWS), torch.arange(ROWS)),
    "seeds and steps": (keys_of(range(ROWS)), torch.arange(ROWS)),
    "rows of training": (row_keys(3, ROWS), ZERO + 1000),
    "negative seeds": (keys_of([-i for i in range(ROWS)]), ZERO),
}


@pytest.mark.parametrize("name", KEYS)
def test_noise_is_normal_and_unrelated(name: str) -> None:
    keys, steps = KEYS[name]
    noise = normal(keys, steps, SAMPLE, (COUNT,))
    _check_normal(noise)
    _check_unrelated(noise[1:], noise[:-1])
    for lag in (1, 2, 8, 64):
        _check_unrelated(noise[:, lag:], noise[:, :-lag])
    _check_unrelated(noise, normal(keys, steps, HISTORY, (COUNT,)))
    _check_unrelated(noise, normal(keys, steps + 1, SAMPLE, (COUNT,))[:, torch.randperm(COUNT)])
    between = noise @ noise.T / COUNT**0.5  # of any two rows
    between.fill_diagonal_(0)
    assert float(between.abs().max()) < 6
    assert abs(float(between.square().sum() / ROWS / (ROWS - 1)) - 1) < 0.05


def test_keys_of_seeds_stay_apart() -> None:
    seeds = [*range(-50, 50), 2**32, 2**63, 2**64 - 1000, 2**64, 2**64 + 1, 2**100, -(2**64), -(2**100)]
    assert len(set(keys_of(seeds).tolist())) == len(seeds)
    assert len({*row_keys(1, 100).tolist(), *row_keys(2, 100).tolist()}) == 200
    assert torch.equal(row_keys(1, 100)[:7], row_keys(1, 7))


def test_quantiles() -> None:
    table = _quantiles(torch.device("cpu")).double()
    assert abs(float(table.mean())) < 1e-6 and abs(float(table.square().mean()) - 1) < 1e-6
    assert torch.equal(table.flip(0), -table) and bool((table.diff() > 0).all())


def test_even_noise() -> None:
    numbers = uniform(keys_of(range(ROWS)), ZERO, SAMPLE, (COUNT,))
    assert 0 <= float(numbers.min()) < 0.001 and 0.999 < float(numbers.max()) < 1
    assert abs(float(numbers.double().mean()) - 0.5) < 5 / (12 * numbers.numel()) ** 0.5


@pytest.mark.parametrize("probability", [0.01, 0.3, 0.9])
def test_ends_are_as_frequent_as_they_should_be(probability: float) -> None:
    keys, steps = keys_of(range(40)).repeat_interleave(100), torch.arange(100).repeat(40)
    over = ends(torch.full((4000,), probability), keys, steps)
    spread = (probability * (1 - probability) / len(over)) ** 0.5
    assert abs(float(over.float().mean()) - probability) < 4 * spread
    assert torch.equal(over[:100], ends(torch.full((100,), probability), keys[:100], steps[:100]))


def test_an_end_that_is_most_unlikely_never_comes() -> None:
    keys = keys_of(range(30000))
    assert not bool(ends(torch.full((30000,), 0.99 * NEVER), keys, torch.full((30000,), 7)).any())
    assert ends(torch.tensor([1.0, 0.0]), keys_of([5, 5]), torch.tensor([0, 0])).tolist() == [True, False]


@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (5,)])
def test_noise_of_any_shape(shape: tuple[int, ...]) -> None:
    for rows in (0, 1, 3):
        keys = row_keys(0, rows)
        assert normal(keys, keys, SAMPLE, shape).shape == uniform(keys, keys, SAMPLE, shape).shape == (rows, *shape)
