"""Batches of training: which segments, whose past, what counts in them."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import changed, tiny_dynamics
from torch import nn

from worldsim.data.coverage import cluster, odds
from worldsim.data.episodes import Dataset, read_episode, write_episode
from worldsim.data.latents import LatentData
from worldsim.diffusion.objective import condition
from worldsim.diffusion.objectives.energy import Energy
from worldsim.errors import ConfigError
from worldsim.models.dit import DiTConfig
from worldsim.models.heads import REWARD_BINS
from worldsim.training.autoencoder import load_run
from worldsim.training.run import prepare

SEED = 7


def test_own_rollouts_are_the_models_own(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    task, *_ = prepare(tiny_dynamics(dataset, autoencoder_run, tmp_path, rollout_start=0))
    nn.init.normal_(task.module.final.weight, std=0.1)  # which is zero at first: then all futures are one
    taken = task.forcing.rollouts.take(2, task.forcing.simulator, task.data, task.sampler.prompts, 0, 0)
    history = task.config.model.history
    index = taken.starts.unsqueeze(1) + torch.arange(-history, task.config.batch.frames)
    recorded = task.data.latents[index].float()
    recorded = recorded.unsqueeze(1).expand_as(taken.seen)  # both futures
    assert torch.equal(taken.seen[:, :, :history], recorded[:, :, :history])
    assert (taken.seen[:, :, history:] != recorded[:, :, history:]).any(dim=(3, 4, 5)).all()
    assert (taken.seen[:, 0, history:] != taken.seen[:, 1, history:]).any(dim=(2, 3, 4)).all()


def test_an_own_segment_is_recorded_up_to_the_frames_drawn(
    dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    config = tiny_dynamics(
        dataset, autoencoder_run, tmp_path, frames=6, rollout_length=2, rollout_segments=2, rollout_start=0
    )
    task, *_ = prepare(config)
    segments = task.forcing.segments(0, torch.Generator().manual_seed(0))
    history = config.model.history
    index = segments.rows[:, :1] + torch.arange(-history, 6)
    recorded = task.data.latents[index.clamp(min=0)].float()
    for future in segments.seen.unbind(1):
        differs = (future != recorded).flatten(2).any(dim=2)
        assert differs.tolist() == [[False] * (history + 4) + [True] * 2] * 2 + [[False] * (history + 6)]
    assert torch.equal(segments.target, recorded[:, history:])
    assert torch.equal(segments.previous, recorded[:, history - 1 : -1])


def test_what_is_scored_of_an_own_segment_is_what_was_played(
    dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    """The pass with gradients draws each future's frames again, from the same past and the same noise."""
    config = tiny_dynamics(
        dataset, autoencoder_run, tmp_path, rollout_segments=3, rollout_start=0, no_history=0.0, history_noise=0.1
    )
    task, *_ = prepare(config)
    assert isinstance(task.objective, Energy)
    task.module.eval()
    nn.init.normal_(task.module.final.weight, std=0.1)
    segments = task.forcing.segments(0, torch.Generator().manual_seed(0))
    first = segments.seen.shape[2] - config.batch.frames  # the first frame drawn, whose past is recorded
    noise_of = task.objective.noise(segments).unbind(2)
    for future, noise in zip(segments.seen.unbind(1), noise_of, strict=True):
        given = condition(segments, future, config.objective, torch.Generator().manual_seed(1))
        with torch.no_grad():
            sigma = torch.ones(segments.rows.shape)
            again = task.module(noise, sigma, task.module.encode_context(given)).sample[:, 0]
        errors = (again.unsqueeze(1) - segments.seen[:, :, first]).square().mean(dim=(2, 3, 4))  # (own, D)
        this = (future[:, first].unsqueeze(1) == segments.seen[:, :, first]).flatten(2).all(dim=2)
        assert (errors[this] < errors[~this]).all(), errors


