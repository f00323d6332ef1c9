"""Long rollouts, intervals, ranges, looking away, the classifier and events, on tiny worlds and frames made here."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from worldsim.data.episodes import Dataset, Episode, write_episode
from worldsim.errors import DataError
from worldsim.evaluation import classifier, events, intervals, long_rollout, memory, real
from worldsim.evaluation.ranges import Ranges
from worldsim.evaluation.reference import MEASURES, ReferenceStats, cumulative, fits, session_fits
from worldsim.evaluation.report import EvalConfig, evaluate, table
from worldsim.evaluation.rollout import Runner, context_of, cut, recorded
from worldsim.games.doom.events import EVENTS, HELD_OUT_PAIRS, TELL
from worldsim.games.doom.probes import BOOK

KEYS = {"": 0, "left": 0, "right": 1}
ROOM = {"none": 0, "left": 1, "right": 2}


def noise(count, seed=0, low=0, high=256):
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(low, high, (count, 12, 16, 3), np.uint8))


def segments_from(dataset, world, count=4, frames=4):
    episodes = dataset.read("train")
    found = cut(episodes, dataset.action_space, count, context_of(world), frames, np.random.default_rng(0))
    return found, episodes


# Intervals


def test_an_interval_holds_the_figure_and_shrinks_with_more_episodes():
    rng = np.random.default_rng(3)
    widths = []
    for count in (10, 160):
        sums = np.stack([rng.uniform(50, 150, count), np.full(count, 100.0)], axis=1)
        found = intervals.bootstrap(sums, range(count), intervals.ratio())
        assert found is not None and found[0] < sums[:, 0].sum() / sums[:, 1].sum() < found[1]
        widths.append(found[1] - found[0])
    assert widths[1] < 0.5 * widths[0]


def test_segments_from_one_episode_are_drawn_together():
    # The same stretch ten times over is no more evidence than once.
    sums = np.array([[10.0, 100.0], [90.0, 100.0], [40.0, 100.0]])
    once = intervals.bootstrap(sums, [0, 1, 2], intervals.ratio())
    often = intervals.bootstrap(np.repeat(sums, 10, axis=0), [0] * 10 + [1] * 10 + [2] * 10, intervals.ratio())
    assert once == pytest.approx(often)
    assert intervals.bootstrap(sums, [5, 5, 5], intervals.ratio()) is None


def test_intervals_cover_as_often_as_they_say():
    rng, inside = np.random.default_rng(11), 0
    for trial in range(100):
        values = rng.normal(5.0, 2.0, 40)
        found = intervals.bootstrap(np.stack([values, np.ones(40)], axis=1), range(40), intervals.ratio(), trial)
        assert found is not None
        inside += found[0] <= 5.0 <= found[1]
    assert inside >= 87  # of 95 expected


def test_psnr_intervals_agree_with_psnr():
    truth = noise(24, 1).unflatten(0, (6, 4))
    near, far = (truth.float() + torch.randn(truth.shape) * scale for scale in (4, 16))
    near, far = near.clamp(0, 255).byte(), far.clamp(0, 255).byte()
    found: Any = intervals.psnr_intervals(near, truth, {"far": far}, range(6))
    from worldsim.evaluation.metrics import psnr

    own, other = (psnr(frames.flatten(0, 1), truth.flatten(0, 1)) for frames in (near, far))
    assert found["over_far"] == pytest.approx(own - other)
    low, high = found["psnr_interval"]
    assert low <= own <= high and high - low < 1
    over = found["over_far_interval"]
    assert over[0] <= own - other <= over[1] and over[0] > 0


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"), [(48, 48, 0.926, 1.0), (0, 10, 0.0, 0.278), (5, 10, 0.237, 0.763)]
)
def test_wilson(hits, count, low, high):
    assert intervals.wilson(hits, count) == pytest.approx((low, high), abs=1e-3)


def test_wilson_of_nothing_and_words():
    assert intervals.wilson(0, 0) is None
    assert intervals.shown(29.2, (28.9, 29.5), 1) == "29.2 [28.9, 29.5]"
    assert intervals.shown(29.2, None) == "29.20" and intervals.shown(None, None) == "-"


# Reference ranges


def test_histogram_distance_is_in_grey_levels():
    dark, light = torch.full((3, 8, 8, 3), 40, dtype=torch.uint8), torch.full((3, 8, 8, 3), 120, dtype=torch.uint8)
    truth = ReferenceStats.of(dark)
    assert truth.measure(dark)[:, 2].tolist() == [0, 0, 0]
    assert truth.measure(light)[:, 2].tolist() == [80, 80, 80]
    assert torch.all(cumulative(noise(5))[:, :, -1] == 1)


def test_real_frames_are_in_range_and_others_are_not():
    frames = noise(400, 4)
    truth = ReferenceStats.of(frames)
    good = fits(truth.measure(frames), truth.limits).float().mean(dim=0)
    assert good.tolist() == pytest.approx([0.98] * 3, abs=0.006)
    blurred = frames.float().mean(dim=(1, 2), keepdim=True).expand(frames.shape).byte()
    values = truth.measure(torch.cat([frames[:64], blurred[:64]])).unflatten(0, (2, 64))
    assert session_fits(values, truth.limits).tolist() == [True, False]
    assert not fits(values[1], truth.limits)[:, MEASURES.index("sharpness")].any()
    wider = truth.wider(blurred)
    assert all(wider[name][0] <= truth.limits[name][0] for name in MEASURES) and wider["sharpness"][0] == 0
    assert truth.wider(frames[:0]) == truth.limits


# Long runs


def test_plans():
    rng, space = np.random.default_rng(0), spaces.Discrete(3)
    none, held, quick = (long_rollout.plan(name, ROOM | {"": 0}, space, 650, rng) for name in long_rollout.PATTERNS[:3])
    assert {int(a) for a in none} == {0} and len(none) == len(held) == len(quick) == 650
    changes = [t for t in range(1, 650) if held[t] != held[t - 1]]
    assert all(t % long_rollout.HOLD == 0 for t in changes)
    runs = np.diff([t for t in range(1, 650) if quick[t] != quick[t - 1]])
    assert 1 < runs.mean() < 2 * long_rollout.LONGEST and {int(a) for a in quick} == {0, 1, 2}
    assert long_rollout.plan("none", {}, space, 5, rng) == []
    wheel = spaces.Box(-1, 1, (2,), np.float32)
    assert all(wheel.contains(action) for action in long_rollout.plan("random", {}, wheel, 20, rng))
    assert long_rollout.checkpoints(300) == [16, 64, 256, 300] and long_rollout.checkpoints(16) == [16]


def test_long_runs_are_judged_at_checkpoints(dataset, world):
    world.card = dataclasses.replace(world.card, keys=KEYS)
    segments, episodes = segments_from(dataset, world, 2)
    runner = Runner(world, batch=8)
    frames = torch.cat([torch.from_numpy(episode.frames) for episode in episodes])
    runs = long_rollout.LongRollout(runner, segments, episodes, Ranges.of(frames, None, []), (0.0, 5.0), None, [{}, {}])
    report, pictures, captions = runs.run(20)
    assert list(report["patterns"]) == list(long_rollout.PATTERNS) and len(pictures) == 2 * len(captions) == 16
    for pattern in report["patterns"].values():
        assert list(pattern["at"]) == ["16", "20"] and pattern["real"] is None
        assert all(0 <= pattern["at"]["20"][key] <= 1 for key in ("in_range", "sessions_in_range", "sessions_stayed"))
        assert pattern["at"]["20"]["sessions_stayed"] <= pattern["at"]["16"]["sessions_stayed"]
    # Each session is what it is alone.
    alone = runner.free(segments, runs._acts(20)["none"], 20)
    assert torch.equal(alone[0, 19], torch.from_numpy(pictures[1]))


def test_a_run_of_true_frames_stays_and_one_that_fades_does_not(dataset, world):
    segments, episodes = segments_from(dataset, world, 2)
    frames = torch.cat([torch.from_numpy(episode.frames) for episode in episodes])
    truth = Ranges.of(frames, None, [])
    values = truth.measure(frames[:300], []).expand(2, -1, -1).clone()
    values[1, 200:, 1] += 100  # brighter
    track = long_rollout.Track(values, torch.ones(values.shape[:2]))
    runs = long_rollout.LongRollout(Runner(world), segments, episodes, truth, (0.0, 5.0), None, [{}, {}])
    report = runs.judge({"held": track}, 300)
    at = report["patterns"]["held"]["at"]
    assert [at[key]["sessions_stayed"] for key in ("64", "256", "300")] == [1.0, 0.5, 0.5]
    assert report["in_range"] == report["stayed"] == 0.5 and report["stayed_interval"][0] < 0.5
    assert "sessions in all ranges at the end 0.50" in long_rollout.table(report)


def test_the_real_game_widens_the_ranges(dataset, world):
    pytest.importorskip("Box2D")
    recipe = real.find_recipe("car-racing")
    env = real.open_game(recipe)
    assert recipe is not None and env is not None and real.find_recipe("no such game") is None
    plans = [[np.asarray(recipe.keys[""], np.float32)] * 5] * 2
    runs = [run for run, _ in real.rollouts(recipe, env, plans, (16, 16), np.random.default_rng(0))]
    assert [run.shape for run in runs] == [(6, 16, 16, 3)] * 2 and not np.array_equal(runs[0], runs[1])


def test_runtime_and_whole_report(world_path, dataset, tmp_path):
    config = EvalConfig(
        world=world_path, data=dataset.path, out=tmp_path, split="train", basics=False, long_rollout=18,
        long_rollout_starts=1, memory=True, events=True, batch=4,
    )  # fmt: skip
    report = evaluate(config)
    assert "next_frame" not in report and report["long_rollout"]["frames"] == 18
    assert "skipped" in report["memory"] and "skipped" in report["events"]
    assert (tmp_path / "long_rollout.png").is_file()
    text = table(report)
    assert "long runs of 18 frames" in text and "look away and back: the real game" in text and "events: " in text


# Looking away


@pytest.mark.parametrize("away", memory.AWAY)
def test_a_glance_turns_there_and_back(away):
    for way in memory.script(ROOM | {"": 0}, away):
        assert len(way) == away and way.count(1) == way.count(2) <= memory.TURNS
        assert way[0] != 0 and way[-1] == 0
    assert memory.script({"": 0, "up": 1}, away) == []


def test_an_emptied_world_has_only_its_last_frames(dataset, world):
    segments, _ = segments_from(dataset, world, 3, 6)
    runner = Runner(world, batch=2)
    emptied, full = memory.forgetful(runner, segments), runner.free(segments, recorded(segments))
    assert emptied.shape == full.shape and not torch.equal(emptied, full)
    # Frames older than the history do not matter to it.
    old = context_of(world) - world.dynamics.config.history
    changed = segments.frames.clone()
    changed[:, :old] = 255 - changed[:, :old]
    other = dataclasses.replace(segments, frames=changed)
    assert torch.equal(memory.forgetful(runner, other), emptied)
    assert not torch.equal(runner.free(other, recorded(other)), full)
    report, pictures = memory.compare(runner, segments)
    assert report["segments"] == 3 and len(pictures) == 15
    assert report["over_emptied"] == pytest.approx(report["psnr"] - report["emptied_psnr"])
    assert "memory gives" in memory.table({"8": report, "16": {"skipped": "none"}})
    assert "another view -, " in memory.table({"8": {**report, "other_psnr": None}})  # of one segment there is none


@pytest.mark.slow
def test_doom_shows_the_same_picture_again():
    pytest.importorskip("vizdoom")
    recipe = real.find_recipe("doom")
    env = real.open_game(recipe)
    assert recipe is not None and env is not None
    found = memory.look_aways(recipe, env, 16, 2, 6, (24, 32), np.random.default_rng(0))
    env.close()
    assert found is not None and found.length == 16 and found.context == 6
    home, back = found.before[:, 0], found.truth[:, -1]
    from worldsim.evaluation.metrics import psnr

    for row in range(len(found)):
        assert psnr(home[row : row + 1], back[row : row + 1]) >= memory.SAME


# The classifier and events


def labelled(count, seed, length=60):
    """An episode of noise in which the light goes out halfway, and things are white squares."""
    rng = np.random.default_rng([seed, count])
    frames = rng.integers(90, 140, (length + 1, 40, 40, 3), np.uint8)
    prompts, index = [], []
    scenario = ("take_cover", "my_way_home")[count % 2]
    for t in range(length + 1):
        dark, imp = t > length // 2, t % 10 > 4
        if scenario == "my_way_home":
            frames[t, :, :, 2] //= 3
        if imp:
            x, y = rng.integers(0, 28), rng.integers(0, 28)
            frames[t, y : y + 12, x : x + 12] = 250
        if dark:
            frames[t] //= 3
        event = "lights out" if length // 2 < t <= length // 2 + TELL else ""
        label = {"text": f"{scenario}", "scenario": scenario, "imp": imp, "wall": False, "event": event, "fog": "none"}
        label |= {"light": "dark" if dark else "normal"}
        label |= {event.thing: False for event in EVENTS.values() if event.thing and event.thing != "imp"}
        prompts.append(label)
        index.append(t)
    zeros = np.zeros(length, bool)
    return Episode(
        frames=frames, actions=rng.integers(0, 2, length), rewards=np.zeros(length, np.float32), terminated=zeros,
        truncated=zeros, prompt_index=np.array(index, np.int32), prompts=prompts,
    )  # fmt: skip


QUICK = classifier.ClassifierConfig(width=8, frames=600, steps=120, batch=24, false_positives=0.05)


@pytest.fixture(scope="module")
def recording(tmp_path_factory, dataset):
    """A small recording with labels, made here."""
    path = tmp_path_factory.mktemp("labelled")
    card = (dataset.path / "dataset.json").read_text()
    (path / "dataset.json").write_text(card)
    for i in range(10):
        write_episode(path / "train" / f"{i:06}.safetensors", labelled(i, 0))
    return Dataset(path)


@pytest.fixture(scope="module")
def judge(recording, tmp_path_factory):
    """A classifier of that recording."""
    torch.set_num_threads(1)
    return classifier.trained(recording, tmp_path_factory.mktemp("judge") / "judge.safetensors", QUICK)


def test_a_classifier_learns_labels_and_is_kept(recording, judge, tmp_path):
    assert set(judge.labels) == {"imp", "light", "scenario"} and judge.labels["imp"] == (False, True)
    frames, numbers = classifier.examples(labelled(3, 9), judge.labels)
    found = classifier.accuracy(judge, frames, numbers)
    assert found["light"]["right"] > 0.95 and found["scenario"]["right"] > 0.95
    assert found["imp"]["found"] > 0.6 and found["imp"]["invented"] < 0.2
    assert judge.shows(frames, "light", "dark").tolist() == (~judge.shows(frames, "light", "normal")).tolist()
    path = tmp_path / "judge.safetensors"
    classifier.save(judge, path, QUICK)
    again = classifier.load(path, QUICK)
    assert again is not None and again.thresholds == judge.thresholds
    assert torch.equal(again.shares(frames)["imp"], judge.shares(frames)["imp"])
    assert classifier.load(path, dataclasses.replace(QUICK, steps=3)) is None
    path.write_bytes(b"damaged")
    assert classifier.load(path, QUICK) is None and classifier.load(tmp_path / "none", QUICK) is None


def test_a_classifier_needs_labels(dataset):
    with pytest.raises(DataError, match="no labels"):
        classifier.train(dataset, QUICK)


def test_places_for_events_and_held_out_pairs():
    episodes = [labelled(i, 1) for i in range(4)]
    places = events.possible(BOOK, episodes, 6)
    assert all(scenario in ("take_cover", "my_way_home") for scenario, _ in places)
    for (scenario, name), tries in places.items():
        label, value = events.target(EVENTS[name])
        for one in tries:
            episode = episodes[one.episode]
            seen = episode.prompts[one.at - 5 : one.at + 1]
            assert all(prompt[label] != value for prompt in seen) and not seen[-1]["event"]
            assert one.scenario == scenario and one.at + TELL < len(episode.frames)
    assert ("take_cover", "lights on") in places and ("take_cover", "fog lifts") not in places
    rng = np.random.default_rng(0)
    known, held = (events.choose(BOOK, places, 5, flag, rng) for flag in (False, True))
    assert all(((one.scenario, one.event) in HELD_OUT_PAIRS) is False for one in known)
    assert held and all((one.scenario, one.event) in HELD_OUT_PAIRS for one in held)
    assert max(sum(one.event == name for one in known) for name in EVENTS) == 5


def test_words_name_place_event_and_what_lasts():
    rng = np.random.default_rng(1)
    label = {"scenario": "take_cover", "light": "dark", "fog": "none"}
    for _ in range(10):
        parts = events.words(BOOK, label, EVENTS["imp"], rng).split(", ")
        assert parts[1] in EVENTS["imp"].words and parts[2] in EVENTS["lights out"].lasting and len(parts) == 3
        assert len(events.words(BOOK, label, EVENTS["lights on"], rng).split(", ")) == 2  # the dark does not last
        assert len(events.words(BOOK, label | {"light": "normal"}, None, rng).split(", ")) == 1


def test_the_judge_sees_real_events_and_no_others(judge):
    episode = labelled(1, 5)
    dark, light = (torch.from_numpy(episode.frames[t : t + TELL]) for t in (34, 2))
    both = torch.stack([dark, light])
    assert events.happened(BOOK, judge, both, ["lights out"] * 2).tolist() == [True, False]
    assert events.happened(BOOK, judge, both, ["lights on"] * 2).tolist() == [False, True]


def test_events_in_a_world(world, recording, judge):
    class Encoder:
        width = world.book.width

        def encode(self, text, tokens):
            return torch.randn(3, self.width)

    world.book._encoder = Encoder()
    world.card = dataclasses.replace(world.card, keys=KEYS)
    episodes = [labelled(i, 2) for i in range(4)]
    tries = events.Events(BOOK, Runner(world, batch=8), recording, episodes, judge, context_of(world), 0)
    report, pictures, captions = tries.run(2)
    assert len(pictures) == TELL * len(captions)
    # Noise of a world that knows no words is what it is with and without them.
    assert set(report["known"]["by_event"]) <= {"imp", "lights out", "lights on"} and report["known"]["tries"] >= 4
    assert set(report["held_out"]["by_event"]) <= {"imp", "lights out"}
    for group in ("known", "held_out"):
        assert 0 <= report[group]["happened_interval"][0] <= report[group]["happened"] <= 1
    assert report["judge"]["real_events"] == 1.0 and report["judge"]["real_frames"]["light"]["right"] > 0.95
    assert report["scenarios"]["starts"] == 8 and 0 <= report["scenarios"]["later"] <= 1
    assert "known pairs" in events.table(report)
