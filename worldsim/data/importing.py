"""Import a dataset that was recorded elsewhere, completely or not at all."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.data.admission import check_episode, check_space
from worldsim.data.card import DatasetCard
from worldsim.data.episodes import Episode, write_episode
from worldsim.data.recipe import SPLITS
from worldsim.data.record import split_of
from worldsim.errors import DataError
from worldsim.files import locked


def make_card(
    *,
    name: str,
    frame_size: tuple[int, int],
    fps: float,
    space: spaces.Space,
    keys: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> DatasetCard:
    """Make the card of an imported dataset.

    Raises:
        ConfigError: `space` is of a kind that no dataset can have.
    """
    version = importlib.metadata.version("worldsim-engine")
    return DatasetCard(
        name=name,
        frame_size=frame_size,
        fps=fps,
        action_space=check_space(space),
        keys=dict(keys),
        provenance={**provenance, "packages": {"worldsim-engine": version}},
    )


class Importer:
    """Writes the episodes of a dataset, numbered in the order in which they come.

    Attributes:
        counts: episodes of each split so far.
    """

    def __init__(self, folder: Path, card: DatasetCard) -> None:
        """Write into `folder` the episodes of the dataset that `card` describes."""
        self.folder, self.space, self.frame_size = folder, card.space(), card.frame_size
        self.counts = dict.fromkeys(SPLITS, 0)

    def add(self, episode: Episode, index: int | None = None, split: str | None = None) -> None:
        """Write an episode (default: under the next number, and one in ten is held out).

        Raises:
            DataError: an unknown split, a number that is taken, or an episode that no dataset can have.
        """
        index = sum(self.counts.values()) if index is None else index
        split = split_of(index, unseen=False) if split is None else split
        if split not in SPLITS:
            raise DataError(f"episode {index} is of the split {split!r}; allowed: {', '.join(SPLITS)}.")
        path = self.folder / split / f"{index:06d}.safetensors"
        if path.exists():
            raise DataError(f"there are two episodes with the number {index} in the split {split!r}.")
        try:
            check_episode(episode, self.space, self.frame_size)
        except DataError as error:
            raise DataError(f"episode {index} cannot be imported: {error}") from error
        write_episode(path, dataclasses.replace(episode, meta={"index": index, "split": split, **episode.meta}))
        self.counts[split] += 1


@contextmanager
def importing(out: Path, card: DatasetCard) -> Iterator[Importer]:
    """Make the dataset `out` of the episodes that are added within; after an error it does not exist.

    Raises:
        DataError: `out` is there already, or no episode was added.
    """
    check_free(out)
    partial = out.with_name(out.name + ".partial")
    with locked(out.with_name(out.name + ".lock"), f"importing into {out}"):
        shutil.rmtree(partial, ignore_errors=True)  # of an import that was killed
        try:
            partial.mkdir(parents=True)
            importer = Importer(partial, card)
            yield importer
            if not sum(importer.counts.values()):
                raise DataError(f"there is no episode to import into {out}; an episode needs at least two frames.")
            card.write(partial)
            partial.replace(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def check_free(out: Path) -> None:
    """Refuse a path `out` that exists.

    Raises:
        DataError: something is.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is there already; choose another folder with --out, or remove it first.")


def ended(steps: int, terminated: bool) -> dict[str, np.ndarray]:
    """Make `terminated` and `truncated` of an episode that ends at the last of so many steps, in one of both ways."""
    last = np.arange(steps) == steps - 1
    return {"terminated": last & terminated, "truncated": last & (not terminated)}
