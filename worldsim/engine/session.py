"""One session's record, and its snapshot in memory or on disk."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from worldsim.diffusion import noise
from worldsim.diffusion.sampler import RANGES
from worldsim.engine.kv_blocks import NOTHING, KVBlockPool
from worldsim.engine.records import StepResult
from worldsim.errors import SnapshotDamaged, SnapshotMismatch
from worldsim.types import Prompt
from worldsim.untrusted import bounded, parse_json, short

FORMAT = "worldsim-snapshot"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Chunk:
    """Where a session is between two latents, each of which stands for r frames; see `engine.chunks`.

    Attributes:
        actions: taken since the last latent, flattened, (n, a) with n < r.
        frames: drawn and not shown yet, uint8 (m, H, W, 3).
        rewards: of these, (m,).
        ended: probabilities that the episode ended with them, (m,).
    """

    actions: Tensor
    frames: np.ndarray
    rewards: Tensor
    ended: Tensor


@dataclass(frozen=True)
class Session:
    """All that a session is; a step makes a new one. What it remembers of frames lies in the pool.

    Attributes:
        seed: of its noise.
        step: how many frames it has.
        text: the prompt in force for the next frame.
        guidance: on the prompt.
        blocks: of the last frames, oldest first, `NOTHING` where there was none.
        actions: the last flattened actions, oldest first, (A, action_size).
        known: which of them exist, (A,).
        frame: the last frame, uint8 (H, W, 3).
        reward: of the last frame.
        ended: probability that the episode ended with it.
        chunk: what there is besides where a latent stands for several frames.
    """

    seed: int
    step: int
    text: Prompt
    guidance: float
    blocks: tuple[int, ...]
    actions: Tensor
    known: Tensor
    frame: np.ndarray
    reward: float = 0.0
    ended: float = 0.0
    chunk: Chunk | None = None

    @property
    def prompt(self) -> str:
        """The prompt in force for the next frame, as it was typed."""
        return self.text.text

    @property
    def terminated(self) -> bool:
        """Whether the episode ended with the last frame, see `noise.ends`."""
        if self.ended < noise.NEVER:  # as nearly always: this spares the forty operations on one number
            return False
        return bool(noise.ends(torch.tensor(self.ended), noise.keys_of([self.seed]), torch.tensor([self.step])))

    def as_step(self, frame: np.ndarray) -> StepResult:
        """What the last step gave, with a frame of its own."""
        return StepResult(frame, self.reward, self.ended, self.step, self.terminated)


@dataclass(frozen=True)
class Memory:
    """What blocks hold, oldest first: keys and values (n, L, P, H, E), latents (n, C, h, w)."""

    keys: Tensor
    values: Tensor
    latents: Tensor


@dataclass(frozen=True, kw_only=True)
class _Fields:
    """What the file of a snapshot says of its session, besides tensors; seeds have at most 64 bits."""

    seed: int
    step: Annotated[int, bounded(1, 2**53)]
    prompt: Annotated[str, short(100_000)]
    guidance: Annotated[float, bounded(*RANGES["guidance"])]
    reward: float
    ended: Annotated[float, bounded(0, 1)]


@dataclass(frozen=True, kw_only=True)
class _About:
    """What the file says besides tensors."""

    belongs: dict[str, str]
    session: _Fields


class Snapshot:
    """A session as it was. Taken from an engine it shares the session's blocks; loaded from a file it is free of any.

    Close it, or drop it, when it is no longer needed: it holds memory of the engine.
    """

    def __init__(
        self, session: Session, belongs: dict[str, Any], pool: KVBlockPool | None, memory: Memory | None
    ) -> None:
        """Made by `Engine.snapshot` and `Snapshot.load`; `belongs` says what it can be restored into."""
        self.session, self.belongs, self.pool, self._memory = session, belongs, pool, memory
        self._release = None
        if pool is not None:
            pool.reserve(session.blocks)
            self._release = weakref.finalize(self, pool.unreserve, session.blocks)

    def close(self) -> None:
        """Give the memory back; may be called again."""
        if self._release is not None:
            self._release()
        self._memory = None

    @property
    def closed(self) -> bool:
        """Whether it can no longer be restored."""
        return self._memory is None and (self._release is None or not self._release.alive)

    @property
    def memory(self) -> Memory:
        """A copy of what the session remembers.

        Raises:
            SnapshotMismatch: it was closed.
        """
        if self.closed:
            raise SnapshotMismatch("this snapshot was closed; take or load another one.")
        if self._memory is not None:
            return self._memory
        assert self.pool is not None
        index = torch.tensor([block for block in self.session.blocks if block != NOTHING], dtype=torch.long)
        return Memory(*(part[index].cpu() for part in (self.pool.keys, self.pool.values, self.pool.latents)))

    def save(self, path: str | Path) -> None:
        """Write it to a file, tensors as safetensors and the rest as JSON in their header."""
        session, path = self.session, Path(path)
        tensors = {f.name: getattr(self.memory, f.name).contiguous() for f in dataclasses.fields(Memory)}
        tensors |= {name: getattr(session, name).cpu().contiguous() for name in ("actions", "known")}
        tensors["frame"] = torch.from_numpy(session.frame.copy())
        if session.chunk is not None:
            parts = vars(session.chunk) | {"frames": torch.from_numpy(session.chunk.frames)}
            tensors |= {f"chunk.{name}": part.contiguous() for name, part in parts.items()}
        names = ("seed", "step", "prompt", "guidance", "reward", "ended")
        about = {"belongs": self.belongs, "session": {name: getattr(session, name) for name in names}}
        text = json.dumps(about, sort_keys=True)
        header = {"format": FORMAT, "version": str(FORMAT_VERSION), "about": text, "digest": _digest(text, tensors)}
        part = path.with_name(f"{path.name}.{os.getpid()}.part")
        try:
            save_file(tensors, part, metadata=header)
            os.replace(part, path)  # a reader sees the old file or the new one
        finally:
            part.unlink(missing_ok=True)

    @staticmethod
    def load(path: str | Path) -> Snapshot:
        """Read a file that `save` wrote. It has the prompt's text alone: `Engine.restore` encodes it.

        Raises:
            SnapshotMismatch: not a snapshot, or of another format version.
            SnapshotDamaged: it is not whole.
        """
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT:
                    raise SnapshotMismatch(f"{path} is not a snapshot of a session.")
                if header.get("version") != str(FORMAT_VERSION):
                    raise SnapshotMismatch(
                        f"snapshot {path} has the format version {header.get('version')!r}; this worldsim reads "
                        f"{FORMAT_VERSION}. Restore it with the worldsim version that wrote it."
                    )
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  -- no mapping
            if _digest(header["about"], tensors) != header["digest"]:
                raise SnapshotDamaged(f"snapshot {path} has changed since it was written; use another copy.")
            about = parse_json(header["about"], _About)
            memory = Memory(*(tensors.pop(field.name) for field in dataclasses.fields(Memory)))
            parts = {name: tensors.pop(name) for name in list(tensors) if name.startswith("chunk.")}
            between: dict[str, Any] = {name.removeprefix("chunk."): part for name, part in parts.items()}
            chunk = Chunk(**between | {"frames": between["frames"].numpy()}) if between else None
            frame = tensors.pop("frame").numpy()
            fields = dict(vars(about.session))
            text = Prompt(fields.pop("prompt"), torch.zeros(0, 0))
            session = Session(text=text, **fields, blocks=(), frame=frame, chunk=chunk, **tensors)
            return Snapshot(session, about.belongs, None, memory)
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, (SnapshotMismatch, SnapshotDamaged)):
                raise
            raise SnapshotDamaged(f"snapshot {path} cannot be read ({error}); use another copy.") from error


def _digest(text: str, tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(text.encode(), digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
