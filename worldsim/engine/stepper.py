"""What sessions become: first frames, clips, the next frame. No session is changed here.

Legend: B sessions.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Generator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.engine.kv_blocks import Change
from worldsim.engine.session import Session, Snapshot
from worldsim.engine.simulator import ModelOutput, Simulator, State
from worldsim.engine.starts import ResolvedSpec
from worldsim.engine.table import SessionTable
from worldsim.models.autoencoder import Autoencoder
from worldsim.types import Prompt

DECODE_CONTEXT = 4  # latents before a new one that its frames are decoded with, where it stands for several


class Stepper:
    """Computes for the sessions of a table.

    Args:
        simulator: steps them.
        table: where their memory is.
        autoencoder: encodes given frames.
        clips: of so many of the last clips that sessions began from the memory is stored.
    """

    def __init__(self, simulator: Simulator, table: SessionTable, autoencoder: Autoencoder, clips: int) -> None:
        """Keep the parts."""
        self.simulator, self.table, self.autoencoder, self.clips = simulator, table, autoencoder, clips
        self._kept: OrderedDict[tuple[str, Prompt], Snapshot] = OrderedDict()

    def step(
        self, sessions: list[Session], actions: Tensor, decode: bool
    ) -> tuple[State, ModelOutput, np.ndarray | None]:
        """The next latents of some sessions under flattened actions (B, action_size), decoded if asked for.

        Decoded are frames uint8 (B, H, W, 3), or (B, r, H, W, 3) where a latent stands for r of them.
        """
        state = self.table.gather(sessions)
        state.push(actions)
        outcome = self.simulator.draw(state)
        if self.table.stride > 1:
            return (
                state,
                outcome,
                np.stack([self._chunk(*pair) for pair in zip(sessions, outcome.latents, strict=True)]),
            )
        return state, outcome, self._decoded(outcome) if decode else None

    def observe(self, session: Session, action: Tensor, frame: np.ndarray, change: Change) -> Session:
        """A session after a given frame, which an action (action_size,) led to."""
        state = self.table.gather([session])
        state.push(action[None])
        latents = self.autoencoder.encode(torch.from_numpy(frame[None].copy()))
        return self.table.advance(session, 0, state, self.simulator.take(state, latents), frame.copy(), change)

    def begin(self, specs: list[ResolvedSpec], change: Change) -> Generator[None, None, list[Session]]:
        """Sessions that begin, from their prompts or clips; pauses after each pass."""
        from_prompt = [spec for spec in specs if spec.start is None]
        drawn = iter((yield from self._first(from_prompt, change)) if from_prompt else [])
        sessions = []
        for spec in specs:
            if spec.start is None:
                sessions.append(next(drawn))
                continue
            clip = yield from self._clip(spec)
            change.acquire(clip.blocks)  # before another clip takes its place
            sessions.append(replace(clip, seed=spec.seed, text=spec.text, guidance=self._guidance(spec)))
        return sessions

    def _first(self, specs: list[ResolvedSpec], change: Change) -> Generator[None, None, list[Session]]:
        """Sessions whose first frame is sampled from their prompt."""
        begun = [self.table.new_session(o.seed, o.text, self._guidance(o)) for o in specs]
        state = self.table.gather(begun)
        state.push(None)
        outcome = yield from self.simulator.drawing(state, first=True)
        frames: Any = self._decoded(outcome)
        return [
            self.table.advance(old, row, state, outcome, frames[row].copy(), change) for row, old in enumerate(begun)
        ]

    def _clip(self, spec: ResolvedSpec) -> Generator[None, None, Session]:
        """A session that has seen a clip; the last few are stored, as all that begin so can share its memory.

        Pauses after each frame of the clip. Its blocks are those of what is stored.
        """
        assert isinstance(spec.start, Mapping)  # as `starts.complete` makes it
        frames, actions, prompt = spec.start["frames"], spec.start["actions"], spec.text
        digest = hashlib.blake2b(frames.tobytes(), digest_size=16)
        digest.update(actions.numpy().tobytes())
        key = (digest.hexdigest(), prompt)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key].session
        stride, latents = self.table.stride, None
        if stride > 1:
            latents = self.autoencoder.encode_clip(torch.from_numpy(frames)).split(1)
            frames, actions = frames[::stride], actions.unflatten(0, (-1, stride)).flatten(1)
        session = self.table.new_session(0, prompt, 1.0)
        with self.table.pool.change() as change:
            for i, frame in enumerate(frames):
                if i:
                    yield
                # One by one, as `observe` encodes them: kernels may differ in their last bits by how many there are.
                latent = self.autoencoder.encode(torch.from_numpy(frame[None])) if latents is None else latents[i]
                state = self.table.gather([session])
                state.push(None if i == 0 else actions[i - 1 : i].to(self.simulator.device))
                outcome, before = self.simulator.take(state, latent), session
                session = self.table.advance(session, 0, state, outcome, frame.copy(), change)
                change.release(before.blocks)
            self._give_up(key)  # somebody may have begun from the same clip meanwhile
            self._kept[key] = Snapshot(session, self.table.belongs, self.table.pool, None)
            change.give_back()  # the snapshot holds them now
        while len(self._kept) > self.clips:
            self._give_up(next(iter(self._kept)))
        return session

    def drop_clips(self) -> None:
        """Give up the memory of clips, which can be had again."""
        for key in list(self._kept):
            self._give_up(key)

    def _give_up(self, key: tuple[str, Prompt]) -> None:
        if key in self._kept:
            self._kept.pop(key).close()

    def _guidance(self, spec: ResolvedSpec) -> float:
        """The guidance of a session that begins, the sampler's where it has none of its own."""
        return self.simulator.sampler.guidance if spec.guidance is None else spec.guidance

    def _chunk(self, session: Session, latent: Tensor) -> np.ndarray:
        """The frames (r, H, W, 3) of a latent (C, h, w) that a session goes on with."""
        # Each by itself, as sessions have as many latents before it as they are old.
        clip = torch.cat([self.table.latents(session, DECODE_CONTEXT), latent.unsqueeze(0)])
        return self.simulator.stages.frames(clip.unsqueeze(0))[0, -self.table.stride :].cpu().numpy()

    def _decoded(self, outcome: ModelOutput) -> np.ndarray:
        return self.simulator.stages.frames(outcome.latents).cpu().numpy()
