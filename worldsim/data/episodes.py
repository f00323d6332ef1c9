"""Recorded gameplay on disk: a folder with one safetensors file per episode.

    car-racing/
      dataset.json                    name, format_version, frame size, fps, action space, keys, provenance
      train/000000.safetensors        one episode: lossless uint8 frames and what happened between them
      heldout/000009.safetensors      never trained on; the split is fixed when recorded
      unseen/000048.safetensors       prompts that training never shows (where a game has them)

Time: `frames[0]` is what reset gave, `actions[t]` led from `frames[t]` to `frames[t + 1]`.
Safetensors, because a clip can be read without the rest of its file, nothing is unpickled and nothing is lossy.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from worldsim.data.card import DatasetCard
from worldsim.data.recipe import SPLITS
from worldsim.errors import DataError
from worldsim.files import replacing
from worldsim.spaces import actions_from_arrays, actions_to_arrays
from worldsim.untrusted import Untrusted, parse_json


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One recorded episode, or a clip of one, of T steps.

    `prompts` are the distinct prompts in force, each `{"text": str, **labels}`; `prompt_index` says which one is at
    each frame.
    """

    frames: np.ndarray  # uint8 (T + 1, H, W, 3)
    actions: Any  # (T, ...) or a dict of arrays: see spaces.ActionCodec.stack
    rewards: np.ndarray  # float32 (T,)
    terminated: np.ndarray  # bool (T,)
    truncated: np.ndarray  # bool (T,), by a time limit of the game or of the recorder
    prompt_index: np.ndarray  # int32 (T + 1,)
    prompts: list[dict[str, Any]]
    meta: dict[str, Any] = field(default_factory=dict)  # seed, split, ...

    def __len__(self) -> int:
        """Return the number of steps, one less than the number of frames."""
        return len(self.rewards)

    def texts(self) -> list[str]:
        """List the prompt in force at each frame."""
        return [self.prompts[i]["text"] for i in self.prompt_index]


def write_episode(path: Path, episode: Episode) -> None:
    """Write `episode` to `path` so that a reader sees all of it or nothing; equal episodes make equal files."""
    arrays = {name: getattr(episode, name) for name in ("frames", "rewards", "terminated", "truncated", "prompt_index")}
    arrays |= actions_to_arrays("actions", episode.actions)
    # One entry: safetensors writes several in an order that changes from run to run.
    metadata = {"episode": json.dumps({"prompts": episode.prompts, "meta": episode.meta}, sort_keys=True)}
    with replacing(path) as partial:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, partial, metadata=metadata)


def read_episode(path: Path, start: int = 0, stop: int | None = None) -> Episode:
    """Read steps `start` to `stop` (default: all) of an episode, hence `stop - start + 1` frames.

    Raises:
        DataError: the file is missing, damaged or not one of ours, or has no such steps.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            meta = parse_json((file.metadata() or {})["episode"])
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 -- not a dict
            steps = _check_layout(slices)
            _check_prompts(meta)
            stop = steps if stop is None else stop
            if not 0 <= start <= stop <= steps:
                raise DataError(f"episode {path} has no steps {start} to {stop}; allowed: within 0 to {steps}.")
            arrays = {}
            for name, part in slices.items():
                per_frame = name in ("frames", "prompt_index")
                arrays[name] = part[start : stop + per_frame]
            actions = actions_from_arrays("actions", arrays)
            return Episode(
                frames=arrays["frames"],
                actions=actions,
                rewards=arrays["rewards"],
                terminated=arrays["terminated"],
                truncated=arrays["truncated"],
                prompt_index=arrays["prompt_index"],
                prompts=meta["prompts"],
                meta=meta["meta"],
            )
    except DataError:
        raise
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(path, error) from error


def _check_layout(slices: dict[str, Any]) -> int:
    """Check the shapes that a file says its arrays have, before any is read; return the number of steps.

    Raises:
        Untrusted: they are not those of an episode.
    """
    shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
    for name, dims in {"frames": 4, "rewards": 1, "terminated": 1, "truncated": 1, "prompt_index": 1}.items():
        if len(shapes[name]) != dims:
            raise Untrusted(f"{name} have the shape {shapes[name]}; allowed: {dims} dimensions")
    (steps,), (_, height, width, channels) = shapes["rewards"], shapes["frames"]
    if slices["frames"].get_dtype() != "U8" or channels != 3 or not height * width:
        raise Untrusted(f"frames are {slices['frames'].get_dtype()} {shapes['frames']}; allowed: U8 (T, H, W, 3)")
    for name, shape in shapes.items():
        if shape[:1] != (steps + (name in ("frames", "prompt_index")),):
            raise Untrusted(f"{name} have the shape {shape} in an episode of {steps} steps")
    return steps


def _check_prompts(meta: dict[str, Any]) -> None:
    """Check what an episode says in words.

    Raises:
        Untrusted: it is not what an episode has.
    """
    prompts = meta["prompts"]
    if not isinstance(meta["meta"], dict) or not isinstance(prompts, list):
        raise Untrusted("its prompts are no list, or its meta is no dict")
    if not all(isinstance(prompt, dict) and isinstance(prompt.get("text"), str) for prompt in prompts):
        raise Untrusted("its prompts are no dicts with a text")


def count_steps(path: Path, frame_size: tuple[int, int] | None = None) -> int:
    """Read the length of an episode, without its arrays.

    Raises:
        DataError: the file is missing, damaged or not one of ours, or its frames have another size than this one.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 -- not a dict
            steps, shape = _check_layout(slices), tuple(slices["frames"].get_shape())
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise _unreadable(path, error) from error
    if frame_size is not None and shape[1:] != (*frame_size, 3):
        raise _unreadable(path, Untrusted(f"its frames are {shape[1:]}, those of the dataset {(*frame_size, 3)}"))
    return steps