def test_segments_that_end_as_episodes_do(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    config = tiny_dynamics(
        dataset, autoencoder_run, tmp_path, segments=4, terminal_segments=3, rollout_segments=1, rollout_start=0
    )
    task, *_ = prepare(config)
    data = task.data
    data.terminated.zero_()  # a recording cut by time alone has none to show
    assert len(data.sample_around(data.terminated, 3, config.batch.frames, torch.Generator())) == 0
    data.terminated[data.last.unique()[::2]] = 1
    segments = task.forcing.segments(0, torch.Generator().manual_seed(0))
    rows, inside = segments.rows[1:], segments.inside[1:]  # the first is the model's own
    assert ((data.terminated[rows] * inside).sum(dim=1) == 1).all()
    assert torch.equal(inside, data.first[rows] == data.first[rows[:, :1]])
    assert segments.inside[0].all()


def test_ends_come_anywhere_in_a_window(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """A model knows where in a segment a frame is: ends that only come last would be foreseen at every step of play."""
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, segments=3, terminal_segments=1, rollout_segments=0)
    task, *_ = prepare(config)
    data = task.data
    data.terminated.zero_()
    data.terminated[data.last.unique()[::2]] = 1
    shown = torch.zeros(config.batch.frames)
    for step in range(400):
        segments = task.forcing.segments(step, torch.Generator().manual_seed(step))
        shown += (data.terminated[segments.rows] * segments.inside)[-1]
    share = shown / shown.sum()
    assert (share * config.batch.frames > 0.5).all() and (share * config.batch.frames < 1.5).all(), share


def test_segments_in_which_an_event_is_told(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """The label says when; the moment comes anywhere in its segments, and other segments stay what they are."""
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
    assert torch.nonzero(data.event_onset)[:, 0].tolist() == [1, 3, 5]
    some = dataclasses.replace(episode, prompts=[{"text": ""}, *episode.prompts[1:]])  # nothing said at reset
    write_episode(tmp_path / "told" / "train" / path.name, some)
    data = LatentData.encode(Dataset(tmp_path / "told"), "train", load_run(autoencoder_run))
    assert torch.nonzero(data.event_onset)[:, 0].tolist() == [1, 3, 5]
    words = dataclasses.replace(episode, prompts=[{"text": text} for text in "aabbab"])  # a game without that label
    write_episode(tmp_path / "told" / "train" / path.name, words)
    data = LatentData.encode(Dataset(tmp_path / "told"), "train", load_run(autoencoder_run))
    assert torch.nonzero(data.event_onset)[:, 0].tolist() == [2, 4, 5]

    config = tiny_dynamics(
        dataset,
        autoencoder_run,
        tmp_path / "run",
        segments=5,
        terminal_segments=1,
        event_segments=2,
        rollout_segments=1,
        rollout_start=0,
    )
    task, *_ = prepare(config)
    assert not task.data.event_onset.any()
    plain = task.forcing.segments(0, torch.Generator().manual_seed(0)).rows  # there is none to show
    task.data.event_onset[task.data.first.unique() + 7] = 1
    shown = torch.zeros(config.batch.frames)
    for step in range(100):
        rows = task.forcing.segments(step, torch.Generator().manual_seed(step)).rows
        assert task.data.event_onset[rows[2:4]].any(dim=1).all()
        shown += task.data.event_onset[rows[2:4]].sum(dim=0)
    assert (shown > 0).all()
    assert torch.equal(
        task.forcing.segments(0, torch.Generator().manual_seed(0)).rows[1], plain[1]
    )  # the first is its own


def test_frames_of_the_next_episode_count_for_nothing(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    for objective in ("energy", "flow"):
        config = tiny_dynamics(
            dataset,
            autoencoder_run,
            tmp_path / objective,
            segments=3,
            terminal_segments=3,
            rollout_segments=0,
            image_samples=0,
            objective=objective,
        )
        task, *_ = prepare(config)
        data = task.data
        data.terminated[data.last.unique()] = 1
        segments = task.forcing.segments(0, torch.Generator().manual_seed(0))
        assert not segments.inside.all()
        losses = []
        for spoilt in (0.0, 5.0):
            segments.target[~segments.inside] += spoilt
            segments.rewards[~segments.inside] += spoilt
            losses.append(float(task.objective(task.module, segments, torch.Generator().manual_seed(1))[0].detach()))
        assert losses[0] == losses[1]


def test_an_end_is_as_likely_as_in_the_recording(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """However many ends the segments show, the loss is least where the probability is that of the recording."""
    config = tiny_dynamics(
        dataset, autoencoder_run, tmp_path, segments=4, terminal_segments=4, termination_weight=1.0, rollout_segments=0
    )
    task, *_ = prepare(config)
    batch, frames = task.sampler.segments(0, torch.Generator().manual_seed(0)), config.batch.frames
    ends = torch.zeros(4, frames)
    ends[:, -1] = 1
    ones = torch.ones(4, frames)
    batch = dataclasses.replace(
        batch, terminated=ends, importance=ones, can_terminate=ones, terminal_rate=torch.tensor(0.01)
    )
    losses = {}
    for probability in (0.003, 0.01, 0.03):
        logits = torch.logit(torch.tensor(probability)).expand(4, frames)
        _, scalars = task.objective.head_loss(torch.zeros(4, frames, REWARD_BINS), logits, batch, ones)
        losses[probability] = float(scalars["termination"])
    assert losses[0.01] == min(losses.values()), losses


def test_saliency_is_of_what_differs_from_what_is_mostly_there(
    dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, saliency_weight=0.5)
    objective = prepare(config)[0].objective
    assert isinstance(objective, Energy) and objective.mean_frame is not None
    target = objective.mean_frame.expand(1, 2, *objective.mean_frame.shape).clone()
    target[0, :, :, 1, 0] += 3.0
    weight = objective.saliency(target)
    assert weight is not None
    assert weight.mean(dim=(2, 3)) == pytest.approx(1.0)
    assert (weight[0, :, 1, 0] > 2).all() and (weight.flatten(2).min(dim=2).values == 0.5).all()
    plain = prepare(changed(config, saliency_weight=0.0))[0].objective
    assert isinstance(plain, Energy) and plain.saliency(target) is None
    with pytest.raises(ConfigError, match="saliency_weight"):
        changed(config, saliency_weight=1.5)


def test_what_went_another_way_than_the_recording_counts_less(
    dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    """At its place and those beside it, in self-rollouts alone."""
    config = tiny_dynamics(
        dataset, autoencoder_run, tmp_path, rollout_segments=2, rollout_start=0, rollout_trust=0.2, saliency_weight=0.5
    )
    task, *_ = prepare(config)
    forcing, objective = task.forcing, task.objective
    assert isinstance(objective, Energy)
    batch, first = forcing.segments(0, torch.Generator().manual_seed(0)), config.model.history - 1
    batch.seen[:, :, first:-1] = batch.previous[:, None]
    weight = forcing.place_weight(batch)
    assert weight is not None and torch.equal(weight, torch.ones_like(weight))
    batch.seen[1:, 1, first + 2, :, 0, 0] += 100.0  # in one of both futures, of a rollout and of a recorded segment
    weight = forcing.place_weight(batch)
    assert weight is not None and len(weight) == 2
    differs = torch.zeros_like(weight, dtype=torch.bool)
    differs[1, 2, :2, :2] = True
    assert (weight[differs] < 0.1).all() and torch.equal(weight[~differs], torch.ones_like(weight[~differs]))
    saliency = objective.saliency(batch.target)
    both = objective.place_weight(dataclasses.replace(batch, place_weight=weight))
    assert saliency is not None and both is not None
    torch.testing.assert_close(both, torch.cat([saliency[:2] * weight, saliency[2:]]))
    plain = changed(config, rollout_trust=0.0, saliency_weight=0.0, out=tmp_path / "plain")
    task, *_ = prepare(plain)
    assert task.forcing.segments(0, torch.Generator().manual_seed(0)).place_weight is None
    assert task.objective.place_weight(task.forcing.segments(0, torch.Generator().manual_seed(0))) is None  # type: ignore
    assert torch.isfinite(prepare(config)[1].train_step()["loss"] * torch.ones(()))


def test_rare_situations_are_sampled_as_often_as_common_ones(dataset: Dataset, autoencoder_run: Path) -> None:
    """With evenness 1 each cluster has the same share of the segments; without, that of the recording."""
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
        dataset,
        autoencoder_run,
        tmp_path,
        model=model,
        rollout_start=0,
        segments=4,
        long_frames=9,
        long_every=3,
        error_prob=0.5,
    )
    task, *_ = prepare(config)
    for step in range(6):
        segments, long = task.forcing.segments(step, torch.Generator().manual_seed(step)), step % 3 == 2
        assert tuple(segments.rows.shape) == ((2, 9) if long else (4, 5)) and segments.rollouts == (0 if long else 2)
        loss, _ = task.loss(step, torch.Generator().manual_seed(step))
        assert torch.isfinite(loss)
    assert task.module.config.context == 8
    with pytest.raises(ConfigError, match="long_frames is 30; allowed: 0, or more than frames .5. and at most the 20"):
        changed(config, long_frames=30)


def test_errors_of_rollouts_are_put_on_other_pasts(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """Of recorded segments, and of these the share that was asked for; targets stay as recorded."""
    config = tiny_dynamics(
        dataset, autoencoder_run, tmp_path, rollout_segments=1, rollout_start=0, segments=8, error_prob=0.5
    )
    task, *_ = prepare(config)
    nn.init.normal_(task.module.final.weight, std=0.1)
    changed = 0
    for step in range(20):
        with torch.autocast("cpu", torch.bfloat16, enabled=step % 2 == 1):  # as trainers do where it is faster
            segments = task.forcing.segments(step, torch.Generator().manual_seed(step))
        recorded = task.data.latents[segments.rows].float()
        assert torch.equal(segments.target, recorded)
        differ = (
            (segments.seen[1:, :, -config.batch.frames :] != recorded[1:].unsqueeze(1)).flatten(2).any(dim=2)
        )  # (B, D)
        assert torch.equal(differ[:, 0], differ[:, 1])  # both futures have one past
        changed += int(differ[:, 0].sum())
    assert 0.35 < changed / (20 * 7) < 0.65
    assert task.forcing.errors.kept is not None
    assert len(task.forcing.errors.kept) == 20
    again, *_ = prepare(dataclasses.replace(config, out=tmp_path / "again"))
    again.load_state(task.state())
    one, two = (part.forcing.segments(20, torch.Generator().manual_seed(1)).seen for part in (task, again))
    assert torch.equal(one[1:], two[1:])
