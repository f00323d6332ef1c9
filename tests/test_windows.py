"""Batches of training: which windows, whose past, what counts in them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_dynamics
from torch import nn

from worldsim.data.coverage import cluster, odds
from worldsim.data.episodes import Dataset, read_episode, write_episode
from worldsim.data.latents import LatentData
from worldsim.errors import ConfigError
from worldsim.models.dit import REWARD_BINS, DiTConfig
from worldsim.training.autoencoder import load_run
from worldsim.training.run import prepare

SEED = 7


def test_own_rollouts_are_the_models_own(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    task, *_ = prepare(tiny_dynamics(dataset, autoencoder_run, tmp_path, own_after=0))
    nn.init.normal_(task.module.final.weight, std=0.1)  # which is zero at first: then all futures are one
    taken = task.pool.take(2, task.simulator, task.data, 0, 0)
    history = task.config.model.history
    index = taken.starts.unsqueeze(1) + torch.arange(-history, task.config.frames)
    recorded = task.data.latents[index].float()
    recorded = recorded.unsqueeze(1).expand_as(taken.seen)  # both futures
    assert torch.equal(taken.seen[:, :, :history], recorded[:, :, :history])
    assert (taken.seen[:, :, history:] != recorded[:, :, history:]).any(dim=(3, 4, 5)).all()
    assert (taken.seen[:, 0, history:] != taken.seen[:, 1, history:]).any(dim=(2, 3, 4)).all()


def test_an_own_window_is_recorded_up_to_the_frames_drawn(
    dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, frames=6, own_frames=2, own=2, own_after=0)
    task, *_ = prepare(config)
    windows = task._windows(0, torch.Generator().manual_seed(0))
    history = config.model.history
    index = windows.rows[:, :1] + torch.arange(-history, 6)
    recorded = task.data.latents[index.clamp(min=0)].float()
    for future in windows.seen.unbind(1):
        differs = (future != recorded).flatten(2).any(dim=2)
        assert differs.tolist() == [[False] * (history + 4) + [True] * 2] * 2 + [[False] * (history + 6)]
    assert torch.equal(windows.target, recorded[:, history - 1 :])


def test_what_is_scored_of_an_own_window_is_what_was_played(
    dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    """The pass with gradients draws each future's frames again, from the same past and the same noise."""
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, own=3, own_after=0, fresh=0.0, history_noise=0.1)
    task, *_ = prepare(config)
    task.module.eval()
    nn.init.normal_(task.module.final.weight, std=0.1)
    windows = task._windows(0, torch.Generator().manual_seed(0))
    first = windows.seen.shape[2] - config.frames  # the first frame drawn, whose past is recorded
    for future, noise in zip(windows.seen.unbind(1), windows.noise.unbind(1), strict=True):
        given = task._conditions(windows.rows, windows.birth, future, 0, torch.Generator().manual_seed(1))
        shared = task.module.share(given)
        modulation = task.module.modulate(task.module.level(torch.ones(windows.rows.shape)), shared.condition)
        with torch.no_grad():
            again = task.module.denoise(noise, modulation, shared)[0][:, 0].float()
        errors = (again.unsqueeze(1) - windows.seen[:, :, first]).square().mean(dim=(2, 3, 4))  # (own, D)
        this = (future[:, first].unsqueeze(1) == windows.seen[:, :, first]).flatten(2).all(dim=2)
        assert (errors[this] < errors[~this]).all(), errors


def test_windows_that_end_as_episodes_do(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, windows=4, ends=3, own=1, own_after=0)
    task, *_ = prepare(config)
    data = task.data
    data.terminated.zero_()  # a recording cut by time alone has none to show
    assert len(data.sample_around(data.terminated, 3, config.frames, torch.Generator())) == 0
    data.terminated[data.last.unique()[::2]] = 1
    windows = task._windows(0, torch.Generator().manual_seed(0))
    rows, inside = windows.rows[1:], windows.inside[1:]  # the first is the model's own
    assert ((data.terminated[rows] * inside).sum(dim=1) == 1).all()
    assert torch.equal(inside, data.first[rows] == data.first[rows[:, :1]])
    assert windows.inside[0].all()


def test_ends_come_anywhere_in_a_window(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """A model knows where in a window a frame is: ends that only come last would be foreseen at every step of play."""
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, windows=3, ends=1, own=0)
    task, *_ = prepare(config)
    data = task.data
    data.terminated.zero_()
    data.terminated[data.last.unique()[::2]] = 1
    shown = torch.zeros(config.frames)
    for step in range(400):
        windows = task._windows(step, torch.Generator().manual_seed(step))
        shown += (data.terminated[windows.rows] * windows.inside)[-1]
    share = shown / shown.sum()
    assert (share * config.frames > 0.5).all() and (share * config.frames < 1.5).all(), share


