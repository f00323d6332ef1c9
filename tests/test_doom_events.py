"""Events in Doom: they happen when triggered, the words come with them, and held-out pairs stay out of training."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from worldsim.games.doom.env import DoomGame
from worldsim.games.doom.events import ENDS, EVENTS, HELD_OUT_PAIRS, TELL, plan_events
from worldsim.games.doom.prompts import MAX_WORDS
from worldsim.games.doom.scenarios import KINDS, SCENARIOS


@pytest.fixture(scope="module")
def game():
    pytest.importorskip("vizdoom", reason="needs vizdoom: pip install --no-deps vizdoom")
    env = DoomGame(size=(48, 64))  # the game draws this four times as fast
    yield env
    env.close()


def stand(game, steps):
    return [game.step(0) for _ in range(steps)]


@pytest.mark.parametrize("name", EVENTS)
def test_an_event_happens_in_the_next_step_with_its_words(game, name):
    """The picture changes at once, the words last about a second, and what follows is told as long as it lasts."""
    event = EVENTS[name]
    game.reset(seed=0, options={"scenario": "defend_the_center"})
    start = stand(game, 2)[-1][0].astype(int)
    if name in ENDS.values():
        game.trigger("lights out" if event.slot == "light" else "green fog")
        stand(game, TELL + 1)
        start = stand(game, 1)[-1][0].astype(int)
    game.trigger(name)
    frames, _, _, _, infos = zip(*stand(game, TELL + 1), strict=True)
    changed = np.abs(frames[0] - start)
    assert changed.max() > 40 and changed.mean() > 1.5
    told = [info["labels"]["event"] for info in infos]
    assert told == [name] * TELL + [""]
    assert any(words in infos[0]["prompt"] for words in event.words)
    assert len({info["prompt"] for info in infos[:TELL]}) == 1
    labels, last = infos[-1]["labels"], infos[-1]["prompt"]
    assert all(len(info["prompt"].split()) <= MAX_WORDS for info in infos)
    if event.thing:
        assert labels[event.thing]
    else:
        assert labels[event.slot] == event.value
        assert labels["dark"] == (labels["light"] == "dark")
        assert any(words in last for words in event.lasting) == bool(event.lasting)


def test_the_light_comes_back_as_it_was(game):
    game.reset(seed=0, options={"scenario": "my_way_home"})
    pictures = [stand(game, 3)[-1][0]]
    for names in (("lights out", "lights on"), ("red fog", "fog lifts")):
        for name in names:
            game.trigger(name)
            pictures.append(stand(game, 1)[-1][0])
    before, dark, lit, fog, clear = (picture.astype(int) for picture in pictures)
    assert dark.mean() < before.mean() / 2
    assert np.abs(lit - before).mean() < 0.5 and np.abs(clear - before).mean() < 0.5
    assert np.abs(fog - before).mean() > 10


def test_nothing_appears_in_a_wall_and_then_nothing_is_told(game):
    game.reset(seed=0, options={"scenario": "my_way_home"})
    for _ in range(60):
        game.step(game.controls.index("up"))
        if game.view.depth[60:100].max() < 5:
            break
    else:
        pytest.fail("found no wall to face")
    stand(game, 2)
    game.trigger("baron")
    info = stand(game, 1)[-1][-1]
    assert info["labels"]["event"] == "" and not info["labels"]["baron"]


def test_a_planned_event_waits_for_its_turn_and_for_room(game):
    _, info = game.reset(seed=0, options={"scenario": "take_cover", "events": [(3, "barrel"), (4, "red light")]})
    events = [info["labels"]["event"]] + [info["labels"]["event"] for *_, info in stand(game, 3 + 2 * TELL)]
    assert events == [""] * 4 + ["barrel"] * TELL + [""] + ["red light"] * (TELL - 1)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_training_never_plans_what_is_held_out(scenario):
    held = {name for place, name in HELD_OUT_PAIRS if place == scenario}
    assert held and held <= set(EVENTS) - set(ENDS.values())
    for split in ("train", "heldout", "unseen"):
        counts = Counter(n for seed in range(60) for _, n in plan_events(scenario, split, 400, rng_of(seed)))
        shown = set(counts) - set(ENDS.values())
        assert shown == (held if split == "unseen" else set(EVENTS) - set(ENDS.values()) - held)


def test_a_plan_has_one_light_and_one_fog_at_a_time():
    for seed in range(50):
        plan = plan_events("my_way_home", "train", 400, rng_of(seed))
        assert plan == sorted(plan) and plan[0][0] >= 4
        for slot, end in ENDS.items():
            names = [name for _, name in plan if EVENTS[name].slot == slot]
            assert all((name == end) == (i % 2 == 1) for i, name in enumerate(names))


def test_what_appears_has_a_label_and_what_lasts_has_words():
    for name, event in EVENTS.items():
        assert bool(event.thing) != bool(event.slot), name
        assert not event.thing or event.thing in KINDS.values()
        assert bool(event.lasting) == (bool(event.slot) and name not in ENDS.values()), name


def rng_of(seed):
    return np.random.default_rng(seed)
