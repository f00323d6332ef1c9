"""Training: exact resume, the EMA, guards, and the model's own rollouts."""

from __future__ import annotations

import dataclasses
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_autoencoder, tiny_dynamics
from torch import Tensor, nn

from worldsim.data.coverage import cluster, odds
from worldsim.data.episodes import Dataset, read_episode, write_episode
from worldsim.data.latents import LatentData
from worldsim.data.record import RecordConfig, record
from worldsim.errors import ConfigError, DataError, TrainingDiverged
from worldsim.models.dit import REWARD_BINS, DiTConfig
from worldsim.training.autoencoder import load_run, train_autoencoder
from worldsim.training.run import prepare, train_dynamics
from worldsim.training.trainer import Trainer, TrainerConfig
from worldsim.world import World

SEED = 7


def weights(path: Path) -> dict[str, Tensor]:
    state = torch.load(path / "checkpoint.pt", weights_only=True)
    return {**state["module"], **{f"ema.{k}": v for k, v in state["ema"].items()}}


@pytest.mark.parametrize("objective", ["energy", "flow"])
def test_resume_is_exact(objective: str, dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """6 steps at once equal 4 steps, a stop, and 2 more: bit for bit, also through the pool of own rollouts."""
    for out, steps in (("whole", 6), ("parts", 4), ("parts", 6)):
        changes = {"own_after": 2, "objective": objective}
        train_dynamics(tiny_dynamics(dataset, autoencoder_run, tmp_path / out, steps=steps, **changes))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert not [(n, float((whole[n] - parts[n]).abs().max())) for n in whole if not torch.equal(whole[n], parts[n])]


def test_another_model_in_the_folder_is_refused(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, steps=1)
    train_dynamics(config)
    with pytest.raises(ConfigError, match="another model"):
        train_dynamics(dataclasses.replace(config, model=dataclasses.replace(config.model, width=64)))


def test_goes_on_from_a_world(dataset: Dataset, world_path: Path, tmp_path: Path) -> None:
    """A run that starts from a world has its weights before the first step, and its autoencoder."""
    config = tiny_dynamics(dataset, tmp_path / "none", tmp_path / "out", start=world_path)
    task, trainer, _, autoencoder = prepare(config)
    world = World.from_pretrained(world_path, dtype=torch.float32)
    for name, tensor in world.dynamics.state_dict().items():
        assert torch.equal(tensor, task.module.state_dict()[name])
        assert torch.equal(tensor, trainer.ema[name])
    assert torch.equal(autoencoder.std, world.autoencoder.std)


def test_missing_autoencoder_says_how_to_make_one(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="worldsim train autoencoder"):
        train_dynamics(tiny_dynamics(dataset, tmp_path / "none", tmp_path / "out"))


def test_missing_dataset_is_a_data_error(dataset: Dataset, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_autoencoder(dataset, tmp_path), data=tmp_path / "nothing")
    with pytest.raises(DataError, match="no dataset"):
        train_autoencoder(config)


def test_autoencoder_starts_at_the_principal_components(dataset: Dataset, tmp_path: Path) -> None:
    """Before a single step the reconstruction is that of the PCA, so it beats the mean by far; training keeps it."""
    train_autoencoder(tiny_autoencoder(dataset, tmp_path, steps=1))
    frames = torch.from_numpy(dataset.read("heldout")[0].frames[:8])
    out = load_run(tmp_path).decode(load_run(tmp_path).encode(frames)).float()
    error = (out - frames).square().mean()
    assert error < 0.3 * (frames - frames.float().mean(dim=0)).square().mean() or error < 30


@pytest.mark.parametrize(("objective", "share"), [("flow", 0.5), ("energy", 0.8)])  # draws are never free of error
def test_overfits(objective: str, share: float, dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """The loss can go down in forty steps on a small recording."""
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, steps=40, own_after=1000, objective=objective)
    task, trainer, *_ = prepare(config)
    losses = [trainer.train_step()["loss"] for _ in range(40)]
    assert sum(losses[-5:]) < share * sum(losses[:5]), losses


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
        given = task._conditions(windows.rows, windows.birth, future, torch.Generator().manual_seed(1))
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


def test_a_world_remembers_no_more_than_windows_show(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, steps=1)
    task, *_ = prepare(dataclasses.replace(config, model=dataclasses.replace(config.model, context=99)))
    assert task.module.config.context == config.frames - 1
    with pytest.raises(ConfigError, match="at least 2"):
        dataclasses.replace(config, frames=1)
    with pytest.raises(ConfigError, match="events is -1; it must be at least 0"):
        dataclasses.replace(config, events=-1)


def test_a_world_learns_to_remember_more(dataset: Dataset, world_path: Path, tmp_path: Path) -> None:
    """Going on from a world with longer windows, it remembers more, and its weights fit."""
    config = tiny_dynamics(dataset, Path(), tmp_path, steps=1, start=world_path, frames=9, windows=2, own=1)
    longer = train_dynamics(dataclasses.replace(config, model=dataclasses.replace(config.model, context=8)))
    assert World.from_pretrained(world_path).dynamics.config.context == 4
    assert longer.dynamics.config.context == 8


def test_drawing_in_several_steps_needs_the_flow_objective(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 step only"):
        tiny_dynamics(dataset, tmp_path, tmp_path, draw_steps=2)
    assert tiny_dynamics(dataset, tmp_path, tmp_path, objective="flow").steps_drawn() == 2


@pytest.mark.slow
def test_compiled_blocks_train_as_eager_ones(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        config = tiny_dynamics(
            dataset, autoencoder_run, tmp_path / str(compiled), steps=6, own_after=2, compile=compiled
        )
        _, trainer, *_ = prepare(config)
        losses.append([trainer.train_step()["loss"] for _ in range(6)])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)  # bfloat16 rounds elsewhere


def test_kept_latents_are_those_of_their_autoencoder(dataset: Dataset, autoencoder_run: Path) -> None:
    """What is read from the dataset's folder equals encoding again; another autoencoder makes it anew."""
    autoencoder = load_run(autoencoder_run)
    made = LatentData.encode(dataset, "heldout", autoencoder)
    for _ in range(2):  # written, then read
        kept = LatentData.cached(dataset, "heldout", autoencoder)
        assert kept.prompts == made.prompts
        for name in ("latents", "actions", "known", "rewards", "terminated", "told", "prompt", "first", "last"):
            assert torch.equal(getattr(kept, name), getattr(made, name)), name
    autoencoder.set_statistics(autoencoder.mean + 1, autoencoder.std)
    assert not torch.equal(LatentData.cached(dataset, "heldout", autoencoder).latents, made.latents)


def test_several_recordings_are_one(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """Joined, every row has what it had, and episodes stay apart; a world names all it was trained on."""
    settings = RecordConfig(
        game="CartPole-v1", out=tmp_path / "more", frames=60, workers=1, seed=3, frame_size=(40, 40), prompt="a pole"
    )
    more = record(settings)
    autoencoder = load_run(autoencoder_run)
    parts = [LatentData.encode(part, "train", autoencoder) for part in (more, dataset)]
    joined, before = LatentData.join(parts), len(parts[0].latents)
    for part, rows in ((parts[0], slice(None, before)), (parts[1], slice(before, None))):
        for name in ("latents", "actions", "known", "rewards", "terminated", "told"):
            assert torch.equal(getattr(joined, name)[rows], getattr(part, name)), name
        assert [joined.prompts[i] for i in joined.prompt[rows]] == [part.prompts[i] for i in part.prompt]
    row = torch.arange(len(joined.latents))
    assert (joined.first <= row).all() and (row <= joined.last).all()
    assert joined.last[before - 1] == before - 1 and joined.first[before] == before
    assert joined.prompts[0] == "" and set(joined.prompts) == {"", "a cart", "a pole"}

    config = tiny_dynamics(dataset, autoencoder_run, tmp_path / "run", steps=2, more=(more.path,))
    provenance = train_dynamics(config).card.provenance
    assert [part["seed"] for part in provenance["more_recordings"]] == [3]

    wide = record(dataclasses.replace(settings, out=tmp_path / "wide", frames=20, frame_size=(40, 80)))
    with pytest.raises(ConfigError, match=r"frame_size \[40, 80\].* one game"):
        prepare(dataclasses.replace(config, out=tmp_path / "other", more=(wide.path,)))


class _Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


class _Faulty:
    """A task whose loss turns bad at step 6."""

    def __init__(self, value: float) -> None:
        self.module: nn.Module = _Line()
        self.value = value

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        return self.module.get_parameter("weight").square().sum() * (1 if step < 6 else self.value), {}

    def sheet(self, module: nn.Module) -> None:
        return None

    def state(self) -> dict:
        return {}

    def load_state(self, state: dict) -> None:
        pass


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e6])
def test_a_bad_loss_stops_and_keeps_the_last_checkpoint(value: float, tmp_path: Path) -> None:
    config = TrainerConfig(steps=20, warmup=1, checkpoint_minutes=0)
    with pytest.raises(TrainingDiverged, match="last checkpoint"):
        Trainer(_Faulty(value), config, tmp_path).run()
    assert torch.isfinite(weights(tmp_path)["weight"]).all()
    assert Trainer(_Faulty(1), config, tmp_path).step == 6


def test_interrupt_saves(tmp_path: Path) -> None:
    task = _Faulty(1)
    trainer = Trainer(task, TrainerConfig(steps=20), tmp_path)

    def loss(step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        if step == 3:
            raise KeyboardInterrupt
        return _Faulty.loss(task, step, generator)

    task.loss = loss  # type: ignore[method-assign]
    trainer.run()
    assert Trainer(_Faulty(1), TrainerConfig(steps=20), tmp_path).step == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", ["taken", "stepped"])
def test_a_signal_in_the_middle_of_a_step_waits_for_its_end(
    number: signal.Signals, place: str, dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    """Between the rollouts that a step takes and their use, or between two optimizers: the run goes on exactly."""
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path / "whole", steps=8, own_after=0)
    prepare(config)[1].run()
    stopped = dataclasses.replace(config, out=tmp_path / "stopped")
    task, trainer, *_ = prepare(stopped)
    part, name = (task.pool, "take") if place == "taken" else (trainer.optimizers[0], "step")
    inner, calls = getattr(part, name), []

    def disturbed(*args: Any, **options: Any) -> Any:
        found = inner(*args, **options)
        calls.append(name)
        if len(calls) == 3:
            signal.raise_signal(number)
        return found

    setattr(part, name, disturbed)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job ignores
    try:
        trainer.run()
    finally:
        signal.signal(signal.SIGINT, before)
    assert trainer.step == 3
    prepare(stopped)[1].run()
    one, other = weights(tmp_path / "whole"), weights(tmp_path / "stopped")
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("bad", [{}, {"minutes": 1, "cooldown": 5}, {"steps": 1, "ema": 1.0}])
def test_bad_trainer_configs_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        TrainerConfig(**bad)


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


def test_a_resumed_run_computes_as_before(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """Whatever a second measurement would choose; unless the config says otherwise."""
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, own=0)
    free = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, matmul=None))
    for kept, other in (("medium", "highest"), ("highest", "medium")):
        _, trainer, *_ = prepare(dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, matmul=kept)))
        trainer.save()
        assert prepare(free)[1].precision.matmul == kept
        told = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, matmul=other))
        assert prepare(told)[1].precision.matmul == other