def test_windows_in_which_an_event_is_told(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """The label says when; the moment comes anywhere in its windows, and other windows stay what they are."""
    path = dataset.episodes("train")[0]
    episode = read_episode(path)
    labels = ["", "fog", "fog", "imp", "", "imp"]
    episode = dataclasses.replace(
        episode,
        prompts=[{"text": "a cart", "event": label} for label in labels],
        prompt_index=np.minimum(np.arange(len(episode) + 1), len(labels) - 1).astype(np.int32),
    )
    write_episode(tmp_path / "told" / "train" / path.name, episode)
    shutil.copy(dataset.path / "dataset.json", tmp_path / "told")
    data = LatentData.encode(Dataset(tmp_path / "told"), "train", load_run(autoencoder_run))
    assert torch.nonzero(data.told)[:, 0].tolist() == [1, 3, 5]
    some = dataclasses.replace(episode, prompts=[{"text": ""}, *episode.prompts[1:]])  # nothing said at reset
    write_episode(tmp_path / "told" / "train" / path.name, some)
    data = LatentData.encode(Dataset(tmp_path / "told"), "train", load_run(autoencoder_run))
    assert torch.nonzero(data.told)[:, 0].tolist() == [1, 3, 5]
    words = dataclasses.replace(episode, prompts=[{"text": text} for text in "aabbab"])  # a game without that label
    write_episode(tmp_path / "told" / "train" / path.name, words)
    data = LatentData.encode(Dataset(tmp_path / "told"), "train", load_run(autoencoder_run))
    assert torch.nonzero(data.told)[:, 0].tolist() == [2, 4, 5]

    config = tiny_dynamics(dataset, autoencoder_run, tmp_path / "run", windows=5, ends=1, events=2, own=1, own_after=0)
    task, *_ = prepare(config)
    assert not task.data.told.any()
    plain = task._windows(0, torch.Generator().manual_seed(0)).rows  # there is none to show
    task.data.told[task.data.first.unique() + 7] = 1
    shown = torch.zeros(config.frames)
    for step in range(100):
        rows = task._windows(step, torch.Generator().manual_seed(step)).rows
        assert task.data.told[rows[2:4]].any(dim=1).all()
        shown += task.data.told[rows[2:4]].sum(dim=0)
    assert (shown > 0).all()
    assert torch.equal(task._windows(0, torch.Generator().manual_seed(0)).rows[1], plain[1])  # the first is its own


def test_frames_of_the_next_episode_count_for_nothing(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    for objective in ("energy", "flow"):
        config = tiny_dynamics(
            dataset, autoencoder_run, tmp_path / objective, windows=3, ends=3, own=0, stills=0, objective=objective
        )
        task, *_ = prepare(config)
        data = task.data
        data.terminated[data.last.unique()] = 1
        windows = task._windows(0, torch.Generator().manual_seed(0))
        assert not windows.inside.all()
        losses = []
        for spoilt in (0.0, 5.0):
            windows.target[:, 1:][~windows.inside] += spoilt
            data.rewards[windows.rows[~windows.inside]] += spoilt
            step = task._energy if objective == "energy" else task._flow
            losses.append(float(step(windows, torch.Generator().manual_seed(1), 0)[0].detach()))
        assert losses[0] == losses[1]


def test_an_end_is_as_likely_as_in_the_recording(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """However many ends the windows show, the loss is least where the probability is that of the recording."""
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, windows=4, ends=4, end_weight=1.0, own=0)
    task, *_ = prepare(config)
    task.end_share = torch.tensor(0.01)
    rows = task.data.last[:4].unsqueeze(1) - torch.arange(config.frames - 1, -1, -1)
    task.data.terminated[rows[:, -1]] = 1
    losses = {}
    for probability in (0.003, 0.01, 0.03):
        value = torch.logit(torch.tensor(probability))
        ended = value.expand(rows.shape)
        _, scalars = task._heads(torch.zeros(*rows.shape, REWARD_BINS), ended, rows, torch.ones(rows.shape))
        losses[probability] = float(scalars["ended"])
    assert losses[0.01] == min(losses.values()), losses


def test_focus_is_on_what_differs_from_what_is_mostly_there(
    dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, focus=0.5)
    task, *_ = prepare(config)
    assert task.typical is not None
    target = task.typical.expand(1, 2, *task.typical.shape).clone()
    target[0, :, :, 1, 0] += 3.0
    weight = task._places(target)
    assert weight is not None
    assert weight.mean(dim=(2, 3)) == pytest.approx(1.0)
    assert (weight[0, :, 1, 0] > 2).all() and (weight.flatten(2).min(dim=2).values == 0.5).all()
    assert prepare(dataclasses.replace(config, focus=0.0))[0]._places(target) is None
    with pytest.raises(ConfigError, match="focus"):
        dataclasses.replace(config, focus=1.5)


def test_what_went_another_way_than_the_recording_counts_less(
    dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    """At its place and those beside it, in the model's own windows alone."""
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, own=2, own_after=0, own_trust=0.2)
    task, *_ = prepare(config)
    windows, first = task._windows(0, torch.Generator().manual_seed(0)), config.model.history - 1
    windows.seen[:, :, first:-1] = windows.target[:, None, :-1]
    weight = task._trusted(None, windows)
    assert weight is not None and torch.equal(weight, torch.ones_like(weight))
    windows.seen[1:, 1, first + 2, :, 0, 0] += 100.0  # in one of both futures, of an own and of a recorded window
    weight = task._trusted(None, windows)
    assert weight is not None
    changed = torch.zeros_like(weight, dtype=torch.bool)
    changed[1, 2, :2, :2] = True
    assert (weight[changed] < 0.1).all() and torch.equal(weight[~changed], torch.ones_like(weight[~changed]))
    both = task._trusted(torch.full_like(weight, 0.5), windows)
    torch.testing.assert_close(both, weight / 2)
    task.config = dataclasses.replace(config, own_trust=0.0)
    assert task._trusted(None, windows) is None
    assert torch.isfinite(prepare(config)[1].train_step()["loss"] * torch.ones(()))


def test_rare_situations_are_sampled_as_often_as_common_ones(dataset: Dataset, autoencoder_run: Path) -> None:
    """With evenness 1 each cluster has the same share of the windows; without, that of the recording."""
    data = LatentData.encode(dataset, "train", load_run(autoencoder_run))
    groups = cluster(data.latents, data.actions, count=6)
    assert int(groups.max()) == 5 and len(groups) == len(data.latents)
    for evenness, expected in ((0.0, torch.bincount(groups) / len(groups)), (1.0, torch.full((6,), 1 / 6))):
        found = odds(groups, evenness)
        torch.testing.assert_close(torch.bincount(groups, weights=found) / found.sum(), expected, rtol=1e-4, atol=1e-5)
    even = odds(groups, 1.0)
    starts = data.sample_starts(4000, 1, torch.Generator().manual_seed(SEED), odds=even)
    shares = torch.bincount(groups[starts], minlength=6) / len(starts)
    torch.testing.assert_close(shares, torch.full((6,), 1 / 6), rtol=0, atol=0.03)


def test_some_steps_have_fewer_and_longer_windows(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """All recorded, as many frames in all, and play remembers what they showed."""
    model = DiTConfig(width=32, heads=2, pattern="st", text_layers=(0,), history=2, action_history=2, context=8)
    config = tiny_dynamics(
        dataset, autoencoder_run, tmp_path, model=model, own_after=0, windows=4, long_frames=9, long_every=3, errors=0.5
    )
    task, *_ = prepare(config)
    for step in range(6):
        windows, long = task._windows(step, torch.Generator().manual_seed(step)), step % 3 == 2
        assert tuple(windows.rows.shape) == ((2, 9) if long else (4, 5)) and windows.own == (0 if long else 2)
        loss, _ = task.loss(step, torch.Generator().manual_seed(step))
        assert torch.isfinite(loss)
    assert task.module.config.context == 8
    with pytest.raises(ConfigError, match="long_frames is 30; allowed: 0, or more than frames .5. and at most the 20"):
        dataclasses.replace(config, long_frames=30)


def test_errors_of_rollouts_are_put_on_other_pasts(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """Of recorded windows, and of these the share that was asked for; targets stay as recorded."""
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, own=1, own_after=0, windows=8, errors=0.5)
    task, *_ = prepare(config)
    nn.init.normal_(task.module.final.weight, std=0.1)
    changed = 0
    for step in range(20):
        with torch.autocast("cpu", torch.bfloat16, enabled=step % 2 == 1):  # as trainers do where it is faster
            windows = task._windows(step, torch.Generator().manual_seed(step))
        recorded = task.data.latents[windows.rows].float()
        assert torch.equal(windows.target[:, 1:], recorded)
        differ = (windows.seen[1:, :, -config.frames :] != recorded[1:].unsqueeze(1)).flatten(2).any(dim=2)  # (B, D)
        assert torch.equal(differ[:, 0], differ[:, 1])  # both futures have one past
        changed += int(differ[:, 0].sum())
    assert 0.35 < changed / (20 * 7) < 0.65
    assert task.errors.kept is not None
    assert len(task.errors.kept) == 20
    again, *_ = prepare(dataclasses.replace(config, out=tmp_path / "again"))
    again.load_state(task.state())
    one, two = (part._windows(20, torch.Generator().manual_seed(1)).seen for part in (task, again))
    assert torch.equal(one[1:], two[1:])
