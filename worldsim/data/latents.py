"""A recording as one table of latents, so that training reads segments by index.

Frames of all episodes follow each other; row i holds a frame, the action that led to it, and its reward and flags. With
an autoencoder that has a stride r in time a row is a latent of r frames and has as many actions, rewards and ends.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from worldsim.data.admission import read_checked
from worldsim.data.chunks import chunks_of
from worldsim.data.episodes import Dataset
from worldsim.errors import DataError
from worldsim.files import replacing
from worldsim.models.autoencoder import Autoencoder, DiffusersAutoencoder
from worldsim.renamed import LATENTS, with_new_names
from worldsim.spaces import ActionCodec
from worldsim.untrusted import parse_json

SOME = 4000  # frames that stand for a recording


@dataclass
class LatentData:
    """N latents of a recording, each of a frame, or of r frames.

    Attributes:
        latents: fp16 (N, C, h, w).
        actions: flattened, the one that led to each frame; zeros for the first of an episode; (N, action_size).
        known: whether there was one, (N,), or (N, r).
        rewards: (N,), or (N, r).
        terminated: (N,), or (N, r).
        mortal: whether the episode could end there: 0 in rests that the recorder protected (`data.policy.Rest`), (N,).
        event_onset: whether an event begins with the frame (label "event"; in games without it, whether the prompt
            changes), (N,).
        prompt: index into `prompts`, (N,).
        first: row of the first frame of the same episode, (N,).
        last: row of the last frame of the same episode, (N,).
        prompts: the distinct prompts, the empty one first.
    """

    latents: Tensor
    actions: Tensor
    known: Tensor
    rewards: Tensor
    terminated: Tensor
    mortal: Tensor
    event_onset: Tensor
    prompt: Tensor
    first: Tensor
    last: Tensor
    prompts: list[str]

    def __post_init__(self) -> None:
        """Nothing has been sampled yet."""
        self._still: Tensor | None = None  # for how many frames each picture has not changed
        self._fits: dict[tuple[int, int, int], tuple[Tensor, Tensor | None]] = {}  # places to begin, and sums of odds

    @staticmethod
    def encode(dataset: Dataset, split: str, autoencoder: Autoencoder, limit: int | None = None) -> LatentData:
        """Encode the episodes of a split.

        Raises:
            DataError: the split is empty, or an episode has what cannot be trained on.
        """
        paths = dataset.episodes(split)[:limit]
        if not paths:
            raise DataError(f"dataset {dataset.path} has no episodes in split {split!r}; record more of it.")
        places: dict[str, int] = {"": 0}
        columns: dict[str, list[Tensor]] = {name: [] for name in ("latents", "actions", "known", "rewards")}
        columns |= {name: [] for name in ("terminated", "mortal", "event_onset", "prompt", "first", "last")}
        offset = 0
        for path in tqdm(paths, desc=f"encoding {split}", unit="episode"):
            episode = read_checked(path, dataset)
            actions = torch.from_numpy(ActionCodec(dataset.action_space).flatten(episode.actions))
            chunks = chunks_of(episode, actions, autoencoder.temporal_stride)
            rows = len(chunks.last)
            # Contiguous, as a file gives them: kernels differ in their last bits by how channels lie in memory.
            columns["latents"].append(autoencoder.encode_clip(chunks.frames).half().cpu().contiguous())
            for name in ("actions", "known", "rewards", "terminated"):
                columns[name].append(getattr(chunks, name))
            columns["mortal"].append(torch.full((rows,), 0.0 if episode.meta.get("protected") else 1.0))
            begins = _event_onset([episode.prompts[i] for i in episode.prompt_index]).cumsum(0)[chunks.last]
            columns["event_onset"].append(begins.diff(prepend=begins.new_zeros(1)).clamp(max=1))
            texts = episode.texts()
            columns["prompt"].append(torch.tensor([places.setdefault(texts[i], len(places)) for i in chunks.last]))
            columns["first"].append(torch.full((rows,), offset))
            columns["last"].append(torch.full((rows,), offset + rows - 1))
            offset += rows
        return LatentData(**{name: torch.cat(parts) for name, parts in columns.items()}, prompts=list(places))

    @staticmethod
    def join(parts: list[LatentData]) -> LatentData:
        """Join several recordings of one game, in this order."""
        if len(parts) == 1:
            return parts[0]
        prompts = list(dict.fromkeys(text for part in parts for text in part.prompts))
        places = {text: index for index, text in enumerate(prompts)}
        columns: dict[str, list[Tensor]] = {field.name: [] for field in fields(LatentData) if field.name != "prompts"}
        offset = 0
        for part in parts:
            own = torch.tensor([places[text] for text in part.prompts])
            moved = {"prompt": own[part.prompt], "first": part.first + offset, "last": part.last + offset}
            for name, column in columns.items():
                column.append(moved[name] if name in moved else getattr(part, name))
            offset += len(part.latents)
        return LatentData(**{name: torch.cat(column) for name, column in columns.items()}, prompts=prompts)

    @staticmethod
    def cached(dataset: Dataset, split: str, autoencoder: DiffusersAutoencoder) -> LatentData:
        """Return the result of `encode`, stored in the dataset's folder: encoding takes minutes.

        Raises:
            DataError: the split is empty.
        """
        digest = hashlib.sha256(autoencoder.fingerprint().encode())
        for path in dataset.episodes(split):
            about = path.stat()
            digest.update(f"{path.name} {about.st_size} {about.st_mtime_ns};".encode())
        path = dataset.path / "latents" / f"{split}.safetensors"
        data = _read(path, digest.hexdigest())
        if data is None:
            data = LatentData.encode(dataset, split, autoencoder)
            names = [field.name for field in fields(LatentData) if field.name != "prompts"]
            with replacing(path) as partial:
                save_file(
                    {name: getattr(data, name).contiguous() for name in names},
                    partial,
                    metadata={"of": digest.hexdigest(), "prompts": json.dumps(data.prompts)},
                )
        return data

    def is_whole(self) -> bool:
        """Say whether every latent has its row in all columns, numbers are finite, and rows that are named exist."""
        rows = len(self.latents)
        columns = [getattr(self, field.name) for field in fields(LatentData) if field.name != "prompts"]
        own = torch.arange(rows)
        return (
            rows > 0
            and self.latents.dim() == 4
            and all(len(column) == rows for column in columns)
            and all(bool(column.isfinite().all()) for column in columns if column.is_floating_point())
            and bool(((self.first >= 0) & (self.first <= own) & (self.last >= own) & (self.last < rows)).all())
            and bool(((self.prompt >= 0) & (self.prompt < len(self.prompts))).all())
            and all(isinstance(text, str) for text in self.prompts)
        )

    @property
    def stride(self) -> int:
        """How many frames a latent stands for, r."""
        return self.rewards[0].numel()

    def any_frame(self, values: Tensor) -> Tensor:
        """Whether something, 0 or 1, holds in any frame of each latent: (N,), or (N, r), to (N,)."""
        return values if values.dim() == 1 else values.amax(dim=1)

    def some_frames(self) -> Tensor:
        """Return some thousand frames at equal distances, (N', C, h, w)."""
        return self.latents[:: max(1, len(self.latents) // SOME)].float()

    def sample_starts(
        self, rows: int, frames: int, generator: torch.Generator, before: int = 0, odds: Tensor | None = None
    ) -> Tensor:
        """Sample rows (rows,) that `frames` frames follow and `before` frames precede in the same episode.

        `odds` (N,) says how often each row is to be taken, of what a plain sample would.

        Raises:
            DataError: no episode is long enough.
        """
        key = (frames, before, id(odds))
        if key not in self._fits:
            fits = self.check_length(frames, before)
            self._fits[key] = fits, None if odds is None else odds[fits].double().cumsum(0)
        fits, sums = self._fits[key]
        if sums is None:
            return fits[torch.randint(len(fits), (rows,), generator=generator)]
        places = torch.rand(rows, generator=generator, dtype=torch.double) * sums[-1]
        return fits[torch.searchsorted(sums, places).clamp(max=len(fits) - 1)]

    def check_length(self, frames: int, before: int) -> Tensor:
        """Find all rows (R,) that `frames` frames follow and `before` frames precede in the same episode.

        Raises:
            DataError: there are none.
        """
        index = torch.arange(len(self.first))
        fits = torch.nonzero((self.last - index + 1 >= frames) & (index - self.first >= before))[:, 0]
        if not len(fits):
            frames = 1 + (before + frames - 1) * self.stride
            raise DataError(f"no episode has {frames} frames in a row; record longer episodes.")
        return fits

    def sample_rests(self, rows: int, frames: int, generator: torch.Generator, before: int = 0) -> Tensor:
        """Sample rows (R,) at which the picture stands still for `frames` frames, after `before` frames of the episode.

        R is `rows`, or 0 where it never does.
        """
        index = torch.arange(len(self.first))
        found = torch.nonzero(self.rests(index, frames) & (index - self.first >= before))[:, 0]
        return found[torch.randint(max(len(found), 1), (rows if len(found) else 0,), generator=generator)]

    def rests(self, starts: Tensor, frames: int) -> Tensor:
        """Say at which of `starts` (R,) the picture stands still for `frames` frames, bool (R,)."""
        if self._still is None:
            self._still = _still(self.latents, self.first)
        start, last = (rows.clamp(max=len(self.first) - 1) for rows in (starts, starts + frames - 1))
        return (self._still[start] > 0) & (self._still[last] == self._still[start] + frames - 1)

    def sample_around(self, happened: Tensor, rows: int, frames: int, generator: torch.Generator) -> Tensor:
        """Sample rows (R,) whose next `frames` frames include one, at any place, that `happened`, (N,).

        What follows may be of another episode. R is `rows`, or 0 where it never happened.
        """
        moments = torch.nonzero(happened)[:, 0]
        if not len(moments):
            return moments
        moments = moments[torch.randint(len(moments), (rows,), generator=generator)]
        before = torch.randint(frames, (rows,), generator=generator)  # frames of the window before that one
        starts = torch.maximum(moments - before, self.first[moments])
        return starts.clamp(max=len(self.first) - frames)


def _still(latents: Tensor, first: Tensor) -> Tensor:
    """Count the frames in a row in which nothing at all has changed in the same episode, at each frame, (N,)."""
    rows = torch.arange(len(latents))
    same = torch.cat([(a == b).flatten(1).all(dim=1) for a, b in _neighbours(latents)])
    same = torch.cat([torch.zeros(1, dtype=torch.bool), same]) & (rows > first)
    return rows - torch.where(same, 0, rows).cummax(dim=0).values


def _neighbours(latents: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each frame but the last with the one after it, some thousand at a time."""
    return zip(latents[:-1].split(4096), latents[1:].split(4096), strict=True)


def _event_onset(prompts: list[dict[str, Any]]) -> Tensor:
    """Find the frames of an episode at which an event begins, (T,), by the prompts in force at each."""
    onset = [
        now["event"] not in ("", was.get("event", "")) if "event" in now else now["text"] != was["text"]
        for was, now in pairwise(prompts)
    ]
    return torch.tensor([False, *onset]).float()


def _read(path: Path, digest: str) -> LatentData | None:
    """Read the latents stored at `path`; None if there are none of this digest."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if about.get("of") != digest:
                return None
            columns = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  -- no mapping
            data = LatentData(**with_new_names(columns, LATENTS), prompts=parse_json(about["prompts"], list))
            return data if data.is_whole() else None
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None
