"""A world against a U-Net that stacks frames, both trained from scratch on one recording for equal minutes of one core.

python tests/benchmarks/baseline.py data/car-racing --minutes 15

The world's minutes hold its autoencoder, the encoding of the recording and its dynamics; the U-Net (DIAMOND's recipe,
see worldsim/baselines/unet/model.py) draws pixels and spends all of them on itself. Minutes are of CPU time on one
thread, compilers included, so that other work on the machine takes nothing from either. Then both draw the same
held-out segments, without compiling.

Before that, what suits the U-Net: `--sweep --minutes 2.5` trains each setting of `SWEEP` for so long, and prints how
near it draws frames 1 and 16 of held-out segments.

Run again, it goes on where it was stopped. Options of each training are there too (--unet.batch 16,
--dynamics.windows 8, ...); --world FOLDER and --trained-unet FOLDER compare what is already trained.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from torch._inductor import config as inductor

from worldsim.baselines.unet.evaluation import BaselineEval, compare, table
from worldsim.baselines.unet.training import BaselineTraining, prepare_baseline, save_baseline
from worldsim.data.episodes import Dataset
from worldsim.evaluation import metrics
from worldsim.training.autoencoder import AutoencoderTask, AutoencoderTraining, train_autoencoder
from worldsim.training.configs import DynamicsTraining
from worldsim.training.run import export, prepare
from worldsim.training.trainer import Trainer

SLICE = 4.0  # minutes after which the time spent is noted
# Rates around those of DIAMOND (1e-4) and of our own AdamW (1e-3), its batch of 32 and smaller ones, its width (64) and
# others, and blocks of pixels as channels, with which the same minutes hold more steps.
SWEEP: list[dict[str, Any]] = [
    {"rate": 1e-4, "batch": 32},
    {"rate": 3e-4, "batch": 32},
    {"rate": 3e-4},
    {"rate": 1e-3},
    {"rate": 3e-3},
    {"rate": 1e-3, "batch": 8},
    {"rate": 1e-3, "widths": (32, 64, 96, 128)},
    {"rate": 1e-3, "patch": 2, "widths": (64, 96, 128)},
    {"rate": 1e-3, "patch": 4, "widths": (128, 128)},
    {"rate": 1e-3, "offset_noise": 0.0},
]
NOWHERE = Path()  # replaced by the paths below


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to compare."""

    data: Path
    """A recorded dataset."""
    minutes: float = 15.0
    """CPU minutes of each."""
    autoencoder_share: float = 0.2
    """Of the world's minutes."""
    out: Path | None = None
    """Folder of all runs (default: runs/baseline-DATASET)."""
    world: Path | None = None
    """A trained world, instead of training one."""
    trained_unet: Path | None = None
    """The run folder of a trained U-Net, instead of training one."""
    sweep: bool = False
    """Only train the U-Nets of `SWEEP`, and print how good each is."""
    starts: int = 48
    """Segments of each measure."""
    horizons: tuple[int, ...] = (64,)
    """Frames of free running after which to measure."""
    autoencoder: AutoencoderTraining = field(default_factory=lambda: AutoencoderTraining(data=NOWHERE))
    dynamics: DynamicsTraining = field(default_factory=lambda: DynamicsTraining(data=NOWHERE))
    unet: BaselineTraining = field(default_factory=lambda: BaselineTraining(data=NOWHERE))


