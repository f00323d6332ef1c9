"""Encodings of frames: raw, JPEG, and memory that host and client share. No torch."""

from __future__ import annotations

import mmap
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.errors import BridgeError, MissingDependency, ProtocolError

SLOTS = 4  # frames of a session in shared memory: the last one, and three that a client may still read
PREFIX = "worldsim-shm-"
MOST_FILES = 256  # open at a client before it closes those that were removed


def to_jpeg(frame: np.ndarray, quality: int) -> bytes:
    """Encode a frame as a JPEG file.

    Raises:
        ProtocolError: unsupported, where simplejpeg is not installed.
    """
    try:
        import simplejpeg
    except ImportError:
        raise ProtocolError(
            "unsupported", 'this host cannot encode JPEG; on it run: pip install "worldsim-engine[serve]".'
        ) from None
    return simplejpeg.encode_jpeg(np.ascontiguousarray(frame), quality=quality, colorspace="RGB")


def from_jpeg(data: bytes) -> np.ndarray:
    """Decode a JPEG file to uint8 (H, W, 3).

    Raises:
        MissingDependency: simplejpeg is not installed.
    """
    try:
        import simplejpeg
    except ImportError as error:
        raise MissingDependency("simplejpeg", "reading JPEG frames", "pip install simplejpeg") from error
    return simplejpeg.decode_jpeg(data, colorspace="RGB")


def can_jpeg() -> bool:
    """Say whether `to_jpeg` works here."""
    try:
        import simplejpeg  # noqa: F401
    except ImportError:
        return False
    return True


class SharedFolder:
    """Where a host's shared frames lie: files that only its own user can open.

    Attributes:
        path: the folder, in memory where the system has such a place.
        nonce: what the file `nonce` there says; a client that reads it shares the memory.
    """

    def __init__(self) -> None:
        """Make the folder, and remove those of hosts that have ended.

        Raises:
            OSError: there is no room for it.
        """
        root = (
            Path("/dev/shm") if sys.platform == "linux" and Path("/dev/shm").is_dir() else Path(tempfile.gettempdir())
        )
        for old in root.glob(f"{PREFIX}*"):
            number = old.name[len(PREFIX) :].split("-")[0]
            if number.isdigit() and not _alive(int(number)):
                shutil.rmtree(old, ignore_errors=True)
        self.path = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=root))
        self.nonce = secrets.token_hex(16)
        try:
            (self.path / "nonce").write_text(self.nonce)
        except OSError:
            self.close()
            raise

    def offer(self) -> dict[str, str]:
        """Describe the folder, as `hello` does."""
        return {"path": str(self.path / "nonce"), "nonce": self.nonce}

    def close(self) -> None:
        """Remove the folder; files that a client has open stay readable."""
        shutil.rmtree(self.path, ignore_errors=True)


class Ring:
    """A session's last frames in a shared file, each in the slot of its number; the file is not left open."""

    def __init__(self, folder: SharedFolder, shape: tuple[int, ...]) -> None:
        """Make the file.

        Raises:
            OSError: there is no room for all of it.
        """
        self.shape, self.size = shape, int(np.prod(shape))
        self.path = folder.path / secrets.token_hex(8)
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file, 0, self.size * SLOTS)  # now: without room, writing later would end the process
            else:
                os.ftruncate(file, self.size * SLOTS)
        except OSError:
            self.close()
            raise
        finally:
            os.close(file)

    def put(self, frame: np.ndarray, step: int) -> dict[str, Any]:
        """Write a frame; return its place, as a message describes it.

        Raises:
            OSError: no file can be opened.
        """
        offset = step % SLOTS * self.size
        file = os.open(self.path, os.O_WRONLY)
        try:
            os.pwrite(file, np.ascontiguousarray(frame).reshape(-1).data, offset)
        finally:
            os.close(file)
        return {"dtype": "uint8", "shape": list(self.shape), "path": str(self.path), "offset": offset}

    def close(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


class SharedReader:
    """A client's side: opens what a host offers, and reads frames."""

    def __init__(self) -> None:
        """Begin without open files."""
        self._files: dict[str, mmap.mmap] = {}

    @staticmethod
    def shares(offer: Any) -> bool:
        """Say whether this process can read the host's shared memory."""
        if not isinstance(offer, Mapping):
            return False
        try:
            return Path(offer["path"]).read_text() == offer["nonce"]
        except (OSError, KeyError, TypeError, ValueError):
            return False

    def read(self, about: Mapping[str, Any]) -> np.ndarray:
        """Read the frame at a place that a message describes: uint8, read-only, overwritten SLOTS frames later.

        Raises:
            BridgeError: it cannot be read.
        """
        try:
            path, offset, shape = str(about["path"]), int(about["offset"]), tuple(map(int, about["shape"]))
            if path not in self._files:
                if len(self._files) >= MOST_FILES:
                    self._files = {name: file for name, file in self._files.items() if os.path.exists(name)}
                with open(path, "rb") as file:
                    self._files[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            count = int(np.prod(shape))
            return np.frombuffer(self._files[path], np.uint8, count, offset).reshape(shape)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise BridgeError(f"the frame in shared memory cannot be read ({error}); ask for 'raw' frames.") from error

    def forget(self) -> None:
        """Close all files."""
        self._files.clear()


def _alive(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
