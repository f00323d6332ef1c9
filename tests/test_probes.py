"""What single games look like to the measures, and how beginners play them."""

import numpy as np
import pytest
import torch
from minute_frames import kept, weave

from worldsim.evaluation import minute_measures as measures
from worldsim.evaluation import stillness
from worldsim.evaluation.beginners import BEGINNERS, ScriptPolicy, beginner
from worldsim.evaluation.played import _again, find_starts, play_real
from worldsim.evaluation.probe import Probe, brightest
from worldsim.evaluation.real import find_recipe
from worldsim.games.car_racing.palettes import PAIRS, UNSEEN, Palette, parse_palette
from worldsim.games.car_racing.prompts import palette_of, prompt_for


def test_doom_is_laid_out():
    pytest.importorskip("vizdoom")
    from worldsim.games.doom.probes import AcidMazeProbe

    recipe = find_recipe("doom-health-gathering")
    assert recipe is not None
    probe = AcidMazeProbe(recipe)
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
    from worldsim.games.doom.probes import AcidMazeProbe

    recipe = find_recipe("doom-health-gathering")
    assert recipe is not None
    probe = AcidMazeProbe(recipe)
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
    from worldsim.games.car_racing.probes import CarRacingProbe

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
    assert car.palette_adherence(played.frames[:, ::10], labels).all()
    held = play_real(car, car_starts, lambda i: beginner("hold", car, space, labels[i], [0, i]), 200, (), (64, 64))
    assert (held.ends < 120).all() and held.frames.shape[1] == 0  # over the edge of the world
    assert all(
        held.rewards[i, end - 1] < -90 and held.rewards[i, end:].isnan().all() for i, end in enumerate(held.ends)
    )


def test_roads_from_the_car_to_the_edge():
    from worldsim.games.car_racing.probes import bend, reaches_edge, road_in_view

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


def test_beginners_are_the_same_for_the_same_seed(car):
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    env = car.open()
    for name in BEGINNERS:
        one, two = (beginner(name, car, env.action_space, {"road": "grey", "ground": "grass"}, [5]) for _ in range(2))
        played = [(one.act(None, frame, {}), two.act(None, frame, {})) for _ in range(40)]
        assert all(np.array_equal(a, b) and env.action_space.contains(np.asarray(a, np.float32)) for a, b in played)
        if name == "tap":
            assert 3 < len({str(a) for a, _ in played})
    env.close()
    script = ScriptPolicy([1, 2])
    assert [script.act(None, frame, {}) for _ in range(3)] == [1, 2, 2]


def test_steering_is_late(car):
    env = car.open()
    policy = beginner("steer", car, env.action_space, {"road": "grey", "ground": "grass"}, [0])
    env.close()
    left = np.full((64, 64, 3), (102, 204, 102), np.uint8)
    left[:, 8:20] = (102, 102, 102)
    steers = [float(policy.act(None, left, {})[0]) for _ in range(car.delay + 1)]
    assert all(abs(steer) < 0.15 for steer in steers[:-1]) and steers[-1] < -0.9


def test_brightest():
    frame = np.zeros((12, 32, 3), np.uint8)
    frame[:, 24:] = 200
    assert brightest(frame) > 0.5 and brightest(frame[:, ::-1]) < -0.5


def test_protected_sessions_begin_where_the_world_begins():
    """Invulnerable, a player may come to another place by the same actions; such starts are not taken."""
    pytest.importorskip("vizdoom")
    recipe, size = find_recipe("doom"), (64, 64)
    assert recipe is not None and recipe.protect
    probe = Probe(recipe)
    starts = find_starts(probe, 4, size, [("", {})], seed=3)  # two of the first four would differ
    env = probe.open()
    for start in starts:
        options = {**start.options, **probe.recipe.protect}
        frames = _again(probe, env, size, start.seed, options, start.actions)
        assert np.array_equal(frames[-1], start.frames[-1])
    env.close()
