"""Sessions of a policy, in the real game or in a world, from the same starts.

A start is a moment of a real episode. It stores the game's seed, the options of its reset and the actions so far, so
that any policy can continue the real game from it, any number of times; and the last frames before it, which are the
context frames of a world. Frames are stored at some ages only; an age is the number of steps since the start.
Legend: S sessions, C context frames, K stored ages, T steps, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from tqdm import tqdm

from worldsim.data.frames import resize_frame
from worldsim.data.policy import Policy
from worldsim.diffusion import noise
from worldsim.engine.simulator import State
from worldsim.errors import DataError
from worldsim.evaluation.probe import Probe
from worldsim.evaluation.rollout import Runner, Segments
from worldsim.spaces import ActionCodec

BEFORE = (33, 90)  # steps of the recipe's policy before a start; the first is also the most context there can be
STOPPING = 80  # steps after which a player has stopped
TRIES = 40  # episodes tried for one start


@dataclass(frozen=True)
class Start:
    """A moment of a real episode.

    Attributes:
        seed: of the game's reset.
        options: of the game's reset.
        actions: from the reset up to here.
        frames: the last ones, uint8 (C, H, W, 3).
        prompt: that the world is played under.
        labels: see `Probe.labels`.
        moving: whether the player moved.
    """

    seed: int
    options: dict[str, Any]
    actions: list[Any]
    frames: np.ndarray
    prompt: str
    labels: dict[str, Any]
    moving: bool


@dataclass(frozen=True)
class Played:
    """Sessions of T steps.

    Attributes:
        ages: that frames were stored at, ascending.
        frames: uint8 (S, K, H, W, 3).
        present: which of them there are, bool (S, K): the real game draws none after its end.
        rewards: (S, T), nan after the real game's end.
        ends: the step that ended each session, from 1; T + 1 where none did; (S,).
        probabilities: of a termination at each step, (S, T), from which a world's `ends` are drawn; 0 and 1 in the
            real game.
        actions: flattened, (S, T, action_size).
        labels: see `Probe.labels`, one of each session.
        forks: frames uint8 (S, steps, H, W, 3) of scripts that were played beside, by name.
    """

    ages: list[int]
    frames: Tensor
    present: Tensor
    rewards: Tensor
    ends: Tensor
    probabilities: Tensor
    actions: Tensor
    labels: list[dict[str, Any]]
    forks: dict[str, Tensor] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return self.rewards.shape[1]

    def first(self, steps: int) -> Played:
        """Return the first steps alone, as if no more had been played; itself where there are not more."""
        if steps >= self.steps:
            return self
        columns = [column for column, age in enumerate(self.ages) if age <= steps]
        return replace(
            self,
            ages=[self.ages[column] for column in columns],
            frames=self.frames[:, columns],
            present=self.present[:, columns],
            rewards=self.rewards[:, :steps],
            ends=self.ends.clamp(max=steps + 1),
            probabilities=self.probabilities[:, :steps],
            actions=self.actions[:, :steps],
        )

    def at(self, ages: Iterable[int]) -> tuple[Tensor, Tensor]:
        """Return the frames at some stored ages and which of them exist, uint8 (S, k, H, W, 3) and bool (S, k)."""
        columns = [self.ages.index(age) for age in ages if age in self.ages]
        return self.frames[:, columns], self.present[:, columns]


def find_starts(
    probe: Probe, count: int, size: tuple[int, int], prompts: Sequence[tuple[str, dict[str, Any]]], seed: int = 0
) -> list[Start]:
    """Find starts in the real game: every second one in motion, the others at rest.

    Args:
        probe: of the game.
        count: how many.
        size: height and width of their frames.
        prompts: that they are played under in turn, with the options of a reset to match.
        seed: of the choice.

    Raises:
        DataError: the game never came to a place that fits.
    """
    env = probe.open()
    try:
        return [_start(probe, env, size, *prompts[i % len(prompts)], i % 2 == 0, [seed, 40, i]) for i in range(count)]
    finally:
        env.close()


def _start(
    probe: Probe, env: gym.Env, size: tuple[int, int], prompt: str, more: dict[str, Any], moving: bool, key: list[int]
) -> Start:
    for attempt in range(TRIES):
        rng = np.random.default_rng([*key, attempt])
        policy, options = probe.policy(rng)
        options, seed = {**options, **more}, int(rng.integers(2**31))
        probe.draw(env, False)
        observation, info = env.reset(seed=seed, options=options)
        actions: list[Any] = []
        over, first = False, int(rng.integers(*BEFORE))
        while len(actions) < first and not over:
            actions.append(policy.act(env, observation, info))
            observation, _, terminated, truncated, info = env.step(actions[-1])
            over = terminated or truncated
        calm = 0
        while not moving and not over and calm < probe.settle and len(actions) < BEFORE[1] + STOPPING:
            calm = 0 if probe.resting(env) is False else calm + 1
            actions.append(probe.recipe.keys[""] if calm else probe.stop(env))
            _, _, terminated, truncated, info = env.step(actions[-1])
            over = terminated or truncated
        rest = probe.resting(env)
        if over or len(actions) < BEFORE[0] or (rest is not None and rest == moving) or not probe.fits(env, moving):
            continue
        frames = _again(probe, env, size, seed, options, actions, len(actions) - BEFORE[0] + 1)
        if probe.recipe.protect:  # sessions are protected: they must come to the same place
            other = _again(probe, env, size, seed, {**options, **probe.recipe.protect}, actions)
            if not np.array_equal(other[-1], frames[-1]):
                continue
        return Start(seed, options, actions, np.stack(frames), prompt, probe.labels(info), moving)
    raise DataError(f"the real game of {probe.recipe.name} gave no start that fits in {TRIES} episodes.")


def _again(
    probe: Probe,
    env: gym.Env,
    size: tuple[int, int],
    seed: int,
    options: dict[str, Any],
    actions: list[Any],
    keep_from: int = -1,
) -> list[np.ndarray]:
    """Replay an episode up to the end of `actions`; return its frames from age `keep_from` on (-1: the last)."""
    keep_from = len(actions) if keep_from < 0 else keep_from
    probe.draw(env, keep_from == 0)
    observation, _ = env.reset(seed=seed, options=options)
    frames = [resize_frame(observation, size)] if keep_from == 0 else []
    for age, action in enumerate(actions, start=1):
        probe.draw(env, age >= keep_from)
        observation, *_ = env.step(action)
        if age >= keep_from:
            frames.append(resize_frame(observation, size))
    return frames


def segments_of(starts: Sequence[Start], space: spaces.Space, context: int) -> Segments:
    """Make the last `context` frames before each start the context of a world. Raises DataError for too many."""
    if context > len(starts[0].frames):
        raise DataError(f"a start keeps {len(starts[0].frames)} frames; the world has a context of {context}.")
    taken = [start.actions[len(start.actions) - context + 1 :] for start in starts]
    actions = [ActionCodec(space).flatten_list(some) for some in taken]
    return Segments(
        frames=torch.from_numpy(np.stack([start.frames[-context:] for start in starts])),
        actions=torch.from_numpy(np.stack(actions)),
        prompts=[[start.prompt] * context for start in starts],
        sources=list(range(len(starts))),
        context=context,
    )


def play_real(
    probe: Probe,
    starts: Sequence[Start],
    policy: Callable[[int], Policy],
    steps: int,
    ages: Sequence[int],
    size: tuple[int, int],
    protect: bool = True,
) -> Played:
    """Let a policy continue the real game from each start.

    Args:
        probe: of the game.
        starts: where to begin.
        policy: gives the policy of a session by its number.
        steps: to play in each, or fewer where the game ends.
        ages: at which frames are stored, within 1..steps; none: no frame is drawn that the policy does not look at.
        size: height and width of the frames.
        protect: whether the player is protected from what ends an episode, where the game can do that.
    """
    env = probe.open()
    space = env.action_space
    stored = sorted(set(ages))
    frames = torch.zeros(len(starts), len(stored), *size, 3, dtype=torch.uint8)
    present = torch.zeros(len(starts), len(stored), dtype=torch.bool)
    rewards, ends = torch.full((len(starts), steps), float("nan")), torch.full((len(starts),), steps + 1)
    taken = []
    try:
        for i, start in enumerate(tqdm(starts, desc="the real game", unit="session", leave=False, disable=None)):
            player, actions = policy(i), []
            looks = getattr(player, "needs_frames", True)
            options = {**start.options, **(probe.recipe.protect if protect else {})}
            seen = _again(probe, env, size, start.seed, options, start.actions)[-1]
            info: dict[str, Any] = {}
            for step in range(1, steps + 1):
                actions.append(player.act(env, seen, info))
                wanted = step in stored
                probe.draw(env, wanted or looks)
                observation, reward, terminated, truncated, info = env.step(actions[-1])
                rewards[i, step - 1] = float(reward)
                if terminated:
                    ends[i] = step
                if terminated or truncated:
                    break
                if wanted or looks:
                    seen = resize_frame(observation, size)
                if wanted:
                    frames[i, stored.index(step)], present[i, stored.index(step)] = torch.from_numpy(seen), True
            flat = torch.from_numpy(ActionCodec(space).flatten_list(actions))
            taken.append(torch.cat([flat, flat.new_zeros(steps - len(flat), flat.shape[1])]))
    finally:
        env.close()
    probabilities = (torch.arange(1, steps + 1) == ends.unsqueeze(1)).float()  # (S, T)
    labels = [start.labels for start in starts]
    return Played(stored, frames, present, rewards, ends, probabilities, torch.stack(taken), labels)


Forks = dict[int, dict[str, list[Any]]]
"""By age: scripts that are played from there beside the session, by name; each is a list of actions."""


def play_world(
    runner: Runner,
    begin: Segments | Sequence[str],
    labels: list[dict[str, Any]],
    policy: Callable[[int], Policy],
    steps: int,
    ages: Sequence[int],
    forks: Forks | None = None,
    title: str = "playing",
) -> Played:
    """Let a policy play sessions of a world, beyond all terminations of the world.

    Args:
        runner: predicts the frames.
        begin: contexts to begin from, or prompts whose first frames are drawn.
        labels: of the sessions, see `Probe.labels`.
        policy: gives the policy of a session by its number.
        steps: to play in each.
        ages: at which frames are stored, within 0..steps.
        forks: see `Forks`.
        title: of the progress bar.
    """
    forks, space, (height, width) = forks or {}, runner.world.action_space, runner.world.card.frame_size
    count, stored = len(begin), sorted(set(ages))
    frames = torch.zeros(count, len(stored), height, width, 3, dtype=torch.uint8)
    rewards, probabilities = torch.zeros(count, steps), torch.zeros(count, steps)
    ends = torch.full((count,), steps + 1)
    taken, beside = torch.zeros(count, steps, runner.world.dynamics.config.action_size), {}
    chunks = [list(range(i, min(i + runner.batch, count))) for i in range(0, count, runner.batch)]
    with tqdm(total=steps * len(chunks), desc=title, unit="step", leave=False, disable=None) as bar:
        for rows in chunks:
            state, last = _begin(runner, begin, rows)
            players = [policy(row) for row in rows]
            for step in range(steps + 1):
                if step:
                    moves = [player.act(None, image, {}) for player, image in zip(players, last.numpy(), strict=True)]
                    taken[rows, step - 1] = torch.from_numpy(ActionCodec(space).flatten_list(moves))
                    outcome = runner.simulator.step(state, taken[rows, step - 1])
                    last = runner.decode(outcome.latents).cpu()
                    rewards[rows, step - 1] = outcome.reward.float().cpu()
                    probabilities[rows, step - 1] = noise.possible(outcome.ended.float().cpu())
                    over = noise.ends(outcome.ended.cpu(), state.keys, state.step)
                    ends[rows] = torch.where(over & (ends[rows] > steps), step, ends[rows])
                    bar.update()
                if step in stored:
                    frames[rows, stored.index(step)] = last
                for name, script in forks.get(step, {}).items():
                    shown = _script(runner, replace(state), script, len(rows))
                    beside.setdefault(name, torch.zeros(count, *shown.shape[1:], dtype=torch.uint8))[rows] = shown
    present = torch.ones(count, len(stored), dtype=torch.bool)
    return Played(stored, frames, present, rewards, ends, probabilities, taken, labels, beside)


def _begin(runner: Runner, begin: Segments | Sequence[str], rows: list[int]) -> tuple[State, Tensor]:
    """Begin sessions; return them with their last frames."""
    if isinstance(begin, Segments):
        state = runner.warm_up(begin, rows)
        state.prompts = runner.prompts(begin.prompts[row][-1] for row in rows)
        return state, begin.frames[rows, begin.context - 1]
    state = runner.new_state(rows, (begin[row] for row in rows))
    return state, runner.decode(runner.simulator.step(state, None).latents).cpu()


def _script(runner: Runner, state: State, script: list[Any], rows: int) -> Tensor:
    """Predict the frames of some actions, the same actions in all rows."""
    space = runner.world.action_space
    flat = torch.from_numpy(ActionCodec(space).flatten_list(script))
    shown = [runner.decode(runner.simulator.step(state, action.expand(rows, -1)).latents).cpu() for action in flat]
    return torch.stack(shown, dim=1)
