"""Rollouts of a world from recorded frames: teacher-forced or free-running.

Legend: S segments, C context frames, N frames to predict, H W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor
from tqdm import tqdm

from worldsim.data.episodes import Episode
from worldsim.diffusion.sampler import SamplerConfig
from worldsim.engine.simulator import Simulator, State
from worldsim.engine.tuning import choose
from worldsim.errors import ConfigError, DataError
from worldsim.spaces import ActionCodec
from worldsim.types import Prompt
from worldsim.world import World

RolloutPolicy = Callable[[list[int], int, Tensor], tuple[Tensor, list[str]]]
"""Plays the rows of a batch: (rows, n, their last frames) -> flattened actions and prompts for the n-th free frame."""


@dataclass(frozen=True)
class Segments:
    """Recorded segments of equal length: context frames, then the frames that a world has to predict.

    Attributes:
        frames: uint8 (S, C + N, H, W, 3).
        actions: flattened, actions[:, t] led to frames[:, t + 1], (S, C + N - 1, action_size).
        prompts: the prompt in force at each frame, S lists of C + N.
        sources: the episode each segment is from, as an index.
        context: C.
    """

    frames: Tensor
    actions: Tensor
    prompts: list[list[str]]
    sources: list[int]
    context: int

    def __len__(self) -> int:
        """Return the number of segments."""
        return len(self.frames)

    @property
    def length(self) -> int:
        """Number of frames to predict, N."""
        return self.frames.shape[1] - self.context

    @property
    def truth(self) -> Tensor:
        """The frames to predict, (S, N, H, W, 3)."""
        return self.frames[:, self.context :]

    @property
    def before(self) -> Tensor:
        """The frame before each frame to predict, (S, N, H, W, 3)."""
        return self.frames[:, self.context - 1 : -1]

    @property
    def taken(self) -> Tensor:
        """The action that leads to each frame to predict, (S, N, action_size)."""
        return self.actions[:, self.context - 1 :]

    def pick(self, rows: list[int]) -> Segments:
        """Select these rows, which may repeat."""
        return replace(
            self,
            frames=self.frames[rows],
            actions=self.actions[rows],
            prompts=[self.prompts[row] for row in rows],
            sources=[self.sources[row] for row in rows],
        )

    def labels(self, episodes: list[Episode]) -> list[dict[str, Any]]:
        """Look up the labels of the recording at the last context frame of each segment."""
        rows = zip(self.prompts, self.sources, strict=True)
        return [next(prompt for prompt in episodes[i].prompts if prompt["text"] == texts[-1]) for texts, i in rows]

    def hold_prompts(self) -> Segments:
        """Keep the last prompt of the context in force for all frames to predict."""
        seen = [texts[: self.context] for texts in self.prompts]
        return replace(self, prompts=[texts + texts[-1:] * self.length for texts in seen])

    def shuffled_actions(self) -> Tensor:
        """Return `taken` of the next segment of another episode, where there is one."""
        rows, order = len(self), []
        for row in range(rows):
            others = [(row + step) % rows for step in range(1, rows)]
            order.append(next((i for i in others if self.sources[i] != self.sources[row]), others[0] if others else 0))
        return self.taken[order]


def context_of(world: World) -> int:
    """Compute the number of frames after which older ones do not affect what a world predicts."""
    config = world.dynamics.config
    return config.context + config.history


def longest(episodes: list[Episode], context: int) -> int:
    """Compute the most frames that a segment of these episodes can have after its context."""
    return max(len(episode) + 1 for episode in episodes) - context


def cut(
    episodes: list[Episode], space: spaces.Space, count: int, context: int, frames: int, rng: np.random.Generator
) -> Segments:
    """Cut up to `count` distinct segments at random places, evenly from all episodes that are long enough.

    Raises:
        DataError: no episode is long enough.
    """
    room = [len(episode) + 2 - context - frames for episode in episodes]  # how many places there are
    offsets = [rng.permutation(places) if places > 0 else np.empty(0, int) for places in room]
    turns = ((i, int(o[k])) for k in range(max(0, *room)) for i, o in enumerate(offsets) if k < len(o))
    chosen = [place for _, place in zip(range(count), turns, strict=False)]
    if not chosen:
        raise DataError(f"no episode has {context} + {frames} frames; record longer ones or ask for fewer frames.")
    total = context + frames
    flat = {i: ActionCodec(space).flatten(episodes[i].actions) for i, _ in chosen}
    texts = {i: episodes[i].texts() for i, _ in chosen}
    return Segments(
        frames=torch.from_numpy(np.stack([episodes[i].frames[t : t + total] for i, t in chosen])),
        actions=torch.from_numpy(np.stack([flat[i][t : t + total - 1] for i, t in chosen])),
        prompts=[texts[i][t : t + total] for i, t in chosen],
        sources=[i for i, _ in chosen],
        context=context,
    )


def labels_at(episode: Episode, frames: slice) -> list[dict[str, Any]]:
    """Read the labels of the recording at some frames."""
    return [episode.prompts[i] for i in episode.prompt_index[frames]]


def scripted(actions: Tensor, prompts: list[list[str]]) -> RolloutPolicy:
    """Play actions (S, frames, action_size) under prompts, a list of `frames` for each session."""

    def act(rows: list[int], n: int, last: Tensor) -> tuple[Tensor, list[str]]:
        return actions[rows, n], [prompts[row][n] for row in rows]

    return act


def recorded(segments: Segments, actions: Tensor | None = None) -> RolloutPolicy:
    """Play `actions` (default: the recorded ones), (S, N, action_size), under the recorded prompts."""
    prompts = [texts[segments.context :] for texts in segments.prompts]
    return scripted(segments.taken if actions is None else actions, prompts)


def chained(segments: Segments, episodes: list[Episode], space: spaces.Space, frames: int) -> RolloutPolicy:
    """Play `frames` recorded actions under their prompts: those of each segment, then those of other episodes."""
    flat = [torch.from_numpy(ActionCodec(space).flatten(episode.actions)) for episode in episodes]
    actions, prompts = [], []
    for row, source in enumerate(segments.sources):
        parts, texts, turn = [segments.taken[row]], segments.prompts[row][segments.context :], source
        while sum(len(part) for part in parts) < frames:
            turn = (turn + 1) % len(episodes)
            parts.append(flat[turn])
            texts = texts + episodes[turn].texts()[1:]
        actions.append(torch.cat(parts)[:frames])
        prompts.append(texts[:frames])
    return scripted(torch.stack(actions), prompts)


def check_single_frames(world: World) -> None:
    """Check that a latent of the world stands for one frame.

    Raises:
        ConfigError: it stands for several.
    """
    if world.autoencoder.temporal_stride > 1:
        raise ConfigError(
            f"a latent of this world stands for {world.autoencoder.temporal_stride} frames; allowed here so far: "
            "worlds with one frame a latent. Look at it with: worldsim play"
        )


class Runner:
    """Predicts segments with a world, `batch` of them at a time.

    Args:
        world: what to run.
        sampler: how frames are sampled; None: as in the world's card.
        batch: sessions that are stepped together.
        seed: of the noise; segment i of a call has the session seed `seed + i`.
        runtime: what computes: "eager", or "auto" for what `worldsim tune` found fastest, or one by name.
    """

    def __init__(
        self,
        world: World,
        sampler: SamplerConfig | None = None,
        batch: int = 16,
        seed: int = 0,
        runtime: str = "eager",
    ) -> None:
        """Keep the parts; nothing is computed yet.

        Raises:
            ConfigError: a latent of the world stands for several frames.
        """
        check_single_frames(world)
        self.world, self.batch, self.seed = world, batch, seed
        if runtime == "eager":
            self.simulator, self.decode = Simulator.of(world, sampler), world.autoencoder.decode
        else:
            found = choose(world, runtime)
            settings = sampler or SamplerConfig.of(world.card.sampler)
            self.simulator = Simulator(found.dynamics, settings, found.stages)
            self.decode = found.stages.frames

    def free(
        self, segments: Segments, act: RolloutPolicy, frames: int | None = None, title: str = "free running"
    ) -> Tensor:
        """Predict `frames` (default N) frames after each context, free-running, uint8 (S, frames, H, W, 3)."""
        frames = segments.length if frames is None else frames
        drawn = torch.empty(len(segments), frames, *segments.frames.shape[2:], dtype=torch.uint8)
        for rows, n, last in self.stream(segments, act, frames, title):
            drawn[rows, n] = last
        return drawn

    def stream(
        self,
        segments: Segments,
        act: RolloutPolicy,
        frames: int,
        title: str = "free running",
        before: Callable[[State], None] | None = None,
    ) -> Iterator[tuple[list[int], int, Tensor]]:
        """Predict as `free` does, one step of a batch at a time, so that nothing needs to be stored.

        Args:
            segments: whose contexts are begun from.
            act: plays.
            frames: to draw in each session.
            title: of the progress bar.
            before: is called with the state before each step, and may change it.

        Yields:
            The rows of a batch, the number n of the frame from 0, and the frames, uint8 (rows, H, W, 3).
        """
        with tqdm(total=frames * self._batches(segments), desc=title, unit="step", leave=False, disable=None) as bar:
            for rows in self._rows(segments):
                state, last = self.warm_up(segments, rows), segments.frames[rows, segments.context - 1]
                for n in range(frames):
                    action, texts = act(rows, n, last)
                    state.prompts = self.prompts(texts)
                    if before is not None:
                        before(state)
                    last = self._draw(state, action)
                    yield rows, n, last
                    bar.update()

    def forced(self, segments: Segments, *actions: Tensor, title: str = "next frames") -> list[Tensor]:
        """Predict every next frame from the true frames before it, once for each of `actions` (S, N, action_size).

        Returns:
            uint8 (S, N, H, W, 3) for each of `actions`.
        """
        drawn = [torch.empty_like(segments.truth) for _ in actions]
        with tqdm(
            total=segments.length * self._batches(segments), desc=title, unit="step", leave=False, disable=None
        ) as bar:
            for rows in self._rows(segments):
                state = self.warm_up(segments, rows)
                for n in range(segments.length):
                    state.prompts = self.prompts(segments.prompts[row][segments.context + n] for row in rows)
                    for out, taken in zip(drawn, actions, strict=True):
                        out[rows, n] = self._draw(replace(state), taken[rows, n])  # of a fork
                    truth = self._encode(segments.truth[rows, n])
                    self.simulator.observe(state, truth, segments.taken[rows, n])
                    bar.update()
        return drawn

    def from_prompts(self, prompts: list[str], frames: int = 1, title: str = "starts from prompts") -> Tensor:
        """Start from prompts alone and continue without a key, uint8 (len(prompts), frames, H, W, 3)."""
        drawn, no_op = [], self._no_op()
        for rows in _chunks(tqdm(range(len(prompts)), desc=title, unit="start", leave=False, disable=None), self.batch):
            state = self.new_state(rows, (prompts[row] for row in rows))
            shown = [self._draw(state, None)]
            shown += [self._draw(state, no_op.expand(len(rows), -1)) for _ in range(frames - 1)]
            drawn.append(torch.stack(shown, dim=1))
        return torch.cat(drawn)

    def prompts(self, texts: Iterable[str]) -> list[Prompt]:
        """Encode prompts."""
        return [self.world.book.encode(text) for text in texts]

    def new_state(self, rows: list[int], texts: Iterable[str]) -> State:
        """Begin the sessions of some rows, which have seen nothing yet, under prompts."""
        return self.simulator.begin([self.seed + row for row in rows], self.prompts(texts))

    def warm_up(self, segments: Segments, rows: list[int]) -> State:
        """Begin sessions with the context of some segments."""
        texts = [segments.prompts[row] for row in rows]
        state = self.new_state(rows, (text[0] for text in texts))
        for t in range(segments.context):
            state.prompts = self.prompts(text[t] for text in texts)
            latents = self._encode(segments.frames[rows, t])
            self.simulator.observe(state, latents, segments.actions[rows, t - 1] if t else None)
        return state

    def _draw(self, state: State, action: Tensor | None) -> Tensor:
        """Step a state; return the frames."""
        return self.decode(self.simulator.step(state, action).latents).cpu()

    def _encode(self, frames: Tensor) -> Tensor:
        return self.world.autoencoder.encode(frames).to(self.simulator.device)

    def _no_op(self) -> Tensor:
        """Return the flattened action of no key, (1, action_size); zeros if the world does not name it."""
        size = self.world.dynamics.config.action_size
        if "" not in self.world.card.keys:
            return torch.zeros(1, size)
        return torch.from_numpy(self.world.codec.flatten(np.asarray([self.world.card.keys[""]])))

    def _rows(self, segments: Segments) -> Iterator[list[int]]:
        return _chunks(range(len(segments)), self.batch)

    def _batches(self, segments: Segments) -> int:
        return -(-len(segments) // self.batch)


def _chunks(items: Iterable[int], size: int) -> Iterator[list[int]]:
    chunk: list[int] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
