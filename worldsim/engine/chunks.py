"""Play where a latent stands for r frames: a step of play is one frame, a step of the model r of them.

The actions of r steps are collected, then the latent that they lead to is drawn, and its frames are shown one at each
step. So what a step shows is r - 1 steps old: the first action of a chunk is seen in the frame of r - 1 steps later,
and for its first r - 1 steps a session shows the frame that it began with. An end ends an episode when it is shown.
Legend: a numbers of a flattened action, r frames of a latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from worldsim.engine.session import Chunk, Session
from worldsim.models.config import DiTConfig


def latents_of(step: int, stride: int) -> int:
    """How many latents a session of so many frames has; the first latent is one frame."""
    return step if stride == 1 or step == 0 else 1 + (step - 1) // stride


def step_after(step: int, stride: int) -> int:
    """How many frames a session has after one more latent."""
    return 1 if step == 0 else step + stride


def empty(config: DiTConfig, frame_size: tuple[int, int]) -> Chunk:
    """No action is taken and no frame is drawn."""
    action = config.action_size // config.frames_per_latent
    return Chunk(torch.zeros(0, action), np.zeros((0, *frame_size, 3), np.uint8), torch.zeros(0), torch.zeros(0))


def take(session: Session, action: Tensor) -> Session:
    """The session with one more action (a,)."""
    chunk = _chunk(session)
    return replace(session, chunk=replace(chunk, actions=torch.cat([chunk.actions, action.cpu().unsqueeze(0)])))


def due(sessions: Mapping[int, Session], stride: int) -> dict[int, Tensor]:
    """The actions (r a,) of the sessions that have as many as a latent needs, by number."""
    found = {number: _chunk(session).actions for number, session in sessions.items()}
    return {number: actions.flatten() for number, actions in found.items() if len(actions) == stride}


def drawn(session: Session, frames: np.ndarray, rewards: Tensor, ended: Tensor) -> Session:
    """The session with frames uint8 (r, H, W, 3) to show, their rewards (r,) and probabilities of an end (r,)."""
    chunk = _chunk(session)
    return replace(session, chunk=Chunk(chunk.actions[:0], frames, rewards.float().cpu(), ended.float().cpu()))


def show(session: Session) -> Session:
    """The session one step later: with the next frame that is drawn, or where there is none with the one it shows."""
    chunk = _chunk(session)
    if not len(chunk.frames):
        return replace(session, step=session.step + 1, reward=0.0, ended=0.0)
    rest = Chunk(chunk.actions, chunk.frames[1:], chunk.rewards[1:], chunk.ended[1:])
    reward, ended = float(chunk.rewards[0]), float(chunk.ended[0])
    return replace(session, step=session.step + 1, frame=chunk.frames[0].copy(), reward=reward, ended=ended, chunk=rest)


def _chunk(session: Session) -> Chunk:
    if session.chunk is None:
        raise RuntimeError("this session is of a world whose latents stand for one frame each.")
    return session.chunk
