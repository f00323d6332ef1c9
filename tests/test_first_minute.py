"""The measures of `worldsim eval --first-minute`: each must see what it is for, and call nothing out of nothing."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from worldsim import cli
from worldsim.data.games.palettes import PAIRS, UNSEEN, Palette, palette_of, parse_palette, prompt_for
from worldsim.errors import ConfigError, DataError
from worldsim.evaluation import following, realism, recovery, stillness
from worldsim.evaluation import minute_measures as measures
from worldsim.evaluation.beginners import BEGINNERS, Script, beginner
from worldsim.evaluation.config import EvalConfig
from worldsim.evaluation.first_minute import FirstMinute, Minute, first_minute, real_game
from worldsim.evaluation.minute_table import table
from worldsim.evaluation.played import Played, find_starts, play_real, play_world, segments_of
from worldsim.evaluation.probe import Probe, brightest, probe_of
from worldsim.evaluation.ranges import Ranges, judge
from worldsim.evaluation.real import find_recipe
from worldsim.evaluation.rollout import Runner, context_of, cut
from worldsim.evaluation.steering import pan
from worldsim.world import World

SMALL = FirstMinute(
    starts=4, seconds=1.7, prompt_seconds=0.5, ages=(8, 16), rest_ages=(20,), beginners=("tap", "rest"), first_frames=3
)


def kept():
    """Real frames and rotten ones, one of each of 16 sessions."""
    with np.load(realism.REFERENCE) as file:
        return list(torch.from_numpy(file["real"])), list(torch.from_numpy(file["drawn"]))


def weave(count, seed=0):
    """Grey frames with a fine grain."""
    rng = np.random.default_rng(seed)
    return [torch.from_numpy(rng.integers(70, 90, (1, 64, 64, 1), np.uint8).repeat(3, axis=3)) for _ in range(count)]


def panned(rows=2, steps=8, shift=3, seed=0):
    """Clips of a wide smooth picture that moves to the left by `shift` pixels a step."""
    rng = np.random.default_rng(seed)
    wide = torch.from_numpy(rng.integers(0, 256, (rows, 3, 16, 40), np.uint8)).float()
    wide = torch.nn.functional.interpolate(wide, (64, 160), mode="bicubic").clamp(0, 255).byte().permute(0, 2, 3, 1)
    return torch.stack([wide[:, :, shift * t : shift * t + 64] for t in range(steps)], dim=1)


# Told from real


@pytest.fixture
def quick(monkeypatch):
    """Networks that learn little, in no time, and a power that is tested elsewhere."""
    monkeypatch.setattr(realism, "STEPS", 25)
    monkeypatch.setattr(following, "STEPS", 20)
    monkeypatch.setattr(recovery, "AFTER", (1, 4))
    monkeypatch.setattr(realism, "power", lambda: 0.97)


def test_what_is_the_same_cannot_be_told(quick):
    real, _ = kept()
    found = realism.tell(real, real, realism.folds_of(len(real)))
    assert found.accuracy == pytest.approx(0.5)
    other = realism.tell_itself(real)
    assert other.accuracy is not None and 0.2 <= other.accuracy <= 0.8


def test_a_weave_and_rotten_frames_are_told():
    real, _ = kept()
    found = realism.tell(real, weave(16), realism.folds_of(16))
    assert found.accuracy is not None and found.accuracy > 0.95
    assert found.interval is not None and found.interval[0] > 0.8
    assert found.drawn.min() > found.real.max()
    assert realism.power() >= realism.POWER  # or the measure gives no figures


def test_empty_sessions_are_left_out(quick):
    real, drawn = kept()
    some = [frames if i % 2 else frames[:0] for i, frames in enumerate(drawn)]
    found = realism.tell(real, some, realism.folds_of(16))
    assert found.accuracy is not None and found.drawn.isnan().tolist() == [i % 2 == 0 for i in range(16)]
    assert realism.tell(real, [frames[:0] for frames in drawn], realism.folds_of(16)).accuracy is None
    assert realism.tell(real[:1], drawn[:1], [0]).accuracy is None  # nothing to learn from


def test_a_missing_reference_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(realism, "REFERENCE", tmp_path / "none.npz")
    with pytest.raises(DataError, match="none.npz cannot be read"):
        realism.power.__wrapped__()


# Stillness


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


# Layout


def test_doom_is_laid_out():
    pytest.importorskip("vizdoom")
    from worldsim.evaluation.probe_doom import DoomProbe

    recipe = find_recipe("doom-health-gathering")
    assert recipe is not None
    probe = DoomProbe(recipe)
    real, rotten = (torch.cat(frames) for frames in kept())
    names = probe.layout_names
    values, wrong = probe.layout(real, [{}] * 16), probe.layout(torch.cat(weave(2)), [{}] * 2)
    assert values[:, names.index("misplaced")].max() == 0
    assert torch.allclose(values[:, :3].sum(dim=1), torch.ones(16)) and values[:, :3].median(dim=0).values.min() > 0.1
    assert wrong[:, names.index("wall")].tolist() == [1, 1] and wrong[:, names.index("sky_row")].isnan().all()
    column = names.index("sky")
    away = measures.distance(probe.layout(rotten, [{}] * 16)[:, column], values[:, column])
    assert away is not None and away > 0.15
    sky_down = torch.cat([real[:, 32:], real[:, :32]], dim=1)
    assert probe.layout(sky_down, [{}] * 16)[:, names.index("misplaced")].median() > 0.4


def test_a_doom_beginner_walks_about():
    pytest.importorskip("vizdoom")
    from worldsim.evaluation.probe_doom import DoomProbe

    recipe = find_recipe("doom-health-gathering")
    assert recipe is not None
    probe = DoomProbe(recipe)
    starts = find_starts(probe, 2, (64, 64), [("", {})], 3)
    assert [start.moving for start in starts] == [True, False]
    env = probe.open()
    space = env.action_space
    env.close()
    found = {}
    for name in ("steer", "rest", "hold"):
        ages = range(4, 81, 4)
        played = play_real(
            probe, starts, lambda i, name=name: beginner(name, probe, space, {}, [0, i]), 80, ages, (64, 64)
        )
        assert played.present.all() and (played.ends == 81).all()
        found[name] = probe.layout(played.frames.flatten(0, 1), [{}] * 40)[:, 1].unflatten(0, (2, 20))
        if name == "rest":
            still = stillness.distance(played.frames[:, -1], played.frames[:, 4])
            assert still.max() < stillness.LIMIT
    assert found["steer"].mean() < 0.7 < found["hold"][:, -1].mean()  # who holds a key ends at a wall


@pytest.fixture(scope="module")
def car():
    pytest.importorskip("Box2D")
    from worldsim.evaluation.probe_car_racing import CarRacingProbe

    recipe = find_recipe("car-racing")
    assert recipe is not None
    return CarRacingProbe(recipe)


@pytest.fixture(scope="module")
def car_starts(car):
    known = [
        ("classic", {"palette": "classic", "prompt": "classic"}),
        ("winter", {"palette": "snow", "prompt": "winter"}),
    ]
    return find_starts(car, 2, (64, 64), known, 0)


def test_a_beginner_keeps_the_road_in_view_in_the_real_game(car, car_starts):
    env = car.open()
    space, ages = env.action_space, range(5, 251, 5)
    env.close()
    labels = [start.labels for start in car_starts]
    assert labels == [{"road": "grey", "ground": "grass"}, {"road": "black", "ground": "snow"}]
    played = play_real(car, car_starts, lambda i: beginner("steer", car, space, labels[i], [0, i]), 250, ages, (64, 64))
    values = car.layout(played.frames.flatten(0, 1), [label for label in labels for _ in ages])
    assert values[:, car.layout_names.index("road_in_view")].mean() >= 0.9
    assert car.palette_kept(played.frames[:, ::10], labels).all()
    held = play_real(car, car_starts, lambda i: beginner("hold", car, space, labels[i], [0, i]), 200, (), (64, 64))
    assert (held.ends < 120).all() and held.frames.shape[1] == 0  # over the edge of the world
    assert all(
        held.rewards[i, end - 1] < -90 and held.rewards[i, end:].isnan().all() for i, end in enumerate(held.ends)
    )


def test_roads_from_the_car_to_the_edge():
    from worldsim.evaluation.probe_car_racing import bend, reaches_edge, road_in_view

    road = torch.zeros(4, 56, 64, dtype=torch.bool)
    road[0, :, 28:36] = True  # straight on
    road[1, 25:, 28:36] = True  # a stub
    road[2, :30, 5:12] = True  # a road, but not under the car
    road[3, 20:, 28:36], road[3, 20:28, 28:] = True, True  # a turn to the right
    seen = road_in_view(road)
    assert reaches_edge(seen).tolist() == [True, False, False, True]
    assert not seen[2].any() and bend(seen)[2].isnan()
    assert bend(seen)[0] == pytest.approx(0, abs=0.05) and bend(seen)[3] > 0.3


def test_prompts_name_their_palettes():
    rng = np.random.default_rng(0)
    for palette in (*PAIRS, *UNSEEN):
        for _ in range(5):
            assert palette_of(prompt_for(palette, rng)) == palette
    assert palette_of("a winter race") == parse_palette("snow") and palette_of("a cart") is None
    assert palette_of("an icy white road through the blue sea") == Palette("white", "sea")


# Beginners and ends


def test_beginners_are_the_same_for_the_same_seed(car):
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    env = car.open()
    for name in BEGINNERS:
        one, two = (beginner(name, car, env.action_space, {"road": "grey", "ground": "grass"}, [5]) for _ in range(2))
        played = [(one.act(frame), two.act(frame)) for _ in range(40)]
        assert all(np.array_equal(a, b) and env.action_space.contains(np.asarray(a, np.float32)) for a, b in played)
        if name == "tap":
            assert 3 < len({str(a) for a, _ in played})
    env.close()
    script = Script([1, 2])
    assert [script.act(frame) for _ in range(3)] == [1, 2, 2]


def test_steering_is_late(car):
    env = car.open()
    policy = beginner("steer", car, env.action_space, {"road": "grey", "ground": "grass"}, [0])
    env.close()
    left = np.full((64, 64, 3), (102, 204, 102), np.uint8)
    left[:, 8:20] = (102, 102, 102)
    steers = [float(policy.act(left)[0]) for _ in range(car.delay + 1)]
    assert all(abs(steer) < 0.15 for steer in steers[:-1]) and steers[-1] < -0.9


def test_brightest():
    frame = np.zeros((12, 32, 3), np.uint8)
    frame[:, 24:] = 200
    assert brightest(frame) > 0.5 and brightest(frame[:, ::-1]) < -0.5


# Reference ranges


def test_ranges_are_of_all_measures_together():
    real, rotten = kept()
    ranges = Ranges.of(torch.cat(real), None, [{}] * 16)
    assert ranges.names == ["sharpness", "brightness", "histogram"]
    folds = realism.folds_of(16)
    good = judge(ranges, real, [{}] * 16, realism.tell(real, real, folds))
    bad = judge(ranges, rotten, [{}] * 16, realism.tell(real, rotten, folds))
    assert good["in_range_of"] == bad["in_range_of"] == [*ranges.names, "told"]
    assert (
        good["in_range"] > 0.5 and bad["in_range"] < 0.1 and bad["told_in_range"] < 0.1
    )  # 16 frames are few for a range
    assert judge(ranges, real, [{}] * 16, None)["in_range_of"] == ranges.names
    assert judge(ranges, [real[0][:0]], [{}], None)["in_range"] is None


# Following and recovery


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


# The whole


@pytest.fixture(scope="module")
def car_world(tmp_path_factory) -> Path:
    """The folder of a tiny world of car-racing."""
    pytest.importorskip("Box2D")
    from tiny import tiny_autoencoder, tiny_dynamics

    from worldsim.data.record import RecordConfig, record
    from worldsim.training.autoencoder import train_autoencoder
    from worldsim.training.run import train_dynamics

    torch.set_num_threads(1)
    top = tmp_path_factory.mktemp("car")
    data = record(RecordConfig(game="car-racing", out=top / "data", frames=170, workers=1, max_episode_steps=14))
    train_autoencoder(tiny_autoencoder(data, top / "autoencoder", 2))
    train_dynamics(tiny_dynamics(data, top / "autoencoder", top / "dynamics", 2))
    return top / "dynamics" / "world"


def test_a_first_minute(car_world, tmp_path, quick):
    world = World.from_pretrained(car_world, dtype=torch.float32)
    report = first_minute(world, dataclasses.replace(SMALL, out=tmp_path))
    assert report["power"] == 0.97 and not report["told_refused"]
    rest, tap = report["beginners"]["rest"]["starts"], report["beginners"]["tap"]["starts"]
    assert list(tap["at"]) == ["8", "16"] and tap["at"]["16"]["real_sessions"] == 4
    assert tap["at"]["16"]["told"] > 0.6  # two steps of training teach nothing
    assert set(tap["at"]["16"]["in_range_of"]) == {"sharpness", "brightness", "histogram", "road", "ground",
                                                   "road_in_view", "offset", "bend", "told"}  # fmt: skip
    assert rest["rest"]["at"]["20"]["real"] < 1 and rest["steps"] == 21 and "turns_left" in rest["rest"]
    assert tap["layout"]["road"]["real"] > 0.1
    assert 0 <= tap["ended"] <= 1 and math.isfinite(tap["reward"])
    assert report["beginners"]["rest"]["prompts"]["steps"] == 6
    sheets = {file.name for file in tmp_path.glob("*.png")}
    assert {"minute_rest_starts.png", "minute_tap_prompts.png", "first_frames.png"} <= sheets
    assert json.loads((tmp_path / "first_minute.json").read_text())["starts"] == 4
    first = report["first_frames"]
    assert first["sharpness_decoded"] > 0 and first["sharpness_decoded_interval"][0] <= first["sharpness_decoded"]
    text = table(json.loads((tmp_path / "first_minute.json").read_text()))
    assert "told from real" in text and "block distance to step 16" in text and "a turn to the left" in text
    again = first_minute(world, dataclasses.replace(SMALL, beginners=("tap", "rest"), probes=False, first_frames=0))
    assert again == {name: value for name, value in report.items() if name in again}  # the same seed, the same report
    assert real_game(world, Minute(world, _probe(world), SMALL).probe, 4, 0).played


def _probe(world: World) -> Probe:
    probe = probe_of(world)
    assert probe is not None
    return probe


def test_a_blind_measure_gives_no_figures(car_world, quick, monkeypatch):
    monkeypatch.setattr(realism, "power", lambda: 0.6)
    world = World.from_pretrained(car_world, dtype=torch.float32)
    config = dataclasses.replace(SMALL, beginners=("tap",), prompt_seconds=0, first_frames=0, probes=False)
    report = first_minute(world, config)
    line = report["beginners"]["tap"]["starts"]["at"]["16"]
    assert report["told_refused"] and line["told"] is None and "told" not in line["in_range_of"]
    assert "refused" in table(report)


def test_a_world_plays_as_long_as_it_is_asked_to(car_world):
    world = World.from_pretrained(car_world, dtype=torch.float32)
    probe = _probe(world)
    game = real_game(world, probe, 4, 0)
    begin = segments_of(game.starts[:2], world.action_space, context_of(world))
    idle = probe.recipe.keys[""]
    forks = {2: {"side": [idle] * 3}}
    played = [
        play_world(Runner(world, batch=batch), begin, [{}, {}], lambda row: Script([idle]), 5, [0, 2, 5], forks)
        for batch in (1, 2)
    ]
    assert torch.equal(played[0].frames[:, 0], begin.frames[:, -1])
    assert torch.equal(played[0].forks["side"][:, 2], played[0].frames[:, 2])  # the same actions from the same place
    assert all(torch.equal(getattr(played[0], name), getattr(played[1], name)) for name in ("ends", "actions"))
    with pytest.raises(DataError, match="context of 99"):
        segments_of(game.starts, world.action_space, 99)


def test_unknown_games_are_skipped(world):
    assert "not known" in first_minute(world, SMALL)["skipped"]


def test_config_and_command_line(car_world, tmp_path, capsys, quick):
    with pytest.raises(ConfigError, match="no beginners \\['jump'\\]"):
        FirstMinute(beginners=("jump",))
    with pytest.raises(ConfigError, match="starts and batch are 0"):
        FirstMinute(starts=0)
    with pytest.raises(ConfigError, match="seconds are 0"):
        FirstMinute(seconds=0)
    with pytest.raises(ConfigError, match="at least 1"):
        FirstMinute(ages=(0,))
    assert EvalConfig(world=car_world).segments == 48 and EvalConfig(world=car_world, starts=3).segments == 3
    words = f"eval {car_world} --first-minute --starts 4 --seconds 1.5 --ages 16 --rest-ages 18 --out {tmp_path}"
    more = "--beginners rest --prompt-seconds 0 --first-frames 0 --no-probes --threads 1"
    assert cli.main([*words.split(), *more.split()]) == 0
    assert "the first minute: 4 sessions of 19 steps each" in capsys.readouterr().out
    assert "rest" in json.loads((tmp_path / "report.json").read_text())["beginners"]


def test_distances_and_windows():
    one = torch.tensor([0.0, 1.0, 2.0, math.nan])
    assert measures.distance(one, one) == 0 and measures.distance(one + 3, one) == pytest.approx(3)
    assert measures.distance(one[3:], one) is None
    assert measures.window(64, 700) == [56, 58, 60, 62, 64, 66, 68, 70]
    assert max(measures.window(16, 16)) == 16 and min(measures.window(2, 5)) == 1
    assert measures.kept_ages((16,), 40)[0] == 0
    played = Played(
        [1, 2], torch.zeros(2, 2, 4, 4, 3, dtype=torch.uint8), torch.tensor([[True, False], [True, True]]),
        torch.tensor([[1.0, 3.0, 99.0], [1.0, 1.0, 1.0]]), torch.tensor([2, 4]), torch.zeros(2, 3, 1), [{}, {}],
    )  # fmt: skip
    found = measures.outcome(played)
    assert found["reward"] == pytest.approx(7 / 5) and found["ended"] == 0.5 and found["end_age"] == 3.0
    assert [len(part) for part in measures.sessions(played, [1, 2])] == [1, 2]
