"""Training: exact resume, the EMA, guards."""

from __future__ import annotations

import dataclasses
import math
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_autoencoder, tiny_dynamics
from torch import Tensor, nn

from worldsim.baselines.unet.training import BaselineTraining
from worldsim.commands.parsing import option, parse
from worldsim.data.episodes import Dataset
from worldsim.data.latents import LatentData
from worldsim.data.record import RecordConfig, record
from worldsim.data.segments import BatchConfig
from worldsim.diffusion.objectives.energy import EnergyConfig
from worldsim.diffusion.objectives.flow import FlowConfig
from worldsim.engine.engine import Engine
from worldsim.errors import ConfigError, DataError, TrainingDiverged
from worldsim.models.config import DiTConfig
from worldsim.training.autoencoder import AutoencoderTraining, load_run, prepare_autoencoder, train_autoencoder
from worldsim.training.configs import DynamicsTraining, training_of
from worldsim.training.run import prepare, train_dynamics
from worldsim.training.trainer import Trainer, TrainerConfig
from worldsim.world import World


def weights(path: Path) -> dict[str, Tensor]:
    state = torch.load(path / "checkpoint.pt", weights_only=True)
    return {**state["module"], **{f"ema.{k}": v for k, v in state["ema"].items()}}


@pytest.mark.parametrize("objective", ["energy", "flow"])
def test_resume_is_exact(objective: str, dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """6 steps at once equal 4 steps, a stop, and 2 more: bit for bit, also through the pool of own rollouts."""
    for out, steps in (("whole", 6), ("parts", 4), ("parts", 6)):
        changes = {"rollout_start": 2, "objective": objective}
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
    config = tiny_dynamics(dataset, tmp_path / "none", tmp_path / "out", init_from=world_path)
    task, trainer, _, autoencoder = prepare(config)
    world = World.from_pretrained(world_path, dtype=torch.float32)
    for name, tensor in world.dynamics.state_dict().items():
        assert torch.equal(tensor, task.module.state_dict()[name])
        assert torch.equal(tensor, trainer.ema[name])
    assert torch.equal(autoencoder.std, world.autoencoder.std)


def test_a_world_without_history_trains_and_plays(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """Its clips still have a frame to begin from, and its frames depend on the action."""
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path)
    train_dynamics(dataclasses.replace(config, model=dataclasses.replace(config.model, history=0)))
    world = World.from_pretrained(tmp_path / "world")
    assert world.dynamics.config.history == 0 and {len(start["frames"]) for start in world.starts} == {3}
    engine = Engine(world, runtime="eager", threads=1)
    number = engine.open(start=0)
    frames = [engine.step({number: 0})[number].frame for _ in range(3)]
    assert not np.array_equal(frames[0], frames[2])
    engine.close()


def test_clips_are_as_long_as_the_trained_model_needs(dataset: Dataset, world_path: Path, tmp_path: Path) -> None:
    """Whatever the config says of a model that is not built, as the run goes on from a world."""
    config = tiny_dynamics(dataset, tmp_path / "none", tmp_path / "out", steps=1, init_from=world_path)
    world = train_dynamics(dataclasses.replace(config, model=DiTConfig()))
    assert world.dynamics.config.history != DiTConfig().history
    assert {len(start["frames"]) for start in world.starts} == {2 * world.dynamics.config.history + 1}


@pytest.mark.parametrize("option", [{"history": 0}, {"width": 64}, {"pattern": "sttt"}, {"action_size": 9}])
def test_an_option_that_the_world_decides_is_refused(
    option: dict[str, Any], dataset: Dataset, world_path: Path, tmp_path: Path
) -> None:
    config = tiny_dynamics(dataset, tmp_path / "none", tmp_path / "out", init_from=world_path)
    with pytest.raises(ConfigError, match=f"{next(iter(option))} is .*, but the world .* leave the option out"):
        prepare(dataclasses.replace(config, model=dataclasses.replace(config.model, **option)))


@pytest.mark.parametrize(
    ("option", "advice"),
    [
        ({"latent_channels": 5}, "leave the option out"),
        ({"text_width": 7}, "leave the option out"),
        ({"learned_variance": True}, "leave the option out"),
        ({"fresh_noise": True}, "leave it out"),
        ({"camera_size": 6}, "leave it out"),
        ({"image_width": 4}, "leave it out"),
        ({"memory_width": 4}, "leave it out"),
    ],
)
def test_an_option_that_the_recording_decides_or_does_not_give_is_refused(
    option: dict[str, Any], advice: str, dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path)
    with pytest.raises(ConfigError, match=f"{next(iter(option))} is .* {advice}"):
        prepare(dataclasses.replace(config, model=dataclasses.replace(config.model, **option)))


def test_missing_autoencoder_says_how_to_make_one(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="worldsim train autoencoder"):
        train_dynamics(tiny_dynamics(dataset, tmp_path / "none", tmp_path / "out"))


def test_missing_dataset_is_a_data_error(dataset: Dataset, tmp_path: Path) -> None:
    config = dataclasses.replace(tiny_autoencoder(dataset, tmp_path), data=tmp_path / "nothing")
    with pytest.raises(DataError, match="no dataset"):
        train_autoencoder(config)


def test_a_run_follows_from_its_seed(dataset: Dataset, tmp_path: Path) -> None:
    def begun(folder: str, seed: int) -> dict[str, Tensor]:
        config = tiny_autoencoder(dataset, tmp_path / folder)
        config = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, seed=seed))
        return prepare_autoencoder(config)[0].module.state_dict()

    first, again, other = begun("first", 3), begun("again", 3), begun("other", 4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


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
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, steps=40, rollout_start=1000, objective=objective)
    task, trainer, *_ = prepare(config)
    losses = [trainer.train_step()["loss"] for _ in range(40)]
    assert sum(losses[-5:]) < share * sum(losses[:5]), losses


