"""The whole of `worldsim eval --first-minute`, on tiny worlds."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from worldsim import cli
from worldsim.diffusion import noise
from worldsim.errors import ConfigError, DataError
from worldsim.evaluation import minute_measures as measures
from worldsim.evaluation import realism
from worldsim.evaluation.beginners import ScriptPolicy
from worldsim.evaluation.config import EvalConfig
from worldsim.evaluation.first_minute import FirstMinute, Minute, first_minute, real_game
from worldsim.evaluation.minute_table import table
from worldsim.evaluation.played import Played, play_world, segments_of
from worldsim.evaluation.probe import Probe, probe_of
from worldsim.evaluation.rollout import Runner, context_of
from worldsim.world import World

SMALL = FirstMinute(
    starts=4, seconds=1.7, prompt_seconds=0.5, ages=(8, 16), rest_ages=(20,), beginners=("tap", "rest"), first_frames=3
)


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


@pytest.mark.slow  # `test_config_and_command_line` goes the same way by default
def test_a_first_minute(car_world, tmp_path, quick):
    world = World.from_pretrained(car_world, dtype=torch.float32)
    report = first_minute(world, dataclasses.replace(SMALL, out=tmp_path))
    assert report["power"]["rotten"] == 0.97 and not report["told_refused"]
    rest, tap = report["beginners"]["rest"]["starts"], report["beginners"]["tap"]["starts"]
    assert list(tap["at"]) == ["8", "16"] and tap["at"]["16"]["real_sessions"] == 4
    assert tap["at"]["16"]["told"] > 0.6  # two steps of training teach nothing
    assert set(tap["at"]["16"]["in_range_of"]) == {"sharpness", "brightness", "histogram", "road", "ground",
                                                   "road_in_view", "offset", "bend", "told"}  # fmt: skip
    assert rest["rest"]["at"]["20"]["real"] < 2 and rest["steps"] == 21 and "turns_left" in rest["rest"]
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
    monkeypatch.setattr(realism, "power", lambda: {"rotten": 0.97, "melted": 0.6})
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
    no_op = probe.recipe.keys[""]
    forks = {2: {"side": [no_op] * 3}}
    played = [
        play_world(Runner(world, batch=batch), begin, [{}, {}], lambda row: ScriptPolicy([no_op]), 5, [0, 2, 5], forks)
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
    assert measures.stored_ages((16,), 40)[0] == 0
    played = Played(
        [1, 2], torch.zeros(2, 2, 4, 4, 3, dtype=torch.uint8), torch.tensor([[True, False], [True, True]]),
        torch.tensor([[1.0, 3.0, 99.0], [1.0, 1.0, 1.0]]), torch.tensor([2, 4]),
        torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), torch.zeros(2, 3, 1), [{}, {}],
    )  # fmt: skip
    found = measures.outcome(played)
    assert found["reward"] == pytest.approx(7 / 5) and found["ended"] == 0.5 and found["end_age"] == 3.0
    assert (
        measures.outcome(dataclasses.replace(played, ends=torch.tensor([1, 1])))["end_age"] == 3.0
    )  # whatever was drawn
    assert found["end_reward"] == 3.0  # of the one session that ended
    even = dataclasses.replace(played, probabilities=torch.full((2, 3), 0.25))  # .75, .56 and .42 go on
    assert measures.outcome(even)["end_age"] == 3.0 and measures.outcome(even)["end_age_interval"] == (3.0, 3.0)
    assert measures.outcome(dataclasses.replace(played, probabilities=torch.full((2, 3), 0.1)))["end_age"] is None
    assert noise.possible(torch.tensor([0.0009, 0.001])).tolist() == pytest.approx([0.0, 0.001])  # as ends are drawn
    assert [len(part) for part in measures.sessions(played, [1, 2])] == [1, 2]