def cpu_seconds() -> float:
    """CPU time of this process and of the compilers that it has started."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Account:
    """The CPU minutes that a training has used, over all calls; kept in its run folder."""

    def __init__(self, out: Path, budget: float) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.path, self.budget = out / "cpu_minutes.json", budget
        self.before = float(json.loads(self.path.read_text())) if self.path.exists() else 0.0
        self.begin = cpu_seconds()

    def spent(self) -> float:
        return self.before + (cpu_seconds() - self.begin) / 60

    def note(self) -> float:
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(self.spent()))
        partial.replace(self.path)
        return self.spent()

    def train(self, trainer: Trainer, until: float) -> None:
        """Train until so many CPU minutes of the account are spent. No pictures: their time would count."""
        trainer.draw = lambda writer=None: None  # type: ignore[method-assign]
        while (left := until - self.note()) > 0.02:
            minutes = min(SLICE, left)
            trainer.config = dataclasses.replace(trainer.config, minutes=minutes, steps=None, cooldown=0)
            begin = time.monotonic()
            trainer.run()
            if time.monotonic() - begin < 60 * minutes:  # by Ctrl-C or SIGTERM: the trainer saved and returned
                self.note()
                raise SystemExit(f"stopped at step {trainer.step}; run the same command to go on from there")


def fixed(config: Any, **changes: Any) -> Any:
    """A training config with its paths, on one thread."""
    return dataclasses.replace(config, **changes, trainer=dataclasses.replace(config.trainer, threads=1))


def train_world(options: Options, out: Path) -> Path:
    """The world's part: an autoencoder, the encoded recording, the dynamics."""
    world = out / "world" / "world"
    if (world / "world.json").exists():
        return world
    account = Account(out / "autoencoder", options.autoencoder_share * options.minutes)
    config: AutoencoderTraining = fixed(options.autoencoder, data=options.data, out=out / "autoencoder")
    if not (out / "autoencoder" / "autoencoder.json").exists():
        trainer = Trainer(AutoencoderTask(config, Dataset(config.data)), config.trainer, config.folder())
        account.train(trainer, account.budget)
        train_autoencoder(dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, minutes=0, steps=0)))
        account.note()
    used = account.note()
    account = Account(out / "world", options.minutes - used)
    dynamics: DynamicsTraining = fixed(
        options.dynamics, data=options.data, autoencoder=config.folder(), out=out / "world"
    )
    task, trainer, dataset, autoencoder = prepare(dynamics)
    account.train(trainer, account.budget)
    export(dynamics, task, trainer, dataset, autoencoder)
    print(f"world: autoencoder {used:.1f} CPU minutes, dynamics {account.note():.1f}, {trainer.step} steps", flush=True)
    return world


def train_unet(options: Options, out: Path) -> Path:
    """The U-Net's part."""
    run = out / "unet"
    account = Account(run, options.minutes)
    config: BaselineTraining = fixed(options.unet, data=options.data, out=run)
    if not (run / "unet" / "config.json").exists():
        task, trainer = prepare_baseline(config)
        account.train(trainer, account.budget)
        save_baseline(task, trainer)
        print(f"U-Net: {account.note():.1f} CPU minutes, {trainer.step} steps", flush=True)
    return run


def sweep(options: Options, out: Path) -> None:
    """Train each setting for `options.minutes`, without compiling: a line for each."""
    for place, setting in enumerate(SWEEP):
        trainer = {"rate": options.unet.trainer.learning_rate, "batch": options.unet.batch} | setting
        shape = {name: value for name, value in setting.items() if name not in ("rate", "batch")}
        config: BaselineTraining = dataclasses.replace(
            options.unet,
            data=options.data,
            out=out / f"sweep-{place}",
            batch=trainer["batch"],
            compile=False,
            model=dataclasses.replace(options.unet.model, **shape),
            trainer=dataclasses.replace(options.unet.trainer, threads=1, learning_rate=trainer["rate"]),
        )
        account = Account(config.folder(), options.minutes)
        task, run = prepare_baseline(config)
        account.train(run, account.budget)
        drawn, truth = run.with_ema(lambda module, task=task: task.play(module, options.starts, 16))
        figures = {
            "psnr_1": metrics.psnr(drawn[:, :1], truth[:, :1]),
            "psnr_16": metrics.psnr(drawn[:, 15:], truth[:, 15:]),
            "sharpness_16": float(metrics.sharpness(drawn[:, 15]).mean() / metrics.sharpness(truth[:, 15]).mean()),
        }
        print(setting, f"{run.step} steps", {name: round(value, 2) for name, value in figures.items()}, flush=True)


def main(options: Options) -> None:
    inductor.compile_threads = 1  # workers in other processes would not be counted
    inductor.force_disable_caches = True  # nor would what an earlier run compiled
    torch.set_num_threads(1)
    out = options.out or Path("runs") / f"baseline-{options.data.name}"
    if options.sweep:
        sweep(options, out)
        return
    unet = options.trained_unet or train_unet(options, out)
    world = options.world or train_world(options, out)
    report = compare(
        BaselineEval(
            world=world,
            unet=unet,
            data=options.data,
            starts=options.starts,
            horizons=options.horizons,
            out=out / "pictures",
        )
    )
    (out / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    print(table(report))


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__, config=(tyro.conf.PositionalRequiredArgs,)))
