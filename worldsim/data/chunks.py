"""The steps of an episode in chunks of r, one for each latent of an autoencoder with a stride in time.

Legend: S steps, n chunks, r steps of a chunk, a numbers of a flattened action.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from worldsim.data.episodes import Episode


@dataclass(frozen=True)
class Chunks:
    """The first frame of an episode and its steps, a row for each latent.

    With r = 1 the rows of `known`, `rewards` and `terminated` are numbers, (1 + n,).

    Attributes:
        frames: uint8 (1 + n r, H, W, 3).
        actions: those that lead to the frames of a latent, one after the other, (1 + n, r a); zeros for the first.
        known: which frames were recorded and have an action, (1 + n, r).
        rewards: (1 + n, r).
        terminated: (1 + n, r).
        last: the frame of the episode that each row ends with, (1 + n,).
    """

    frames: Tensor
    actions: Tensor
    known: Tensor
    rewards: Tensor
    terminated: Tensor
    last: Tensor


def chunks_of(episode: Episode, actions: Tensor, stride: int) -> Chunks:
    """Cut an episode into chunks.

    Steps that fill no chunk at the end are left out; but where the episode terminates in them, the chunk is filled with
    the last frame, as the end must be seen. What fills it counts for no reward and no end.

    Args:
        episode: of S steps.
        actions: of these, flattened, (S, a).
        stride: r.
    """
    steps = len(episode)
    short = -steps % stride
    filled = short if short and bool(episode.terminated[-1]) else 0
    recorded = steps if filled else steps - steps % stride

    def rows(values: Tensor) -> Tensor:
        """Values of the steps (S, ...) to those of the rows (1 + n, r, ...), zeros in the first and where filled."""
        shape = values.shape[1:]
        whole = torch.cat([values.new_zeros(stride, *shape), values[:recorded], values.new_zeros(filled, *shape)])
        return whole.unflatten(0, (-1, stride))

    def numbers(values: Tensor) -> Tensor:
        return rows(values)[:, 0] if stride == 1 else rows(values)

    frames = torch.from_numpy(episode.frames[: recorded + 1])
    return Chunks(
        frames=torch.cat([frames, frames[-1:].expand(filled, *frames.shape[1:])]) if filled else frames,
        actions=rows(actions).flatten(1),
        known=numbers(torch.ones(steps)),
        rewards=numbers(torch.from_numpy(episode.rewards.astype(np.float32))),
        terminated=numbers(torch.from_numpy(episode.terminated).float()),
        last=torch.arange(0, recorded + filled + 1, stride).clamp(max=steps),
    )
