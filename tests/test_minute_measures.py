"""The measures of a first minute: each must see what it is for, and call nothing out of nothing."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from gymnasium import spaces
from minute_frames import kept, panned, weave

from worldsim.data.record import RecordConfig, recipe_for
from worldsim.errors import DataError
from worldsim.evaluation import following, realism, recovery, stillness
from worldsim.evaluation import minute_measures as measures
from worldsim.evaluation.played import Played
from worldsim.evaluation.probe import Probe
from worldsim.evaluation.ranges import Ranges, judge
from worldsim.evaluation.rollout import Runner, context_of, cut
from worldsim.evaluation.steering import pan


def test_what_is_the_same_cannot_be_told(quick):
    real, _ = kept()
    other = realism.tell_itself(real)
    assert other.accuracy is not None and 0.2 <= other.accuracy <= 0.8


def test_a_weave_is_told(coarse):
    real, _ = kept()
    found = realism.tell(real, weave(16), realism.folds_of(16))
    assert found.accuracy is not None and found.accuracy > 0.95
    assert found.interval is not None and found.interval[0] > 0.8
    assert found.drawn.min() > found.real.max()


# eight networks in full; below, rotten frames are told after fewer steps, and so is a weave
@pytest.mark.slow
def test_the_measure_tells_what_is_kept_for_it():
    """Or it gives no figures: plain pixels tell the melted frames at .50."""
    found = realism.power()
    assert not realism.is_blind(found) and found["rotten"] > 0.95 and found["melted"] > 0.75
    assert realism.is_blind({**found, "melted": 0.51}) and realism.is_blind({**found, "rotten": 0.9})


@pytest.fixture
def coarse(monkeypatch):
    """Less training: what is coarse is told all the same."""
    monkeypatch.setattr(realism, "STEPS", 80)


@pytest.fixture(scope="module")
def two_ages():
    """The results at two ages: of real frames against themselves, and against rotten ones."""
    real, rotten = kept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(realism, "STEPS", 80)
        return realism.tell_by_age([real, real], [real, rotten], realism.folds_of(16))


def test_each_age_has_its_own_figure(two_ages):
    first, second = two_ages
    assert first.accuracy == pytest.approx(0.5) and second.accuracy is not None and second.accuracy > 0.9


def test_a_session_is_told_by_networks_that_never_saw_it():
    """Grain cannot be told from other grain, unless it was learned by heart."""
    found = realism.tell(weave(16), weave(16, seed=1), realism.folds_of(16))
    assert found.accuracy is not None and found.accuracy < 0.75


def test_intervals_are_over_episodes(quick):
    real, rotten = kept()
    alone, grouped = (
        realism.tell(real, rotten, realism.folds_of(16), groups=groups) for groups in (None, [0] * 8 + [1] * 8)
    )
    assert alone.interval and grouped.interval and alone.interval != grouped.interval


def test_empty_sessions_are_left_out(quick):
    real, drawn = kept()
    some = [frames if i % 2 else frames[:0] for i, frames in enumerate(drawn)]
    found = realism.tell(real, some, realism.folds_of(16))
    assert found.accuracy is not None and found.drawn.isnan().tolist() == [i % 2 == 0 for i in range(16)]
    assert realism.tell(real, [frames[:0] for frames in drawn], realism.folds_of(16)).accuracy is None
    assert realism.tell(real[:1], drawn[:1], [0]).accuracy is None  # nothing to learn from


def test_a_missing_reference_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(realism, "REFERENCES", tmp_path)
    with pytest.raises(DataError, match="rotten.npz cannot be read"):
        realism.power.__wrapped__()


def test_a_frozen_clip_is_still_but_does_not_turn():
    frozen = panned(steps=1).expand(-1, 13, -1, -1, -1)
    assert stillness.distance(frozen[:, 9], frozen[:, 0]).tolist() == [0, 0]
    good, amount = stillness.turned(frozen[:, 0], frozen[:, 1:], pan(), -1.0)
    assert good.tolist() == [False, False] and amount.tolist() == [0, 0]
    clip = panned(steps=13)
    assert stillness.turned(clip[:, 0], clip[:, 1:], pan(), -1.0)[0].all()
    assert not stillness.turned(clip[:, 0], clip[:, 1:], pan(), 1.0)[0].any()
    assert (stillness.distance(clip[:, 12], clip[:, 0]) > 10).all()


def test_block_distance_is_in_grey_levels_and_blind_to_fine_grain():
    flat = torch.full((1, 64, 64, 3), 100, dtype=torch.uint8)
    assert stillness.distance(flat + 7, flat).tolist() == [7]
    grain = flat.clone()
    grain[:, ::2, ::2] += 20
    grain[:, 1::2, 1::2] -= 20
    assert stillness.distance(grain, flat).item() < 0.01


def test_spread_of_distances():
    found = stillness.spread(torch.tensor([0.5, 1.0, 9.0, math.nan]))
    assert found["median"] == 1.0 and found["over"] == pytest.approx(1 / 3) and found["sessions"] == 3
    assert found["median_interval"][0] <= 1.0 <= found["median_interval"][1] and found["worst"] == 9.0
    assert stillness.spread(torch.tensor([math.nan])) == {"median": None, "sessions": 0}


def test_a_game_that_ends_at_once_has_no_reference(world, dataset):
    recipe = recipe_for(RecordConfig(game="CartPole-v1"))
    nothing = Played(
        [1, 12], torch.zeros(1, 2, 40, 40, 3, dtype=torch.uint8), torch.tensor([[True, False]]),
        torch.zeros(1, 13), torch.tensor([2]), torch.zeros(1, 13), torch.zeros(1, 13, 2), [{}],
    )  # fmt: skip
    with pytest.raises(DataError, match="CartPole-v1 ended within 12 steps under every beginner"):
        measures.Reference.of([nothing], Probe(recipe), world.autoencoder)
    going = dataclasses.replace(nothing, present=torch.tensor([[True, True]]))
    assert measures.Reference.of([going], Probe(recipe), world.autoencoder).starts == [0]


def test_a_beginner_steers_by_the_keys_there_are():
    space = spaces.Discrete(4)
    recipe = dataclasses.replace(recipe_for(RecordConfig(game="CartPole-v1")), keys={"": 0, "left": 1, "right": 2})
    steered = [Probe(recipe).steered(target, 0, space) for target in (-0.9, -0.3, 0.0, 0.3, 0.9)]
    assert steered == [1, 1, 0, 2, 2]
    ahead = dataclasses.replace(recipe, keys={**recipe.keys, "up": 3, "left+up": 4})
    assert [Probe(ahead).steered(target, 0, space) for target in (-0.9, -0.3, 0.1, 0.3)] == [1, 4, 3, 2]


def test_ranges_are_of_all_measures_together(two_ages):
    real, rotten = kept()
    ranges = Ranges.of(torch.cat(real), None, [{}] * 16)
    assert ranges.names == ["sharpness", "brightness", "histogram"]
    good = judge(ranges, real, [{}] * 16, two_ages[0])
    bad = judge(ranges, rotten, [{}] * 16, two_ages[1])
    assert good["in_range_of"] == bad["in_range_of"] == [*ranges.names, "told"]
    assert (
        good["in_range"] > 0.5 and bad["in_range"] < 0.1 and bad["told_in_range"] < 0.1
    )  # 16 frames are few for a range
    assert judge(ranges, real, [{}] * 16, None)["in_range_of"] == ranges.names
    assert judge(ranges, [real[0][:0]], [{}], None)["in_range"] is None


def test_keys_are_read_off_frames(monkeypatch):
    monkeypatch.setattr(following, "STEPS", 100)
    # Three keys: left, right, none; the picture moves accordingly.
    rng, clips, keys = np.random.default_rng(0), [], []
    for row in range(24):
        wide = panned(1, 24, 2, row)[0]
        key = rng.integers(3, size=6).repeat(4)
        places = np.clip(12 + np.cumsum(np.array([-1, 1, 0])[key]), 0, 23)
        clips.append(wide[np.concatenate([[12], places])])
        keys.append(key)
    frames, numbers = torch.stack(clips), torch.from_numpy(np.stack(keys))
    pairs, found, sources = following.pairs_of(frames[:, 1:], numbers, frames[:, 0])
    assert len(pairs) == len(found) == len(sources) and set(found.tolist()) == {0, 1, 2}
    frozen = pairs[:, :1].expand(-1, 2, -1, -1, -1)
    report = following.read_keys((pairs, found), (frozen, found), (sources, sources))
    assert report["real_read"] > report["chance"] + 0.2 and report["read"] < report["chance"] + 0.15
    nothing = following.read_keys((pairs[:0], found[:0]), (pairs[:0], found[:0]), ([], []))
    assert nothing["read"] is None


def segments(dataset, world, count=3, frames=6):
    found = cut(dataset.read("train"), dataset.action_space, count, context_of(world), frames, np.random.default_rng(0))
    return dataclasses.replace(found, frames=found.frames[:, : found.context]), found


def test_nothing_pasted_differs_in_nothing(dataset, world, monkeypatch):
    begin, whole = segments(dataset, world)
    monkeypatch.setattr(recovery, "PATCH", 2)
    runner, real = Runner(world, batch=2), whole.truth.flatten(0, 1)
    report = recovery.recovery(runner, begin, whole.taken, real, (1, 4, 400))
    assert list(report) == ["1", "4"] and report["1"]["difference"] > 0
    assert report["1"]["pasted"] > 0 and report["1"]["unpasted"] > 0
    monkeypatch.setattr(recovery, "PASTED", 0)
    report = recovery.recovery(runner, begin, whole.taken, real, (1, 4))
    assert report["1"]["difference"] == report["4"]["difference"] == 0
    assert report["4"]["pasted"] == report["4"]["unpasted"]


def test_the_nearest_real_patch_of_a_real_patch_is_itself():
    frames = torch.randint(0, 256, (5, 64, 64, 3), dtype=torch.uint8)
    bank = recovery.crops(frames, [(2, 3)] * 5, (8, 8))
    assert recovery.nearest(bank, bank).max() < 1e-3
    assert recovery.nearest(recovery.crops(frames // 2, [(2, 3)] * 5, (8, 8)), bank).min() > 1
    latents = torch.zeros(4, 8, 8)
    assert recovery.paste(latents, (2, 3), torch.ones(4, 3, 3)).sum() == 36 and latents.sum() == 0


def test_following_of_a_tiny_world(dataset, world, quick):
    begin, whole = segments(dataset, world, 4)
    report = following.following(Runner(world, batch=4), begin, whole.taken, whole.truth)
    assert report["shuffled_ratio"] > 0 and math.isfinite(report["over_copy_db"]) and report["frames"] == 6
