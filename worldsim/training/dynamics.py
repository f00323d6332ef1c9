"""Train the dynamics: the next latents from the last ones, the action and the prompt.

A batch is some windows of T frames, and one pass predicts all of them. With the flow objective every frame has a noise
level of its own (diffusion forcing, Chen et al. 2024, arXiv:2407.01392); with the energy objective a frame is drawn
from pure noise in one pass (see `diffusion.energy`). Some frames are `given`: seen, as those of a clip are in play.
In some windows an episode ends, and once the model can draw, the past of some is what it drew itself (`rollouts`).
Past 400 lines, because both objectives are a few lines each over the same windows, conditions and heads.
Legend: B windows, T frames, K history frames, A action history, C h w latent.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from worldsim.data.latents import LatentData
from worldsim.diffusion.energy import scaled_energy_score, share_places, shared_channels, through_one_draw
from worldsim.diffusion.flow import loss_weight, mix, schedule, training_levels
from worldsim.engine.simulator import SamplerConfig, Simulator
from worldsim.errors import ConfigError
from worldsim.models.dit import Conditions, DiT, DiTConfig
from worldsim.models.heads import reward_loss
from worldsim.models.text import PromptBook
from worldsim.training.rollouts import RolloutPool, roll
from worldsim.training.trainer import TrainerConfig

SHEET_FRAMES = 96
TYPICAL_FRAMES = 4000  # that say what is mostly there


@dataclass(frozen=True, kw_only=True)
class DynamicsTraining:
    """What `worldsim train dynamics` does."""

    data: Path
    """A recorded dataset."""
    more: tuple[Path, ...] = ()
    """Further recordings of the same game to train on: another player's, say."""
    autoencoder: Path | None = None
    """The run folder of a trained autoencoder (default: runs/DATASET-autoencoder)."""
    out: Path | None = None
    """The run folder (default: runs/DATASET); a run that was stopped there goes on."""
    start: Path | None = None
    """A world to go on from: its autoencoder, its model and its weights."""
    model: DiTConfig = field(default_factory=DiTConfig)
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(minutes=60))
    windows: int = 6
    frames: int = 8
    """Frames of a window. In play a world remembers `context` of them, at most one less, as no frame of a window sees
    more. For a longer memory give both; it is taken from here also where a world is gone on from."""
    fresh: float = 0.15
    """Share of windows that begin from nothing but the prompt."""
    ends: int = 1
    """Windows in which an episode ends, as few others show it (at most those that are not its own)."""
    events: int = 1
    """Windows in which an event is told, where a recording has any (at most those that are left). With its words given
    none gets likelier; without them (`prompt_dropout`) a little."""
    stills: int = 8
    """Single frames from nothing but the prompt, beside the windows."""
    given: float | None = None
    """Share of frames that take the part of the past, seen and not drawn (default: .15 for energy, .3 for flow)."""
    history_noise: float = 0.2
    """Largest noise level mixed into the history."""
    prompt_dropout: float = 0.1
    draw_steps: int | None = None
    """Denoising steps of a frame, in its own rollouts and later in the world (default: 1 for energy, 2 for flow)."""
    clean_pass: bool = False
    """Whether reward and cache come from one more pass over each finished frame, not from its last denoising pass."""
    own: int = 3
    """Windows of a batch whose past is the model's own: with flow, more of them hold longer and blur the next frame."""
    own_after: int = 700
    """Steps before that begins."""
    own_frames: int = 8
    """Frames of such a window, the last ones, that the model draws."""
    own_pool: int = 16
    own_reuse: int = 1
    own_rests: float = 0.25
    """Share of these windows in which nobody moves, where the recording has rests: up to 256 frames deep."""
    head_weight: float = 0.1
    """Of the loss of the reward."""
    end_weight: float = 1.0
    """Of the loss of the end."""
    objective: Literal["energy", "flow"] = "energy"
    """energy: one pass draws a frame (see `diffusion.energy`). flow: flow matching, some passes a frame."""
    both_gradients: bool = False
    """Whether the gradient of that score goes through both draws. Through one it is the same on the average, as both
    are alike, for two thirds of the work."""
    draws_after: int = 0
    """Steps of the energy objective with one draw, which only learns to be near: half the work, to begin with."""
    shared_noise: float = 0.5
    """Share of the noise's channels that are the same at every place of a frame, for energy."""
    temperature: float = 0.5
    """Scale of the noise that the trained world draws frames from, for energy: below 1, likelier frames. It costs no
    detail, as its frames are draws, and the strange ones, which a long play cannot get rid of, become rare."""
    scales: tuple[int, ...] = (1, 2, 4)
    """Sides of the blocks of latents that the energy score compares as one vector each."""
    picture: bool = True
    """Whether that score weighs latents by what they change in the picture, see `training.picture`."""
    focus: float = 0.0
    """Share of that score that goes to places by how far they are from what is mostly there, frame by frame: for small
    things that matter in a scene that hardly changes. What appears by chance then does so more often than it should."""
    compile: bool | None = None
    """Compile the transformer's blocks: two minutes once, then a step takes less than half. It needs a C++ compiler
    (default: for runs of 1000 steps or ten minutes and more, where there is one)."""

    def __post_init__(self) -> None:
        """Check what belongs together."""
        if self.frames < 2:
            raise ConfigError(f"frames is {self.frames}; a window has at least 2, or nothing in it has a past.")
        for name in ("own", "ends", "events", "stills"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 0.")
        if self.objective not in ("energy", "flow"):
            raise ConfigError(f"objective is {self.objective!r}; allowed: 'energy', 'flow'.")
        if self.objective == "energy" and self.steps_drawn() != 1:
            raise ConfigError(f"draw_steps is {self.draw_steps}; the energy objective trains drawing in 1 step only.")
        for name in ("focus", "own_rests"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 0 to 1.")
        if self.own > self.windows:
            raise ConfigError(f"own is {self.own} of {self.windows} windows; allowed: at most all of them.")

    def steps_drawn(self) -> int:
        """Denoising steps of a frame."""
        return self.draw_steps or (1 if self.objective == "energy" else 2)

    def share_given(self) -> float:
        """Share of frames that take the part of the past."""
        return (0.15 if self.objective == "energy" else 0.3) if self.given is None else self.given

    def drawn_frames(self) -> int:
        """How many frames of a window the model draws, where it is its own."""
        return min(self.own_frames, self.frames)

    def compiles(self) -> bool:
        """Whether the blocks are compiled."""
        if self.compile is not None:
            return self.compile
        steps, minutes = self.trainer.steps, self.trainer.minutes
        long = steps >= 1000 if steps is not None else (minutes or 0) >= 10
        return long and any(map(shutil.which, ("g++", "clang++")))

    def folder(self) -> Path:
        """The run folder."""
        return self.out or Path("runs") / self.data.name

    def autoencoder_folder(self) -> Path:
        """The run folder of the autoencoder."""
        return self.autoencoder or Path("runs") / f"{self.data.name}-autoencoder"


@dataclass
class Windows:
    """A batch of windows of T frames, each after K frames of history.

    Attributes:
        rows: which frames of the recording they are, (B, T).
        birth: the first frame that each window knows of, (B,).
        fresh: whether that is its own first frame, (B,).
        seen: the history and the frames as they were seen: recorded, or the model's own in each of D futures,
            (B, D, K + T, C, h, w).
        noise: what the frames of each future are drawn from, for energy, (B, D, T, C, h, w).
        target: the frames as recorded, after the one before them, (B, 1 + T, C, h, w).
        inside: which frames are of the episode that the window begins in, bool (B, T); others count for nothing.
        own: how many windows, the first ones, are the model's own.
    """

    rows: Tensor
    birth: Tensor
    fresh: Tensor
    seen: Tensor
    noise: Tensor
    target: Tensor
    inside: Tensor
    own: int


class DynamicsTask:
    """The loss of the dynamics on a recording's latents."""

    def __init__(self, config: DynamicsTraining, data: LatentData, held: LatentData, book: PromptBook) -> None:
        """Build the model; `data` trains it, `held` is drawn on the sheets."""
        self.config, self.data, self.held, self.book = config, data, held, book
        self.module: DiT = config.model.build()
        if config.compiles():
            self.module.compile_blocks()
        self.text, self.text_mask = book.batch(data.prompts)
        self.sampler = SamplerConfig(
            steps=config.steps_drawn(),
            shared_noise=config.shared_noise if config.objective == "energy" else 0.0,
            clean_pass=config.clean_pass,
        )
        last = schedule(self.sampler.steps, self.sampler.shift)[-2]
        # How noisy the cache sees the past, at most.
        self.past_sigma = 0.1 if config.clean_pass else min(1.0, 1.2 * last)
        self.shown = dataclasses.replace(
            self.sampler, temperature=config.temperature if config.objective == "energy" else 1.0
        )
        self.simulator = Simulator(self.module, book, self.sampler, frozen=False)
        drawn = config.drawn_frames()
        self.draws = 2 if config.objective == "energy" else 1
        lead = config.frames - drawn
        self.pool = RolloutPool(
            config.own_pool, drawn, config.own_reuse, self.sampler, lead, self.draws, config.own_rests
        )
        self.end_share = data.terminated.sum() / data.mortal.sum().clamp(min=1)
        self.weights: Tensor | None = None  # of the latents' channels, (C, C); None counts them alike
        self.typical: Tensor | None = None  # what is mostly at each place, (C, h, w)
        if config.focus:
            self.typical = data.latents[:: max(1, len(data.latents) // TYPICAL_FRAMES)].float().mean(dim=0)
        self.decode: Any = None  # frames for the sheet, set by whoever has an autoencoder

    def loss(self, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        """One batch: recorded windows, and the model's own once `own_after` steps are over."""
        config = self.config
        windows = self._windows(step, generator)
        objective = self._energy if config.objective == "energy" else self._flow
        loss, scalars = objective(windows, generator, step)
        if config.stills:
            loss = loss + config.stills / windows.rows.numel() * self._stills(generator)
        return loss, {name: float(value.detach()) for name, value in scalars.items()}

    def _windows(self, step: int, generator: torch.Generator) -> Windows:
        config, history = self.config, self.config.model.history
        own = config.own if step >= config.own_after else 0
        starts = self.data.sample_starts(config.windows, config.frames, generator)
        last = config.windows  # of those that are chosen by chance
        for happened, count in ((self.data.terminated, config.ends), (self.data.told, config.events)):
            around = self.data.sample_around(happened, min(count, last - own), config.frames, generator)
            starts[last - len(around) : last] = around
            last -= len(around)
        fresh = torch.rand(config.windows, generator=generator) < config.fresh
        fresh[:own] = False
        lead = self.pool.lead  # recorded frames of an own window, before those drawn
        rollouts = self.pool.take(own, self.simulator, self.data, step, config.trainer.seed) if own else None
        if rollouts is not None:
            starts[:own] = rollouts.starts - lead
        rows = starts.unsqueeze(1) + torch.arange(-history, config.frames)  # (B, K + T)
        recorded = self.data.latents[rows.clamp(min=0)].float()
        seen = recorded.unsqueeze(1).repeat(1, self.draws, *[1] * (recorded.dim() - 1))
        noise = self._noise(seen[:, :, history:].shape, generator)
        if rollouts is not None:
            seen[:own, :, lead:] = rollouts.seen
            noise[:own, :, lead:] = rollouts.noise
        birth = torch.where(fresh, starts, self.data.first[starts])
        inside = rows[:, history:] <= self.data.last[starts].unsqueeze(1)
        return Windows(rows[:, history:], birth, fresh, seen, noise, recorded[:, history - 1 :], inside, own)

    def _noise(self, shape: torch.Size, generator: torch.Generator) -> Tensor:
        """Noise (B, D, T, C, h, w) to draw frames from, some of its channels the same at every place."""
        count = shared_channels(shape[3], self.sampler.shared_noise)
        shapes = shape, (*shape[:3], count, 1, 1)
        return share_places(*(torch.randn(shape, generator=generator) for shape in shapes))

    def _energy(self, windows: Windows, generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Two draws of every frame by one pass each; their energy score against what happened.

        The model's own windows are two futures of one past, played apart: there the score also compares how each frame
        differs from the one before it, as no score of single frames can tell whether one goes on from the other.
        """
        module, config, own = self.module, self.config, windows.own
        two = step >= config.draws_after
        last, target = windows.target[:, :-1], windows.target[:, 1:]
        given = torch.rand(windows.rows.shape, generator=generator) < config.share_given()
        given[:, 0] |= windows.fresh  # a first frame is drawn in many steps, see `_stills`
        given[:own] = False
        noisy = torch.where(given[..., None, None, None, None], target.unsqueeze(2), windows.noise.transpose(1, 2))
        conditions = self._conditions(windows.rows, windows.birth, windows.seen[:, 0], generator)
        shared = module.share(conditions)
        modulation = module.modulate(module.level((~given).float()), shared.condition)
        latents, features, _ = module.denoise(noisy[:, :, 0], modulation, shared)
        first = second = latents.float()  # (B, T, C, h, w)
        if two:
            with contextlib.nullcontext() if config.both_gradients else torch.no_grad():
                if own:
                    other = self._history(windows.seen[:, 1] - windows.seen[:, 0])  # (B, T, K, C, h, w)
                    clean = (1 - conditions.history_sigma)[..., None, None, None, None]
                    embedded = module.embed_history(conditions.history + clean * other, conditions.present)
                    shared = dataclasses.replace(shared, embedded=embedded, newest=shared.newest + other[:, :, -1])
                second = module.denoise(noisy[:, :, 1], modulation, shared)[0].float()
        places = self._places(target)
        score = self._score(first, second, target, places)  # (B, T)
        apart = {}
        if own:
            before = windows.seen[:own, :, config.model.history - 1 : -1].unbind(1)  # each (own, T, C, h, w)
            moved = first[:own] - before[0], second[:own] - before[int(two)]
            motion = self._score(*moved, target[:own] - last[:own], None if places is None else places[:own])
            score = torch.cat([(score[:own] + motion) / 2, score[own:]])
            apart = {"score_own": score[:own].mean(), "motion_own": motion.mean()}
        if two and not config.both_gradients:
            score = through_one_draw(score)
        counted = (~given & windows.inside).float()
        denoise = (score * counted).sum() / counted.sum()
        rows = windows.rows[own:]  # what happened to the model's own frames is not known
        judged = self.data.known[rows] * windows.inside[own:]
        heads, scalars = self._heads(*module.judge(features[own:]), rows, judged)
        drawn = (~given & windows.inside)[own:]
        scalars |= apart | {
            "score": score[own:][drawn].mean(),
            "error": (first - target)[own:][drawn].square().mean(),
            "spread": (first - second)[own:][drawn].square().mean() / 2,  # half of `error`, where draws are the truth's
        }
        return denoise + heads, scalars

    def _score(self, first: Tensor, second: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        """The energy score (B, T) of two draws (B, T, C, h, w), with places weighed by (B, T, h, w)."""
        first, second, target = (self._picture(x) for x in (first, second, target))
        return scaled_energy_score(first, second, target, self.config.scales, weight)

    def _picture(self, x: Tensor) -> Tensor:
        """Latents (..., C, h, w) in the axes of what they change in the picture."""
        return x if self.weights is None else torch.einsum("cd,...dhw->...chw", self.weights, x)

    def _places(self, target: Tensor) -> Tensor | None:
        """How much each place of frames (B, T, C, h, w) counts, (B, T, h, w); one on the average of each frame."""
        if self.typical is None:
            return None
        unlike = self._picture(target - self.typical).square().sum(dim=2)
        unlike = unlike / unlike.mean(dim=(2, 3), keepdim=True).clamp(min=1e-6)
        return 1 - self.config.focus + self.config.focus * unlike

    def _flow(self, windows: Windows, generator: torch.Generator, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        """The clean latents of every frame from its past and from itself at some noise level (flow matching)."""
        config, own, shape = self.config, windows.own, windows.rows.shape
        seen, target = windows.seen[:, 0], windows.target[:, 1:]
        # The part of each frame: past (a little noisy, as seen) or future (noisy, as recorded).
        given = torch.rand(shape, generator=generator) < config.share_given()
        sigma = training_levels(tuple(shape), generator)
        sigma = torch.where(given, self.past_sigma * torch.rand(shape, generator=generator), sigma)
        noise = torch.randn(target.shape, generator=generator)
        clean = torch.where(given[..., None, None, None], seen[:, config.model.history :], target)
        counted = windows.inside.float()
        counted[:own] -= given[:own].float()  # the model's own frames are no targets

        conditions = self._conditions(windows.rows, windows.birth, seen, generator)
        predicted = self.module(mix(clean, noise, sigma), sigma, conditions)
        error = (predicted.latents.float() - target).square().mean(dim=(2, 3, 4))  # (B, T)
        denoise = (error * loss_weight(sigma) * counted).sum() / counted.sum()
        judged = given * self.data.known[windows.rows] * windows.inside
        heads, scalars = self._heads(predicted.reward, predicted.ended, windows.rows, judged)
        at_one = ((sigma == 1) * windows.inside * (~windows.fresh).unsqueeze(1)).float()
        scalars |= {"at_one": (error * at_one).sum() / at_one.sum().clamp(min=1)}
        if own:
            scalars["at_one_own"] = (error * at_one)[:own].sum() / at_one[:own].sum().clamp(min=1)
        return denoise + heads, scalars

    def _heads(self, reward: Tensor, ended: Tensor, rows: Tensor, judged: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of reward and end over the frames `rows`, weighted by `judged`, both (B, T).

        Frames that end an episode count less by as much as windows show more of them than there are (`ends`): so the
        probability of an end, and of the reward that comes with it, stays that of the recording. It is so wherever in a
        window a frame is, as the model can tell that; in play every frame is like the last of one.
        """
        config, over = self.config, self.data.terminated[rows]
        shown = min(config.ends, len(rows)) / max(rows.numel(), 1)
        weight = judged * torch.where(over > 0, (self.end_share / shown).clamp(max=1) if shown else 1.0, 1.0)
        rewards = (reward_loss(reward, self.data.rewards[rows]) * weight).sum() / weight.sum().clamp(min=1)
        weight = weight * self.data.mortal[rows]
        ends = nn.functional.binary_cross_entropy_with_logits(ended.float(), over, weight=weight, reduction="sum")
        ends = ends / weight.sum().clamp(min=1)
        return config.head_weight * rewards + config.end_weight * ends, {"reward": rewards, "ended": ends}

    def _stills(self, generator: torch.Generator) -> Tensor:
        """The loss of single frames drawn from nothing but their prompt: how a session without a clip begins."""
        rows = torch.randint(len(self.data.latents), (self.config.stills, 1), generator=generator)  # (S, 1)
        target = self.data.latents[rows].float()
        sigma = training_levels(tuple(rows.shape), generator)
        noisy = mix(target, torch.randn(target.shape, generator=generator), sigma)
        nothing = torch.zeros(len(rows), self.config.model.history + 1, *target.shape[2:])
        predicted = self.module(noisy, sigma, self._conditions(rows, rows[:, 0], nothing, generator))
        error = (predicted.latents.float() - target).square().mean(dim=(2, 3, 4))  # (S, 1)
        return (error * loss_weight(sigma)).mean()

    def _conditions(self, rows: Tensor, birth: Tensor, seen: Tensor, generator: torch.Generator) -> Conditions:
        """What is known of frames `rows` (B, T): `seen` (B, K + T, ...) holds the past from frame rows[:, 0] - K on."""
        model = self.config.model
        shape = rows.shape
        past = self._history(seen)  # (B, T, K, C, h, w)
        sigma = self.config.history_noise * torch.rand(shape, generator=generator)
        history = mix(past, torch.randn(past.shape, generator=generator), sigma)
        birth = birth[:, None, None]
        ages = torch.arange(model.history, 0, -1)
        present = (rows.unsqueeze(-1) - ages >= birth).float()  # (B, T, K)
        steps = rows.unsqueeze(-1) - torch.arange(model.action_history - 1, -1, -1)  # (B, T, A)
        known = (steps > birth).float()  # the action of the first frame is not known
        prompt = self.data.prompt[rows]
        blank = torch.rand(shape[0], 1, generator=generator) < self.config.prompt_dropout
        # Only the prompts of this batch: their keys and values are computed at every step.
        distinct, index = torch.unique(prompt.masked_fill(blank, 0), return_inverse=True)
        return Conditions(
            history=history,
            newest=past[:, :, -1],
            present=present,
            history_sigma=sigma,
            actions=self.data.actions[steps.clamp(min=0)],
            known=known,
            text=self.text[distinct],
            text_mask=self.text_mask[distinct],
            prompt_index=index,
        )

    def _history(self, seen: Tensor) -> Tensor:
        """The K frames before each frame, (B, T, K, C, h, w), of frames (B, K + T, C, h, w)."""
        return seen.unfold(1, self.config.model.history, 1)[:, :-1].movedim(-1, 2)

    @torch.no_grad()
    def sheet(self, module: nn.Module) -> np.ndarray | None:
        """Four held-out stretches, the truth above the model's own play under the recorded actions, every 8th frame."""
        if self.decode is None:
            return None
        assert isinstance(module, DiT)
        history = module.config.history
        frames = min(SHEET_FRAMES, int((self.held.last - self.held.first).max()) + 1 - history)
        generator = torch.Generator().manual_seed(0)
        starts = self.held.sample_starts(4, frames, generator, history)
        seen = self.held.latents[starts.unsqueeze(1) + torch.arange(-history, 0)].float()
        simulator = Simulator(module, self.book, self.shown)
        drawn = roll(simulator, self.held, starts, seen.unsqueeze(1), frames, 0).seen[:, 0]
        shown = sorted({0, 1, 3, *range(7, frames, 8)} & set(range(frames)))
        truth = self.held.latents[(starts.unsqueeze(1) + torch.arange(frames))[:, shown]].float()
        rows = []
        for real, own in zip(truth, drawn[:, history:][:, shown], strict=True):
            rows += [torch.cat(list(self.decode(real)), dim=1), torch.cat(list(self.decode(own)), dim=1)]
        return torch.cat(rows).numpy()

    def state(self) -> dict[str, Any]:
        """The pool of rollouts."""
        return self.pool.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.pool.load_state(state)
