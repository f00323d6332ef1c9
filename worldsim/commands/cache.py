"""The verb of the cache folder: cache."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from worldsim.commands.parsing import parse


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """What to remove of the cache folder; without an option it is only listed."""

    clear: Literal["runtimes", "hosts", "all"] | None = None
    """Remove what `worldsim tune` measured and built (runtimes), the checkpoints of hosts that were stopped (hosts), or
    both: what is needed is made again, but sessions of a host cannot be resumed without its checkpoints."""
    older_than_days: float = 0.0
    """Only what has not been written for so many days."""


def cache(args: Sequence[str]) -> None:
    """List what the cache folder has, with sizes and ages, or clear it.

    Example: worldsim cache --clear runtimes --older-than-days 30
    The folder is ~/.cache/worldsim, or what WORLDSIM_CACHE says.
    """
    from worldsim.engine.tuning import cache_folder

    config = parse(CacheConfig, "cache", args, cache.__doc__)
    folder = cache_folder()
    found = list_cache(folder)
    print(f"{folder}: {len(found)} entries, {sum(entry.size for entry in found) / 1e6:.1f} MB")
    for entry in found:
        wanted = config.clear in (entry.path.parent.name, "all") and entry.days >= config.older_than_days
        if wanted:
            _remove(entry.path)
        print(
            f"{'removed ' if wanted else ''}{entry.path.relative_to(folder)}  {entry.size / 1e6:.1f} MB, "
            f"{entry.days:.1f} days old"
        )


@dataclass(frozen=True)
class Entry:
    """One thing in the cache: a world's runtimes, or the checkpoints of a host."""

    path: Path
    size: int  # bytes
    days: float  # since it was written last


def list_cache(folder: Path) -> list[Entry]:
    """List what lies in the folders of the cache folder, the oldest first."""
    entries = []
    for part in ("runtimes", "hosts"):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            for path in (folder / part).iterdir():
                files = [file.lstat() for file in (path, *path.rglob("*"))]
                days = (time.time() - max(about.st_mtime for about in files)) / 86400
                entries.append(Entry(path, sum(about.st_size for about in files), max(0.0, days)))
    return sorted(entries, key=lambda entry: (-entry.days, entry.path))


def _remove(path: Path) -> None:
    """Remove a file or a folder; a link is removed, and what it leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
