"""Many sessions of one world in shared forward passes, each as if it were alone.

The contract (docs/engine.md says what it means and where it ends): the same seed, prompts and actions give the same
frames, bit for bit, whatever else is in the batch; a fork costs the same at any age and shares memory until it differs;
a session too many is refused and changes nothing for the others. A call that fails leaves all sessions as they were.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from worldsim.diffusion.sampler import SamplerConfig
from worldsim.engine import chunks
from worldsim.engine.batch_invariance.sizes import Sizes
from worldsim.engine.batching import batching_for, check_buckets
from worldsim.engine.kv_blocks import Change
from worldsim.engine.records import SessionSpec, StepResult
from worldsim.engine.runtimes import Runtime
from worldsim.engine.session import Session, Snapshot
from worldsim.engine.simulator import ModelOutput, Simulator, State
from worldsim.engine.starts import check_seed, complete
from worldsim.engine.stats import Stats
from worldsim.engine.stepper import Stepper
from worldsim.engine.table import SessionTable
from worldsim.engine.tuning import choose
from worldsim.errors import ConfigError, FrameError, InputError
from worldsim.threads import OwnThreads, at_once, on_own_thread
from worldsim.world import World

CLIPS = 32  # clips to begin from whose memory is stored


class Engine:
    """Sessions of one world.

    Args:
        world: what is played.
        sampler: how frames are drawn (default: what the world's card says).
        runtime: "auto" is the fastest that `tune` found on this machine, or eager where it was not run; or one by name.
        threads: CPU cores to use; each works on sessions of its own (default: all).
        exact: whether a session's bits are the same alone and among others. False is faster where kernels differ, see
            `worldsim bench engine`.
        isolated: draw every session by itself: the same bits by construction, not by trying, at the speed of one.
        buckets: numbers of rows that batches are filled up to (default: batches of sizes that a trial found exact,
            without padding). With one, such as (8,), every pass has that shape, and sessions keep their bits without
            a trial. Several, such as (1, 4, 16), are faster for few sessions, and keep the bits only while a session
            stays within one bucket. Each thread computes whole buckets, so that a batch that fits one uses one
            thread; the number of threads changes no bits with one bucket. `isolated=True` and `exact=False` say
            something else about batches and are refused beside it.
        max_sessions: at most so many, besides what memory allows.
        memory_mb: for the sessions and their snapshots.
        clips: of so many of the last clips that sessions began from the memory is stored.

    Attributes:
        sessions: the open ones, by number; numbers are never used again.
        runtime: what computes.
        exact: whether a session's bits are the same alone and among others; not with several buckets.

    Raises:
        ConfigError: a setting that cannot work.
        RuntimeUnavailable: this machine cannot build the runtime.
    """

    def __init__(
        self,
        world: World,
        *,
        sampler: SamplerConfig | None = None,
        runtime: str = "auto",
        threads: int | None = None,
        exact: bool = True,
        isolated: bool = False,
        buckets: tuple[int, ...] | list[int] | None = None,
        max_sessions: int | None = None,
        memory_mb: int = 1024,
        clips: int = CLIPS,
    ) -> None:
        """Build the runtime and reserve the memory."""
        self.threads = os.cpu_count() or 1 if threads is None else threads
        if self.threads < 1 or (max_sessions is not None and max_sessions < 1):
            raise ConfigError(f"threads is {threads} and max_sessions {max_sessions}; both must be at least 1.")
        buckets = check_buckets(buckets, exact=exact, isolated=isolated)
        self.own = OwnThreads(self.threads)
        self.world, self.isolated = world, isolated
        self.exact = exact and (buckets is None or len(buckets) == 1)
        self.sampler = sampler or SamplerConfig.of(world.card.sampler)
        self.counts = Stats()
        self._build(runtime, exact, buckets, max_sessions, memory_mb, clips)

    @on_own_thread
    def _build(
        self,
        runtime: str,
        exact: bool,
        buckets: tuple[int, ...] | None,
        max_sessions: int | None,
        memory_mb: int,
        clips: int,
    ) -> None:
        world = self.world
        self.runtime: Runtime = choose(world, runtime)
        self.batching = batching_for(self.runtime, exact=exact, isolated=self.isolated, buckets=buckets)
        stages = self.batching.wrap(self.runtime.stages)
        self.simulator = Simulator(self.runtime.dynamics, self.sampler, stages)
        identity = "/".join(filter(None, (self.runtime.identity, self.batching.identity)))
        self.table = SessionTable(
            self.runtime.dynamics.config,
            world.card.frame_size,
            self.runtime.dtype,
            self.simulator.device,
            memory_mb,
            max_sessions,
            {"world": world.fingerprint(), "name": world.card.name, "runtime": identity},
            lambda: self.stepper.drop_clips(),
        )
        self.stepper = Stepper(self.simulator, self.table, self.runtime.autoencoder, clips)
        self.sessions = self.table.open

    @property
    def context_frames(self) -> int:
        """How many of the last frames of a clip have an effect on a session that begins from it."""
        config = self.simulator.dynamics.config
        return 1 + max(config.context + config.history - 1, 0) * config.frames_per_latent

    # Sessions come and go.

    def open(
        self,
        *,
        seed: int = 0,
        prompt: str | None = None,
        start: int | Mapping[str, Any] | None = None,
        guidance: float | None = None,
    ) -> int:
        """Begin a session and return its number; its first frame is in `sessions`.

        Args:
            seed: of its noise.
            prompt: words for the frames from now on (default: those of the start, or the world's first).
            start: a clip to go on from, {"frames": uint8 (T, H, W, 3), "actions": the T - 1 actions between them}; or
                the number of one that the world carries; or None, which draws the first frame from the prompt, and
                takes one of the world's clips, by the seed, where there is no prompt either.
            guidance: on the prompt (default: the sampler's).

        Raises:
            EngineFull: there is no room for it.
            InputError: the start does not fit the world.
            PromptError: the world cannot take the prompt.
        """
        return self.open_all([SessionSpec(seed=seed, prompt=prompt, start=start, guidance=guidance)])[0]

    @on_own_thread
    def open_all(self, specs: Sequence[SessionSpec]) -> list[int]:
        """Begin several sessions, all or none; see `open`."""
        return at_once(self._begin(specs))

    def open_in_pieces(self, specs: Sequence[SessionSpec]) -> Generator[None, None, list[int]]:
        """Begin several sessions as `open_all` does, and pause after each pass: others can be stepped meanwhile."""
        return self.own.pieces(self._begin(specs))

    def _begin(self, specs: Sequence[SessionSpec]) -> Generator[None, None, list[int]]:
        resolved = []
        for spec in specs:
            resolved.append(complete(spec, self.world, self.context_frames))
            yield
        with self.table.coming(len(resolved)), self.table.pool.change() as change:
            return self.table.add((yield from self.stepper.begin(resolved, change)))

    @on_own_thread
    def close(self, session: int | None = None) -> None:
        """End a session, or all of them and the engine's threads.

        Raises:
            SessionError: there is no such session.
        """
        if session is not None:
            self.table.remove(session)
            return
        for number in list(self.sessions):
            self.table.remove(number)
        self.stepper.drop_clips()
        self.own.close()

    @on_own_thread
    def fork(self, session: int, seed: int | None = None) -> int:
        """Fork a session; the two share memory until they differ.

        Args:
            session: which.
            seed: None goes on with the same noise: under the same actions both draw the same frames.

        Raises:
            SessionError: there is no such session.
            EngineFull: there is no room for one more.
        """
        return self.table.fork(session, None if seed is None else check_seed(seed))

    @on_own_thread
    def snapshot(self, session: int, *, share: bool = True) -> Snapshot:
        """A session as it is now, to restore or to save.

        Args:
            session: which.
            share: its memory, at no cost; False copies it, outside of the engine's memory.

        Raises:
            SessionError: there is no such session.
            EngineFull: the memory of snapshots and that of the open sessions would not fit.
        """
        return self.table.snapshot(session) if share else self.table.copy(session)

    @on_own_thread
    def restore(self, snapshot: Snapshot, session: int | None = None, *, exact: bool = True) -> int:
        """Go back to a snapshot.

        Args:
            snapshot: of this world; taken from this engine or another one, or loaded from a file.
            session: which session goes back; None opens one.
            exact: refuse a snapshot of another runtime, under which the frames to come would differ in their last bits.

        Returns:
            The session's number.

        Raises:
            SnapshotMismatch: it is of another world or runtime, or was closed.
            SessionError: there is no such session.
            EngineFull: there is no room for one more.
            PromptError, WorldError, MissingDependency: it is from a file, and its prompt cannot be encoded.
        """
        return self.table.restore(snapshot, self.world.book.encode, session, exact)

    @on_own_thread
    def set_prompt(self, session: int, prompt: str) -> None:
        """Condition a session's frames from now on on `prompt`.

        Raises:
            SessionError: there is no such session.
            PromptError: the world cannot take the prompt.
        """
        found = self.table.get(session)
        self.sessions[session] = replace(found, text=self.world.book.encode(prompt))

    # Time passes.

    @on_own_thread
    def step(self, actions: Mapping[int, Any]) -> dict[int, StepResult]:
        """Draw the next frame of some sessions, each under its action.

        Raises:
            SessionError: there is no such session.
            ActionError: an action is outside the world's action space.
        """
        return self._step({number: self._flatten(number, action) for number, action in actions.items()}, True)

    @on_own_thread
    def observe(self, session: int, action: Any, frame: np.ndarray) -> StepResult:
        """Take a given frame as a session's next one, as if it had been drawn: a world that follows a real game.

        Args:
            session: which.
            action: that led to the frame.
            frame: uint8 (H, W, 3).

        Returns:
            The frame again, with the reward and the end that the world reads from it.

        Raises:
            SessionError: there is no such session.
            ActionError: the action is outside the world's action space.
            FrameError: the frame has another size or dtype.
            InputError: a latent of this world stands for several frames.
        """
        if self.table.stride > 1:
            raise InputError(
                f"observe was called in a world whose latents stand for {self.table.stride} frames each, which cannot "
                "take single frames; begin a session from a clip instead: open(start={'frames': ..., 'actions': ...})."
            )
        height, width = self.world.card.frame_size
        if frame.dtype != np.uint8 or frame.shape != (height, width, 3):
            raise FrameError(
                f"the frame has shape {frame.shape} and dtype {frame.dtype}; allowed: uint8 ({height}, {width}, 3). "
                "Resize it with worldsim.data.frames.resize_frame."
            )
        flat = self._flatten(session, action)
        with self.table.pool.change() as change:
            new = self.stepper.observe(self.sessions[session], flat, frame, change)
        self.table.replace({session: new})
        return new.as_step(frame.copy())

    def check(self, session: int, action: Any) -> None:
        """Raise what `step` would raise for this session and action.

        Raises:
            SessionError, ActionError: as in `step`.
        """
        self._flatten(session, action)

    @on_own_thread
    def play(
        self, actions: Mapping[int, Sequence[Any]], frames: Literal["all", "last"] = "all"
    ) -> dict[int, list[StepResult]]:
        """Draw several frames of some sessions, as many of each as it has actions: a planner's look ahead.

        Args:
            actions: for each session its next ones.
            frames: "last" decodes only the last frame of each session; the others show the frame before all again.
                Where a latent stands for several frames, all are decoded and shown.

        Raises:
            SessionError, ActionError: as in `step`; before anything is drawn.
        """
        flat = {number: [self._flatten(number, a) for a in chunk] for number, chunk in actions.items()}
        steps: dict[int, list[StepResult]] = {number: [] for number in flat}
        for turn in range(max(map(len, flat.values()), default=0)):
            now = {number: chunk[turn] for number, chunk in flat.items() if turn < len(chunk)}
            shown = {number for number in now if frames == "all" or turn + 1 == len(flat[number])}
            for wanted in (True, False):
                part = {number: action for number, action in now.items() if (number in shown) == wanted}
                for number, step in self._step(part, wanted).items():
                    steps[number].append(step)
        return steps

    @on_own_thread
    def stats(self) -> dict[str, Any]:
        """Sessions, bytes, latencies and batches; `engine.stats.prometheus` makes a page of it."""
        table = self.table
        return {
            "sessions": len(self.sessions),
            "capacity": table.capacity,
            "session_bytes": table.session_bytes,
            "memory_bytes": table.pool.used * table.block_bytes,
            "memory_budget_bytes": table.blocks * table.block_bytes,
            "pinned_bytes": table.pool.reserved * table.block_bytes,
            "runtime": self.runtime.name,
            "exact": self.exact,
            "threads": self.threads,
            **self.counts.read(),
        }

    @property
    @on_own_thread
    def sizes(self) -> Sizes:
        """The numbers of rows that passes have, for each stage by name."""
        return self.batching.sizes

    # How it is done.

    def _step(self, actions: dict[int, Tensor], decode: bool) -> dict[int, StepResult]:
        sessions = {number: self.sessions[number] for number in actions}
        with self.table.pool.change() as change:
            if self.table.stride == 1:
                new = self._draw(sessions, actions, decode, change)
            else:
                new = {number: chunks.take(session, actions[number]) for number, session in sessions.items()}
                due = chunks.due(new, self.table.stride)
                new |= self._draw({number: new[number] for number in due}, due, True, change)
                new = {number: chunks.show(session) for number, session in new.items()}
            results = {number: session.as_step(session.frame.copy()) for number, session in new.items()}
        self.table.replace(new)  # nothing has changed up to here
        return results

    def _draw(
        self, before: dict[int, Session], actions: dict[int, Tensor], decode: bool, change: Change
    ) -> dict[int, Session]:
        """What sessions become with their next latents; the blocks of these are taken by `change`."""
        if not actions:
            return {}
        begun, numbers = time.perf_counter(), list(actions)
        sizes = self.batching.split(len(numbers), self.threads)
        ends = np.cumsum(sizes).tolist()
        groups = [numbers[end - size : end] for end, size in zip(ends, sizes, strict=True)]

        def draw(group: list[int]) -> tuple[State, ModelOutput, np.ndarray | None]:
            sessions, flat = [before[number] for number in group], [actions[number] for number in group]
            return self.stepper.step(sessions, torch.stack(flat), decode)

        new = {}
        for group, (state, outcome, frames) in zip(groups, self.own.map(draw, groups), strict=True):
            for row, number in enumerate(group):
                frame = before[number].frame if frames is None else frames[row].copy()
                new[number] = self.table.advance(before[number], row, state, outcome, frame, change)
        self.counts.note(time.perf_counter() - begun, sizes, self.table.stride)
        return new

    def _flatten(self, number: int, action: Any) -> Tensor:
        self.table.get(number)
        codec = self.world.codec
        return torch.from_numpy(codec.flatten(codec.check(action))).to(self.simulator.device)
