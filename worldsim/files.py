"""Writes files so that a full disk, a crash or a second process leaves no half of one behind.

Whatever library writes, what the system refuses is an OSError that names the file; the command line makes one line of
it (`explain`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from worldsim.errors import DataError

HINTS = {
    errno.ENOSPC: "Free some space, then run the same command again.",
    errno.EDQUOT: "Free some space, then run the same command again.",
    errno.EROFS: "Choose a folder that can be written.",
    errno.EACCES: "Choose a folder that can be written, or change its permissions.",
    errno.EPERM: "Choose a folder that can be written, or change its permissions.",
    errno.EMFILE: "Allow more open files (ulimit -n), or do less at once.",
    errno.ENFILE: "Allow more open files, or do less at once.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
}


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Write a file all at once: yield a path beside it, which takes its place at the end of the `with` block.

    After an error there is no such file beside it, and `path` is as before.

    Raises:
        OSError: the system refuses, whichever library has written; its `filename` is `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    try:
        with system_errors(path):
            yield partial
            partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Write a folder all at once: yield a new one beside it, which takes its place at the end of the `with` block.

    Raises:
        OSError: the system refuses; its `filename` is within `path`.
    """
    partial, before = (path.with_name(f"{path.name}.{word}") for word in ("partial", "before"))
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed
    if before.exists() and not path.exists():
        before.replace(path)
    shutil.rmtree(before, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        with system_errors(path):
            yield partial
            if path.exists():
                path.replace(before)
            partial.replace(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


@contextlib.contextmanager
def system_errors(path: Path) -> Iterator[None]:
    """Turn what the system refuses within the `with` block into an OSError that names `path`.

    Libraries in other languages say it in words only.

    Raises:
        OSError: the system refused.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:  # safetensors: "... (os error 28)"; torch and pyarrow: "..., errno 28" and such
        found = re.search(r"(?:os error|errno:?) (\d+)", str(error))
        before = error.__context__  # torch raises anew what a file that is open has raised
        number = int(found[1]) if found else before.errno if isinstance(before, OSError) else None
        if number is None and re.search(r"PytorchStreamWriter|unexpected pos|file write failed", str(error)):
            number = errno.ENOSPC if _is_full(path.parent) else errno.EIO
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _is_full(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < 16 * 2**20
    return False


@contextlib.contextmanager
def locked(path: Path, what: str) -> Iterator[None]:
    """Keep other processes out of what the lock file `path` stands for, until the end of the `with` block.

    The system lets go of the lock of a process that dies. A file system without locks keeps nobody out.

    Args:
        path: of the lock file, which is removed at the end.
        what: is done here, for the error of the others: "recording into data/doom".

    Raises:
        DataError: another process has the lock.
        OSError: the file cannot be made.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows, where an open file cannot be removed: that is a lock as well
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise DataError(
                f"another process is {what}; wait until it is done, or choose another folder with --out."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                file.close()
                raise
        with contextlib.suppress(OSError):
            if os.fstat(file.fileno()).st_ino == path.stat().st_ino:
                break
        file.close()  # whoever had it has removed it
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        file.close()


def explain(error: OSError) -> str:
    """Say in one line what the system refused, with which file, and what to do."""
    reason = error.strerror or str(error) or type(error).__name__
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    place = f"{' -> '.join(names)}: " if names else ""
    hint = HINTS.get(error.errno or 0, "")
    return f"{place}{reason}.{' ' if hint else ''}{hint}"