class FrameTable:
    """The frames of some episodes, in order, read from disk on demand: they need not fit in memory."""

    def __init__(self, paths: Sequence[Path], frame_size: tuple[int, int] | None = None) -> None:
        """Count the frames, and check their size if one is given.

        Raises:
            DataError: there are no episodes, or one is damaged.
        """
        if not paths:
            raise DataError("no episodes to read frames from; record more of this split.")
        self.paths = list(paths)
        self.ends = np.cumsum([count_steps(path, frame_size) + 1 for path in self.paths])  # rows at which each is over

    def __len__(self) -> int:
        """Return the number of frames."""
        return int(self.ends[-1])

    def read(self, rows: Sequence[int] | np.ndarray) -> np.ndarray:
        """Read the frames `rows`, each in 0..len - 1, in this order, uint8 (N, H, W, 3).

        Raises:
            DataError: an episode is damaged.
        """
        rows = np.asarray(rows)
        episodes = np.searchsorted(self.ends, rows, side="right")
        found: list[np.ndarray] = [np.empty(0, np.uint8)] * len(rows)
        for episode in np.unique(episodes).tolist():
            first = int(self.ends[episode - 1]) if episode else 0
            try:
                with safe_open(self.paths[episode], framework="numpy") as file:
                    frames = file.get_slice("frames")
                    for place in np.flatnonzero(episodes == episode).tolist():
                        row = int(rows[place]) - first
                        found[place] = frames[row : row + 1][0]
            except (OSError, SafetensorError) as error:
                raise _unreadable(self.paths[episode], error) from error
        return np.stack(found)

    def evenly(self, count: int) -> np.ndarray:
        """Read about `count` frames, at equal distances, uint8 (N, H, W, 3)."""
        return self.read(np.arange(0, len(self), max(1, len(self) // count)))


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = f"{type(error).__name__}: {error}"
    return DataError(f"cannot read episode {path} ({reason}). Delete the file and run the recording again.")


class Dataset:
    """A folder of episodes.

    Attributes:
        card: the description, `dataset.json`.
        action_space: the recorded Gymnasium action space.
        frame_size: (height, width) of every frame.
    """

    def __init__(self, path: str | Path) -> None:
        """Open the dataset at `path`.

        Raises:
            DataError: no dataset there, not one of ours, or of another format version.
        """
        self.path = Path(path)
        self.card = DatasetCard.read(self.path)
        self.action_space: spaces.Space = self.card.space()
        self.frame_size = self.card.frame_size

    def episodes(self, split: str = "train") -> list[Path]:
        """List the episode files of a split, in the order of their numbers."""
        if split not in SPLITS:
            raise DataError(f"unknown split {split!r}; allowed: {', '.join(SPLITS)}.")
        return sorted((self.path / split).glob("*.safetensors"))

    def frames(self, split: str = "train") -> FrameTable:
        """Open the frames of a split, all of the dataset's size.

        Raises:
            DataError: the split is empty, or an episode is damaged.
        """
        if not (paths := self.episodes(split)):
            raise DataError(
                f"dataset {self.path} has no episodes in split {split!r}; record more, one episode in ten is held out."
            )
        return FrameTable(paths, self.frame_size)

    def read(self, split: str = "train", limit: int | None = None) -> list[Episode]:
        """Read all episodes of a split, or the first `limit`.

        Raises:
            DataError: the split is empty or an episode is damaged.
        """
        paths = self.episodes(split)[:limit]
        if not paths:
            raise DataError(f"dataset {self.path} has no episodes in split {split!r}; record more of it.")
        return [read_episode(path) for path in paths]
