"""The open sessions and their memory: who is there, who may come, what each remembers. Nothing is computed here.

Legend: B sessions, N frames remembered, K history frames.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.diffusion.noise import keys_of
from worldsim.engine import chunks
from worldsim.engine.kv_blocks import NOTHING, Change, KVBlockPool
from worldsim.engine.session import Memory, Session, Snapshot
from worldsim.engine.simulator import ModelOutput, State
from worldsim.errors import ConfigError, EngineFull, SessionError, SnapshotMismatch
from worldsim.models.dit import DiTConfig
from worldsim.models.kv_cache import KVCache
from worldsim.types import Prompt

RECORD_BYTES = 4096  # of a session besides its blocks and its frame


class SessionTable:
    """Sessions by number; numbers are never used again.

    Args:
        config: the model's shape.
        frame_size: (height, width).
        dtype: of keys and values.
        device: where memory lies.
        memory_mb: for sessions and their snapshots.
        max_sessions: at most so many, besides what memory allows.
        belongs: what a snapshot of these sessions can be restored into.
        make_room: is called when something does not fit, to give up what can be had again.

    Attributes:
        open: the sessions.
        need: blocks of a full session.
        stride: frames that a latent stands for.

    Raises:
        ConfigError: not even one session fits.
    """

    def __init__(
        self,
        config: DiTConfig,
        frame_size: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        memory_mb: int,
        max_sessions: int | None,
        belongs: dict[str, Any],
        make_room: Callable[[], None],
    ) -> None:
        """Reserve the memory."""
        self.config, self.frame_size, self.max_sessions = config, frame_size, max_sessions
        self.belongs, self.make_room = belongs, make_room
        self.need, self.stride = max(config.context, config.history, 1), config.frames_per_latent
        self.block_bytes = KVBlockPool(config, 0, dtype, device).block_bytes
        self.blocks = int(memory_mb * 1e6 / self.block_bytes)
        if self.blocks < self.need + 1:
            raise ConfigError(
                f"memory_mb is {memory_mb}, which holds {self.blocks} frames; a session needs {self.need + 1}: at "
                f"least {1 + int((self.need + 1) * self.block_bytes / 1e6)}."
            )
        self.pool = KVBlockPool(config, self.blocks, dtype, device, make_room)
        self.open: dict[int, Session] = {}
        self._coming = 0  # sessions that are about to be
        self._last = 0

    @property
    def session_bytes(self) -> int:
        """What a session takes that shares nothing; one block more than it has, for the moment it gets a new one."""
        height, width = self.frame_size
        frames = self.stride  # the one that is shown, and those of a chunk that follow
        return (self.need + 1) * self.block_bytes + 3 * frames * height * width + RECORD_BYTES

    @property
    def capacity(self) -> int:
        """How many sessions there can be, beside the snapshots that are held now."""
        room = (self.blocks - self.pool.reserved) // (self.need + 1)
        return room if self.max_sessions is None else min(room, self.max_sessions)

    @property
    def _expected(self) -> int:
        """Sessions that are open, and those that are about to be."""
        return len(self.open) + self._coming

    def admit(self, count: int) -> None:
        """Make sure that `count` more sessions fit.

        Raises:
            EngineFull: they do not.
        """
        if self._expected + count > self.capacity:
            self.make_room()
        if self._expected + count > self.capacity:
            limit = f", max_sessions {self.max_sessions}" if self.max_sessions else ""
            raise EngineFull(
                f"no room for {count} more session(s): {len(self.open)} are open"
                f"{f', {self._coming} about to be' if self._coming else ''} and the engine holds {self.capacity} "
                f"({self.session_bytes / 1e6:.2f} MB each of {self.blocks * self.block_bytes / 1e6:.0f} MB, "
                f"{self.pool.reserved * self.block_bytes / 1e6:.0f} MB of it held by snapshots{limit}). Close "
                "sessions, or give the engine more."
            )

    @contextlib.contextmanager
    def coming(self, count: int) -> Iterator[None]:
        """Have room for `count` more sessions until they are added, whoever else comes meanwhile.

        Raises:
            EngineFull: they do not fit.
        """
        self.admit(count)
        self._coming += count
        try:
            yield
        finally:
            self._coming -= count

    def add(self, sessions: Sequence[Session]) -> list[int]:
        """Take in admitted sessions, whose blocks are held for them, and return their numbers."""
        new = dict(enumerate(sessions, self._last + 1))
        self._last += len(new)
        self.open.update(new)
        return list(new)

    def replace(self, new: Mapping[int, Session]) -> None:
        """Let sessions become others, all at once: these have blocks of their own, or the very same ones."""
        before = [(self.open[number], session) for number, session in new.items()]
        self.open.update(new)
        for old, session in before:
            if old.blocks is not session.blocks:
                self.pool.release(old.blocks)

    def get(self, number: int) -> Session:
        """The session of that number.

        Raises:
            SessionError: it is not open.
        """
        if number not in self.open:
            kind = "was closed" if isinstance(number, int) and 0 < number <= self._last else "never was"
            raise SessionError(f"session {number!r} {kind}; open ones: {sorted(self.open)[:20]}.")
        return self.open[number]

    def remove(self, number: int) -> None:
        """End a session."""
        blocks = self.get(number).blocks
        del self.open[number]
        self.pool.release(blocks)

    def fork(self, number: int, seed: int | None) -> int:
        """Fork a session; the two share all blocks."""
        source = self.get(number)
        self.admit(1)
        self.pool.acquire(source.blocks)
        return self.add([source if seed is None else replace(source, seed=seed)])[0]

    def snapshot(self, number: int) -> Snapshot:
        """A session as it is now; its blocks are held until the snapshot is closed.

        Raises:
            EngineFull: the open sessions could then run out of blocks.
        """
        session, count = self.get(number), self._expected
        for last in (False, True):
            reserved = self.pool.reserved + self.pool.would_reserve(session.blocks)
            if (self.blocks - reserved) // (self.need + 1) >= count:
                break
            if last:
                raise EngineFull(
                    f"no room for one more snapshot: {count} sessions may need "
                    f"{count * (self.need + 1)} of {self.blocks} memory blocks, and snapshots hold "
                    f"{self.pool.reserved}. Close snapshots or sessions, or give the engine more memory_mb."
                )
            self.make_room()
        return Snapshot(session, self.belongs, self.pool, None)

    def copy(self, number: int) -> Snapshot:
        """A session as it is now, sharing nothing with it."""
        shared = Snapshot(self.get(number), self.belongs, self.pool, None)
        free = Snapshot(shared.session, self.belongs, None, shared.memory)
        shared.close()
        return free

    def restore(self, snapshot: Snapshot, encode: Callable[[str], Prompt], number: int | None, exact: bool) -> int:
        """A session, or a new one, as a snapshot says; `encode` gives prompts of files, which have only their text."""
        old = None if number is None else self.get(number)
        if snapshot.closed:
            raise SnapshotMismatch("this snapshot was closed; take or load another one.")
        for name, own in self.belongs.items():
            theirs = snapshot.belongs.get(name)
            if theirs != own and (exact or name != "runtime"):
                hint = " Pass exact=False to go on with other last bits." if name == "runtime" else ""
                raise SnapshotMismatch(f"the snapshot is of the {name} {theirs!r}, the engine's is {own!r}.{hint}")
        memory = None if snapshot.pool is self.pool else snapshot.memory  # blocks can be shared within a pool
        self._check(snapshot.session, memory)
        prompt = snapshot.session.text
        if prompt.states.shape[1] == 0:
            prompt = encode(prompt.text)
        if old is None:
            self.admit(1)
        actions, known = (part.to(self.pool.keys.device) for part in (snapshot.session.actions, snapshot.session.known))
        restored = replace(snapshot.session, text=prompt, actions=actions, known=known)
        if memory is None:
            self.pool.acquire(restored.blocks)
            if number is None:
                return self.add([restored])[0]
            self.replace({number: replace(restored, blocks=(*restored.blocks,))})
            return number
        if number is None or old is None:
            with self.pool.change() as change:
                blocks = self._store(memory, change)
            return self.add([replace(restored, blocks=blocks)])[0]
        # Memory is there for what a session may need, not for two: the old blocks are given up first. From here on
        # nothing fails, as shapes and room were looked at.
        self.pool.release(old.blocks)
        blocks = self._store(memory, Change(self.pool))
        self.open[number] = replace(restored, blocks=blocks)
        return number

    def _check(self, session: Session, memory: Memory | None) -> None:
        """Check the shapes of a snapshot's parts, which may be of a stranger's file.

        Raises:
            SnapshotMismatch: they are another model's.
        """
        config, chunk = self.config, session.chunk
        if not isinstance(session.step, int) or session.step < 1:
            raise SnapshotMismatch(f"the snapshot's step is {session.step!r}; allowed: a whole number from 1.")
        empty = self.new_session(0, session.text, 1.0)
        wanted: dict[str, tuple[int, ...]] = {"actions": empty.actions.shape, "known": empty.known.shape}
        found: dict[str, tuple[int, ...]] = {"actions": session.actions.shape, "known": session.known.shape}
        wanted["frame"], found["frame"] = empty.frame.shape, session.frame.shape
        if memory is not None:
            count = min(chunks.latents_of(session.step, self.stride), self.need)
            for name, part in (("keys", self.pool.keys), ("values", self.pool.values), ("latents", self.pool.latents)):
                wanted[name], found[name] = (count, *part.shape[1:]), getattr(memory, name).shape
        if (chunk is None) != (self.stride == 1):
            raise SnapshotMismatch(f"the snapshot is of a world with other frames a latent than {self.stride}.")
        if chunk is not None:
            taken, shown = min(len(chunk.actions), self.stride - 1), min(len(chunk.frames), self.stride - 1)
            wanted["chunk.actions"] = (taken, config.action_size // self.stride)
            wanted |= {"chunk.frames": (shown, *empty.frame.shape), "chunk.rewards": (shown,), "chunk.ended": (shown,)}
            found |= {f"chunk.{name}": part.shape for name, part in vars(chunk).items()}
        wrong = {name: tuple(shape) for name, shape in found.items() if tuple(shape) != tuple(wanted[name])}
        if wrong:
            raise SnapshotMismatch(f"the snapshot has parts of the shapes {wrong}; this world's are {wanted}.")
        frames = [session.frame, *([chunk.frames] if chunk is not None else [])]
        if any(part.dtype != np.uint8 for part in frames):
            raise SnapshotMismatch("the snapshot has frames that are not uint8.")
        parts = [session.actions, session.known, *([] if memory is None else vars(memory).values())]
        parts += [] if chunk is None else [chunk.actions, chunk.rewards, chunk.ended]
        if not all(part.is_floating_point() and part.isfinite().all() for part in parts):
            raise SnapshotMismatch("the snapshot has numbers that are not finite, or integers in their place.")

    def _store(self, memory: Memory, change: Change) -> tuple[int, ...]:
        blocks = [change.allocate() for _ in memory.keys]
        for block, *parts in zip(blocks, memory.keys, memory.values, memory.latents, strict=True):
            self.pool.write(block, *parts)
        return (*[NOTHING] * (self.need - len(blocks)), *blocks)

    def gather(self, sessions: list[Session]) -> State:
        """The state of some sessions, from their blocks."""
        batch, device = len(sessions), self.pool.keys.device
        blocks = torch.tensor([session.blocks for session in sessions], device=device)  # (B, need)
        past = blocks[:, self.need - self.config.context :].flatten()
        seen = blocks[:, self.need - max(self.config.history, 1) :].flatten()
        step = torch.tensor([chunks.latents_of(session.step, self.stride) for session in sessions])
        return State(
            history=self.pool.latents.index_select(0, seen).unflatten(0, (batch, -1)),
            actions=torch.stack([session.actions for session in sessions]),
            known=torch.stack([session.known for session in sessions]),
            step=step,
            cache=KVCache(
                self.pool.keys.index_select(0, past).unflatten(0, (batch, -1)),
                self.pool.values.index_select(0, past).unflatten(0, (batch, -1)),
                step,
            ),
            keys=keys_of([session.seed for session in sessions]),
            prompts=[session.text for session in sessions],
            guidance=[session.guidance for session in sessions],
        )

    def latents(self, session: Session, most: int) -> Tensor:
        """The last latents of a session, at most so many, oldest first, (n, C, h, w)."""
        return self.pool.latents[[block for block in session.blocks if block != NOTHING][-most:]]

    def advance(
        self, old: Session, row: int, state: State, outcome: ModelOutput, frames: np.ndarray, change: Change
    ) -> Session:
        """A session after the latent in `row` of an outcome, with blocks of its own; the old one keeps its.

        Args:
            old: the session before.
            row: its row.
            state: that the outcome was drawn from.
            outcome: of a step.
            frames: the latent's frame, uint8 (H, W, 3), which the session shows; or its r frames (r, H, W, 3), which it
                shows later.
            change: takes the blocks.
        """
        block = change.allocate()
        change.acquire(old.blocks[1:])
        self.pool.write(block, outcome.keys[row], outcome.values[row], outcome.latents[row])
        new = replace(
            old,
            blocks=(*old.blocks[1:], block),
            actions=state.actions[row].clone(),
            known=state.known[row].clone(),
        )
        reward, ended = outcome.reward[row], outcome.ended[row]
        if frames.ndim == 4:
            return chunks.drawn(new, frames, reward, ended)
        if self.stride > 1:  # a first frame, or a given one: heads say nothing of these
            return replace(new, step=chunks.step_after(old.step, self.stride), frame=frames, reward=0.0, ended=0.0)
        return replace(new, step=old.step + 1, frame=frames, reward=float(reward), ended=float(ended))

    def new_session(self, seed: int, prompt: Prompt, guidance: float) -> Session:
        """A session that has no frame yet."""
        config, device = self.config, self.pool.keys.device
        actions = torch.zeros(config.action_history, config.action_size, device=device)
        nothing = np.zeros((*self.frame_size, 3), np.uint8)
        chunk = chunks.empty(config, self.frame_size) if self.stride > 1 else None
        blocks = (NOTHING,) * self.need
        known = torch.zeros_like(actions[:, 0])
        return Session(seed, 0, prompt, guidance, blocks, actions, known, nothing, chunk=chunk)
