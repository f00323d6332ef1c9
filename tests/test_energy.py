"""The energy score: it is least for draws from the truth, and its blocks cover each place once."""

from __future__ import annotations

import pytest
import torch

from worldsim.diffusion.objectives.energy import energy_score, scaled_energy_score, through_one_sample


def expected(shift: float, spread: float, count: int = 40000) -> float:
    """The mean score of draws from N(shift, spread) where the truth is N(0, 1), in three dimensions."""
    generator = torch.Generator().manual_seed(5)
    first, second, target = torch.randn(3, count, 3, generator=generator)
    return float(energy_score(shift + spread * first, shift + spread * second, target).mean())


def test_the_truth_scores_best() -> None:
    """Neither the mean (spread 0, what a squared error would learn) nor too much or too little noise does as well."""
    best = expected(0, 1)
    others = {(shift, spread): expected(shift, spread) for shift, spread in ((0, 0), (0, 0.7), (0, 1.4), (0.5, 1))}
    assert all(score > best + 0.01 for score in others.values()), (best, others)


def test_equal_draws_on_the_target_score_nothing() -> None:
    x = torch.randn(2, 5, 7)
    assert float(energy_score(x, x, x).abs().max()) < 0.01


@pytest.mark.parametrize("scales", [(1,), (2,), (3,), (1, 2, 4)])
def test_a_fault_counts_wherever_it_is(scales: tuple[int, ...]) -> None:
    """Blocks of every size cover each place once: the same fault costs the same at all places."""
    target = torch.zeros(1, 3, 4, 8)
    costs = []
    for row in range(4):
        for column in range(8):
            draw = target.clone()
            draw[0, 1, row, column] = 1.0
            costs.append(float(scaled_energy_score(draw, draw, target, scales)))
    assert max(costs) - min(costs) < 1e-6 < min(costs)


def test_large_blocks_tell_whether_places_agree() -> None:
    """Draws with the right spread at each place, but no agreement between them, score as well only in small blocks."""
    generator = torch.Generator().manual_seed(3)
    level = torch.randn(3, 4000, 1, 1, 1, generator=generator)
    agree = level.expand(3, 4000, 1, 4, 4)
    alone = torch.randn(2, 4000, 1, 4, 4, generator=generator)
    small, large = (
        [float(scaled_energy_score(draws[0], draws[1], agree[2], (side,)).mean()) for draws in (agree, alone)]
        for side in (1, 4)
    )
    assert small[0] == pytest.approx(small[1], abs=0.03)
    assert large[0] < large[1] - 0.03


def test_the_gradient_through_one_sample_is_right_on_the_average() -> None:
    """For draws theta + noise: the mean gradient through one, doubled, is that through both."""
    generator = torch.Generator().manual_seed(6)
    first, second, target = torch.randn(3, 40000, 3, generator=generator)
    found = []
    for both in (True, False):
        theta = torch.tensor([0.7, 0.0, -0.4], requires_grad=True)
        score = energy_score(theta + first, (theta if both else theta.detach()) + second, target)
        (score if both else through_one_sample(score)).mean().backward()
        assert theta.grad is not None
        found.append(theta.grad)
    torch.testing.assert_close(found[1], found[0], rtol=0.05, atol=0.01)
    score = torch.tensor([2.0], requires_grad=True)
    assert float(through_one_sample(score).detach()) == 2.0