def test_a_world_remembers_no_more_than_windows_show(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, steps=1)
    task, *_ = prepare(dataclasses.replace(config, model=dataclasses.replace(config.model, context=99)))
    assert task.module.config.context == config.batch.frames - 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 1}, "frames is 1; a segment has at least 2"),
        ({"event_segments": -1}, "event_segments is -1; it must be at least 0"),
        ({"evenness": 1.5}, "evenness is 1.5; allowed: 0 to 1"),
        ({"rollout_segments": 9}, "rollout_segments is 9 of 3 segments; allowed: at most all"),
        ({"rollout_trust": -1.0}, "rollout_trust is -1.0; allowed: 0 to 1"),
        ({"history_sigma": 0.3}, "history_sigma is 0.3; allowed: 0 to history_noise, 0.2"),
        ({"cache_sigma": 1.0}, "cache_sigma is 1.0; allowed: 0 <= cache_sigma < 1"),
        ({"scales": ()}, "scales is ..; allowed: one or more"),
        ({"objective": "flow", "num_denoising_steps": 0}, "num_denoising_steps is 0"),
    ],
)
def test_bad_settings_are_refused_where_they_are_given(
    changes: dict, message: str, dataset: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_dynamics(dataset, tmp_path, tmp_path, **changes)


def test_the_command_line_has_the_options_of_the_objective(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def parsed(*words: str) -> DynamicsTraining:
        args = [str(tmp_path), *words]
        return parse(training_of(option(args, "objective", "energy")), "train dynamics", args, flat=True)

    assert parsed("--objective", "flow", "--num-denoising-steps", "3").objective == FlowConfig(num_denoising_steps=3)
    assert parsed("--objective=energy", "--scales", "1", "2").objective == EnergyConfig(scales=(1, 2))
    assert parsed("--frames", "9", "--rollout-length", "3", "--steps", "5").batch == BatchConfig(frames=9)
    with pytest.raises(SystemExit):
        parsed("--num-denoising-steps", "3")  # energy samples a frame in one pass
    assert "--num-denoising-steps" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no objective 'flwo'. Did you mean 'flow'.*Known: ddpm, energy, flow"):
        parsed("--objective", "flwo")


def test_a_world_learns_to_remember_more(dataset: Dataset, world_path: Path, tmp_path: Path) -> None:
    """Going on from a world with longer windows, it remembers more, and its weights fit."""
    config = tiny_dynamics(
        dataset, Path(), tmp_path, steps=1, init_from=world_path, frames=9, segments=2, rollout_segments=1
    )
    longer = train_dynamics(dataclasses.replace(config, model=dataclasses.replace(config.model, context=8)))
    assert World.from_pretrained(world_path).dynamics.config.context == 4
    assert longer.dynamics.config.context == 8


@pytest.mark.slow
@pytest.mark.timeout(1200)  # it compiles many graphs
@pytest.mark.filterwarnings("default")  # compiling warns of how it works itself, and an error would end it
def test_compiled_blocks_train_as_eager_ones(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    losses = []
    for compiled in (False, True):
        config = tiny_dynamics(
            dataset, autoencoder_run, tmp_path / str(compiled), steps=6, rollout_start=2, compile=compiled
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
        for name in ("latents", "actions", "known", "rewards", "terminated", "event_onset", "prompt", "first", "last"):
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
        for name in ("latents", "actions", "known", "rewards", "terminated", "event_onset"):
            assert torch.equal(getattr(joined, name)[rows], getattr(part, name)), name
        assert [joined.prompts[i] for i in joined.prompt[rows]] == [part.prompts[i] for i in part.prompt]
    row = torch.arange(len(joined.latents))
    assert (joined.first <= row).all() and (row <= joined.last).all()
    assert joined.last[before - 1] == before - 1 and joined.first[before] == before
    assert joined.prompts[0] == "" and set(joined.prompts) == {"", "a cart", "a pole"}

    config = tiny_dynamics(dataset, autoencoder_run, tmp_path / "run", steps=2, extra_data=(more.path,))
    provenance = train_dynamics(config).card.provenance
    assert [part["seed"] for part in provenance["more_recordings"]] == [3]

    wide = record(dataclasses.replace(settings, out=tmp_path / "wide", frames=20, frame_size=(40, 80)))
    with pytest.raises(ConfigError, match=r"frame_size \[40, 80\].* one game"):
        prepare(dataclasses.replace(config, out=tmp_path / "other", extra_data=(wide.path,)))


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

    def sample_grid(self, module: nn.Module) -> None:
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
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path / "whole", steps=8, rollout_start=0)
    prepare(config)[1].run()
    stopped = dataclasses.replace(config, out=tmp_path / "stopped")
    task, trainer, *_ = prepare(stopped)
    part, name = (task.forcing.rollouts, "take") if place == "taken" else (trainer.optimizers[0], "step")
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


def test_a_run_of_so_many_steps_has_no_other_end(tmp_path: Path) -> None:
    """Unless both are given; and one that is told nothing ends by the clock."""
    for kind, minutes in ((training_of("energy"), 60), (AutoencoderTraining, 10)):

        def parsed(*words: str, kind: Any = kind) -> TrainerConfig:
            return parse(kind, "train dynamics", [str(tmp_path), *words], flat=True).trainer

        assert parsed("--steps", "5000").minutes is None
        assert parsed().minutes == minutes
        assert parsed("--steps", "5000", "--minutes", "3").minutes == 3
    assert BaselineTraining(data=tmp_path).trainer.minutes == 60
    with pytest.raises(ConfigError, match="neither minutes nor steps is set"):
        Trainer(_Faulty(1), TrainerConfig(), tmp_path)


@pytest.mark.parametrize("bad", [{"minutes": 1, "cooldown": 5}, {"steps": 1, "ema": 1.0}])
def test_bad_trainer_configs_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        TrainerConfig(**bad)


def test_a_resumed_run_computes_as_before(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """Whatever a second measurement would choose; unless the config says otherwise."""
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, rollout_segments=0)
    free = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, matmul=None))
    for kept, other in (("medium", "highest"), ("highest", "medium")):
        _, trainer, *_ = prepare(dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, matmul=kept)))
        trainer.save()
        assert prepare(free)[1].precision.matmul == kept
        told = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, matmul=other))
        assert prepare(told)[1].precision.matmul == other
