"""Reads what may be a stranger's: JSON, safetensors and npz from disk. Nothing is allocated before its size is known.

A world, a snapshot, a checkpoint and a recording are data. What they say of themselves is checked against a dataclass
whose fields have bounds (`Annotated[int, bounded(1, 64)]`), names never become paths, and nothing is unpickled.
What is wrong raises `Untrusted`, a ValueError; each loader says in its own words what to do about it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, TypeVar, get_type_hints

import msgspec
import numpy as np

from worldsim.errors import printable

T = TypeVar("T")
# Of a world or a dataset: it goes into names of folders.
NAME = re.compile(r"[^/\\\x00-\x1f\x7f.][^/\\\x00-\x1f\x7f]{0,127}")
MOST_JSON = 64 * 2**20  # bytes of a JSON file
MOST_DEPTH = 64  # of JSON within JSON
MOST_NPZ = 512 * 2**20  # bytes that an npz may unpack to
MOST_HEADER = 100 * 2**20  # bytes of a safetensors header, as that library has it


class Untrusted(ValueError):
    """A file that is not what it should be, or says that it is larger than anything of its kind."""


def bounded(least: float, most: float) -> msgspec.Meta:
    """Bounds of a number, both included, for `Annotated`."""
    return msgspec.Meta(ge=least, le=most)


def short(most: int = 256) -> msgspec.Meta:
    """Bound of the length of a text or a list, for `Annotated`."""
    return msgspec.Meta(max_length=most)


def read_json(path: Path, kind: type[T] = dict, *, most: int = MOST_JSON) -> T:
    """Read a JSON file.

    Args:
        path: of the file; a byte order mark is passed over.
        kind: what it must be: a type, or a dataclass with bounds.
        most: bytes that it may have.

    Raises:
        OSError: there is no such file.
        Untrusted: it is too large, no JSON, or not of that kind.
    """
    size = path.stat().st_size
    if size > most:
        raise Untrusted(f"it has {size} bytes; allowed: {most}")
    return parse_json(path.read_bytes(), kind)


def parse_json(data: bytes | str, kind: type[T] = dict) -> T:
    """Parse JSON; see `read_json`.

    Raises:
        Untrusted: it is no JSON, or not of that kind.
    """
    data = data.encode() if isinstance(data, str) else data.removeprefix(b"\xef\xbb\xbf")
    try:
        return convert(msgspec.json.decode(data), kind)
    except RecursionError:
        raise Untrusted("its JSON is nested too deeply") from None
    except msgspec.DecodeError as error:
        raise Untrusted(f"it is no JSON: {error}") from None


def convert(data: Any, kind: type[T]) -> T:
    """Convert plain data into a type, or a dataclass with bounds; a field that it does not have is refused.

    Raises:
        Untrusted: it is not of that kind.
    """
    _check_names(data, kind)
    try:
        found = msgspec.convert(data, kind)
    except msgspec.ValidationError as error:
        raise Untrusted(printable(str(error))) from None
    except RecursionError:
        raise Untrusted("it is nested too deeply") from None
    check_finite(data)
    return found


_hints = functools.cache(get_type_hints)


def _check_names(data: Any, kind: Any) -> None:
    if not (dataclasses.is_dataclass(kind) and isinstance(data, Mapping)):
        return
    known = _hints(kind)
    for name, value in data.items():
        if name not in known:
            raise Untrusted(f"it has a field {printable(str(name), 64)!r}, which is not known")
        _check_names(value, known[name])


def check_finite(data: Any, depth: int = 0) -> None:
    """Check that plain data has no number that is not finite, and is not nested too deeply.

    Raises:
        Untrusted: it has.
    """
    if depth > MOST_DEPTH:
        raise Untrusted(f"it is nested more than {MOST_DEPTH} deep")
    if isinstance(data, float) and not math.isfinite(data):
        raise Untrusted(f"it has the number {data}; allowed: finite ones")
    if isinstance(data, Mapping):
        for value in data.values():
            check_finite(value, depth + 1)
    elif isinstance(data, list | tuple):
        for value in data:
            check_finite(value, depth + 1)


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors in a safetensors file, and none of the tensors.

    The library that reads them checks these against the file's length.

    Raises:
        OSError: there is no such file.
        Untrusted: it has no header of that format.
    """
    with path.open("rb") as file:
        first = file.read(8)
        size = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= size <= min(MOST_HEADER, path.stat().st_size):
            raise Untrusted("it is no safetensors file")
        header = parse_json(file.read(size))
    try:
        return {name: tuple(part["shape"]) for name, part in header.items() if name != "__metadata__"}
    except (KeyError, TypeError) as error:
        raise Untrusted(f"its header is damaged ({error})") from None


def check_shapes(found: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]) -> None:
    """Check that a file has just the tensors that a model has, in their shapes.

    Raises:
        Untrusted: names the first that is missing, is not known, or has another shape.
    """
    for name, shape in wanted.items():
        if name not in found:
            raise Untrusted(f"it has no tensor {name!r}")
        if tuple(found[name]) != tuple(shape):
            raise Untrusted(f"its tensor {name!r} has the shape {tuple(found[name])}, the model's {tuple(shape)}")
    if unknown := [name for name in found if name not in wanted]:
        raise Untrusted(f"it has a tensor {printable(unknown[0], 64)!r}, which the model has not")


def read_npz(path: Path, most: int = MOST_NPZ) -> dict[str, np.ndarray]:
    """Read the arrays of an npz file, of numbers and of text.

    Args:
        path: of the file.
        most: bytes that all arrays together may have.

    Raises:
        OSError: there is no such file.
        Untrusted: it is damaged, has objects in it, or unpacks to more.
    """
    try:
        # Opened here: numpy leaves the file open when it is no archive.
        with path.open("rb") as raw, zipfile.ZipFile(raw) as archive:
            left, found = most, {}
            for entry in archive.infolist():
                with archive.open(entry) as file:
                    array = _read_array(file, left)
                left -= array.nbytes
                found[entry.filename.removesuffix(".npy")] = array
            return found
    except (EOFError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zipfile.LargeZipFile) as error:
        raise Untrusted(f"it is no npz file ({error})") from None


def _read_array(file: IO[bytes], most: int) -> np.ndarray:
    """Read one array, whose header is looked at first: numpy believes what it says."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except (KeyError, ValueError) as error:
        raise Untrusted(f"an array in it is damaged ({error})") from None
    size = math.prod(shape) * dtype.itemsize
    if dtype.kind not in "biufU" or size > most or fortran:
        raise Untrusted(f"an array in it has {size} bytes of {dtype}; allowed: {most} of numbers or text")
    data = bytearray(file.read(size))  # which numpy lets others write to
    if len(data) != size:
        raise Untrusted("an array in it is cut off")
    return np.frombuffer(data, dtype).reshape(shape) if size else np.empty(shape, dtype)


def inside(folder: Path, name: str) -> Path:
    """A path in a folder by the name of a file or folder there.

    Raises:
        Untrusted: the name is none, such as "../x".
    """
    if not name or name in (".", "..") or not all(part.isalnum() or part in "-_." for part in name):
        raise Untrusted(f"{printable(name, 64)!r} is no name of a file; allowed: letters, digits, '-', '_', '.'")
    return folder / name
