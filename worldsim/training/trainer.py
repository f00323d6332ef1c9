"""The training loop shared by the autoencoder and the dynamics.

It owns what is the same for every model: the clock, checkpoints, exact resume, the moving average of the weights (EMA),
logs, and the stop when a loss goes wrong. Everything random in step k comes from a generator seeded by (seed, k), so a
run that is resumed at k goes on exactly as one that was never stopped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from worldsim.errors import ConfigError, TrainingDiverged
from worldsim.files import locked, replacing
from worldsim.plots import draw_curves
from worldsim.training.optimizers import build_optimizers
from worldsim.training.precision import choose


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """How long to train, how fast, and how often to look and to save."""

    minutes: float | None = None
    """Time budget of this call, in minutes of wall time (default: 60, or 10 for an autoencoder, unless `steps` says how
    long)."""
    steps: int | None = None
    """Total number of steps, over all calls."""
    checkpoint_minutes: float = 4.0
    log_every: int = 20
    sample_grid_minutes: float = 10.0
    """How often a picture is drawn."""
    seed: int = 0
    threads: int = 1
    bf16: bool | None = None
    """Autocast to bfloat16 (default: where a measurement at the start says that it is faster)."""
    matmul: Literal["highest", "medium"] | None = None
    """Torch's precision of float32 products (default: the faster one that is exact, measured at the start and kept in
    the checkpoint). Give it where two runs must be equal to the bit."""
    learning_rate: float = 1e-3
    """Of AdamW, for embeddings, norms, biases, convolutions."""
    muon_learning_rate: float = 0.02
    """Of Muon, for the matrices of the transformer."""
    weight_decay: float = 0.01
    warmup: int = 100
    """Steps of linear warm-up."""
    cooldown: int = 0
    """Last steps of linear decay to zero; needs `steps`."""
    clip: float = 1.0
    """Largest gradient norm."""
    ema: float = 0.999
    diverged: float = 20.0
    """Stop when the smoothed loss is so many times its best."""

    def __post_init__(self) -> None:
        """Check that the numbers make sense."""
        if self.cooldown and self.steps is None:
            raise ConfigError(f"cooldown {self.cooldown} needs steps, to know when it begins.")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"ema is {self.ema}; allowed: 0 <= ema < 1.")

    def or_minutes(self, minutes: float) -> TrainerConfig:
        """The same, ending after some minutes where it says nothing of an end."""
        return dataclasses.replace(self, minutes=minutes) if self.minutes is None and self.steps is None else self


class Task(Protocol):
    """What is trained: a module, its loss, and a picture to look at."""

    @property
    def module(self) -> nn.Module:
        """What is trained."""
        ...

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """The loss of one batch, and scalars for the log."""
        ...

    def sample_grid(self, module: nn.Module) -> np.ndarray | None:
        """A uint8 picture (H, W, 3) of what `module` (the EMA) can do, or None."""
        ...

    def state(self) -> dict[str, Any]:
        """What besides weights a resumed run needs, as tensors and plain values."""
        ...

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        ...


class Trainer:
    """Trains a task in a run folder.

    Args:
        task: what to train.
        config: how.
        out: the run folder, made if missing: `checkpoint.pt`, `log.jsonl`, `curves.png`, TensorBoard events,
            `sample_grid.png`. A run that was stopped there goes on from its checkpoint.
    """

    def __init__(self, task: Task, config: TrainerConfig, out: Path) -> None:
        """Build the optimizers and load the checkpoint if there is one."""
        if config.minutes is None and config.steps is None:
            raise ConfigError("neither minutes nor steps is set; a run needs one of them to know when to stop.")
        self.task, self.config, self.out = task, config, Path(out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.step = 0
        self.smooth: float | None = None
        self.best = math.inf
        self.precision = choose(self.device, config.bf16, config.matmul)
        self.optimizers = build_optimizers(
            task.module,
            learning_rate=config.learning_rate,
            muon_learning_rate=config.muon_learning_rate,
            weight_decay=config.weight_decay,
            muon_dtype=self.precision.dtype,
        )
        self.ema = {name: tensor.detach().clone().float() for name, tensor in task.module.state_dict().items()}
        if (self.out / "checkpoint.pt").exists():
            self.load(self.out / "checkpoint.pt")

    @property
    def device(self) -> torch.device:
        """Where the module is."""
        return next(self.task.module.parameters()).device

    def run(self) -> dict[str, float]:
        """Train until the budget is spent; return the last scalars.

        On Ctrl-C or SIGTERM finish the step, save and return.

        Raises:
            TrainingDiverged: the loss is not finite or has exploded; the last checkpoint is good.
            DataError: another process trains in this folder.
            OSError: the disk is full, say; the last checkpoint is good.
        """
        with locked(self.out / "training.lock", f"training in {self.out}"):
            return self._run()

    def _run(self) -> dict[str, float]:
        config, start = self.config, time.monotonic()
        torch.set_num_threads(config.threads)
        saved = drawn = start
        scalars: dict[str, float] = {}
        writer = _writer(self.out)
        sums: dict[str, list[float]] = {}
        before = stop_on_terminate()
        bar = tqdm(total=config.steps, initial=self.step, desc=self.out.name, unit="step", mininterval=2)
        bar.write(f"computing in {self.precision.why}")
        try:
            while not self._done(start):
                with unbroken():
                    values = self.train_step()
                for name, value in values.items():
                    sums.setdefault(name, []).append(value)
                now = time.monotonic()
                if (left := self._minutes_left(start, now)) is not None:
                    bar.set_description_str(f"{self.out.name}, {left:.0f} min left", refresh=False)
                bar.update()
                if self.step % config.log_every == 0:
                    scalars, sums = {name: fmean(found) for name, found in sums.items()}, {}
                    self._log(writer, scalars, now - start, bar)
                if now - drawn > 60 * config.sample_grid_minutes:
                    self.draw(writer)
                    drawn = time.monotonic()
                if now - saved > 60 * config.checkpoint_minutes:
                    self.save()
                    saved = time.monotonic()
        except KeyboardInterrupt:
            bar.write(f"stopped at step {self.step}; run the same command to go on from there")
        finally:
            bar.close()
            if before is not None:
                signal.signal(signal.SIGTERM, before)
        self.save()
        self.draw(writer)
        if writer is not None:
            writer.close()
        return scalars

    def train_step(self) -> dict[str, float]:
        """One step of all optimizers and of the EMA."""
        config, module = self.config, self.task.module
        generator = torch.Generator().manual_seed(seed_of(config.seed, self.step))
        rate = self._rate()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["base_lr"] * rate
        with self.precision.active():
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.precision.bf16):
                loss, scalars = self.task.loss(self.step, generator)
            value = float(loss.detach())
            self._check(value)
            for optimizer in self.optimizers:
                optimizer.zero_grad(set_to_none=True)
            loss.backward()
            norm = float(nn.utils.clip_grad_norm_(module.parameters(), config.clip))
            for optimizer in self.optimizers:
                optimizer.step()
        self._update_ema()
        self.step += 1
        return {"loss": value, "grad_norm": norm, **scalars}

    def _rate(self) -> float:
        config = self.config
        rate = min(1.0, (self.step + 1) / max(1, config.warmup))
        if config.cooldown and config.steps is not None:
            rate *= min(1.0, (config.steps - self.step) / config.cooldown)
        return max(rate, 0.0)

    def _check(self, value: float) -> None:
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the loss is {value} at step {self.step}; the last checkpoint in {self.out} is good. "
                "Lower the learning rate and run the command again."
            )
        self.smooth = value if self.smooth is None else 0.98 * self.smooth + 0.02 * value
        self.best = min(self.best, self.smooth)
        if self.step > 2 * self.config.warmup and self.smooth > self.config.diverged * self.best:
            raise TrainingDiverged(
                f"the smoothed loss is {self.smooth:.4g} at step {self.step}, its best was {self.best:.4g} (allowed: "
                f"{self.config.diverged} times). The last checkpoint in {self.out} is good; lower the learning rate."
            )

    @torch.no_grad()
    def _update_ema(self) -> None:
        # The average warms up: early weights are forgotten quickly.
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        current = self.task.module.state_dict()
        floats = [name for name in self.ema if self.ema[name].is_floating_point()]
        for name in floats:
            self.ema[name].lerp_(current[name].float(), 1 - decay)

    def _done(self, start: float) -> bool:
        config = self.config
        if config.steps is not None and self.step >= config.steps:
            return True
        return config.minutes is not None and time.monotonic() - start > 60 * config.minutes

    def _minutes_left(self, start: float, now: float) -> float | None:
        """Minutes until the budget is spent; None where steps alone say how long the run is, which the bar shows."""
        return None if self.config.minutes is None else max(0.0, self.config.minutes - (now - start) / 60)

    def _log(self, writer: Any, scalars: dict[str, float], seconds: float, bar: tqdm) -> None:
        bar.set_postfix({name: f"{value:.4g}" for name, value in list(scalars.items())[:3]})
        with (self.out / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": self.step, "seconds": round(seconds, 1), **scalars}) + "\n")
        if writer is not None:
            for name, value in scalars.items():
                writer.add_scalar(name, value, self.step)

    def draw(self, writer: Any = None) -> None:
        """Draw the task's picture with the EMA weights into `sample_grid.png`."""
        from PIL import Image

        picture = self.with_ema(self.task.sample_grid)
        if picture is not None:
            with replacing(self.out / "sample_grid.png") as partial:
                Image.fromarray(picture).save(partial, format="PNG")
        draw_curves(self.out)
        if picture is not None:
            if writer is not None:
                writer.add_image("sample_grid", picture, self.step, dataformats="HWC")

    def with_ema(self, call: Callable[[nn.Module], Any]) -> Any:
        """`call(module)` while the module holds the EMA weights."""
        module = self.task.module
        now = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        training = module.training
        module.load_state_dict(self.ema)
        module.eval()
        try:
            with torch.no_grad():
                return call(module)
        finally:
            module.load_state_dict(now)
            module.train(training)

    def save(self) -> None:
        """Write the checkpoint; a reader sees the old one or the new one, never half of it."""
        state = {
            "step": self.step,
            "matmul": self.precision.matmul,
            "smooth": self.smooth,
            "best": self.best,
            "module": self.task.module.state_dict(),
            "ema": self.ema,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "task": self.task.state(),
        }
        with replacing(self.out / "checkpoint.pt") as partial, partial.open("wb") as file:
            torch.save(state, file)  # into a file that is open: what the system refuses is then an OSError

    def load(self, path: Path) -> None:
        """Go on from a checkpoint (tensors and plain values only: nothing in it can run code)."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        try:
            self.task.module.load_state_dict(state["module"])
        except RuntimeError as error:
            raise ConfigError(f"{path} holds another model: {error}. Choose another run folder.") from error
        self.step, self.smooth, self.best = state["step"], state["smooth"], state["best"]
        self.ema = {name: tensor.to(self.ema[name].device) for name, tensor in state["ema"].items()}
        # A second measurement could choose otherwise, and the run would not go on with the same bits.
        self.precision = choose(self.device, self.config.bf16, self.config.matmul or state.get("matmul"))
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            bases = [group["base_lr"] for group in optimizer.param_groups]
            optimizer.load_state_dict(saved)
            for group, base in zip(optimizer.param_groups, bases, strict=True):
                group["base_lr"] = base  # a resumed run may ask for another rate
        self.task.load_state(state["task"])


def seed_of(*parts: int) -> int:
    """One 63-bit seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def stop_on_terminate() -> Any:
    """Let SIGTERM end a run as Ctrl-C does; return the handler before, or None outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    return signal.signal(signal.SIGTERM, stop)


@contextlib.contextmanager
def unbroken() -> Iterator[None]:
    """Hold Ctrl-C and SIGTERM back until the block is over: half a step, saved, is not where a run went on from.

    Raises:
        KeyboardInterrupt: at the end of the block, if a signal came.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    numbers = [n for n in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(n) is not signal.SIG_IGN]
    before = [signal.signal(number, lambda number, frame: heard.append(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
    if heard:
        raise KeyboardInterrupt


def _writer(out: Path) -> Any:
    """A TensorBoard writer, or None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(out))
