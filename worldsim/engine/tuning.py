"""Which runtime a world runs on: measured on this machine, then remembered.

Building and timing all of them takes minutes, so that `tune` (on the command line `worldsim tune`) is asked for by
hand; a world that was not tuned runs eager. What was found is stored in a cache folder, under a name made of all that
it depends on.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import stat
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from worldsim.diffusion.sampler import SamplerConfig
from worldsim.engine.batch_invariance.sizes import Sizes
from worldsim.engine.batching import in_pieces
from worldsim.engine.runtimes import RUNTIMES, Runtime, build, try_sizes
from worldsim.engine.simulator import Simulator
from worldsim.errors import ConfigError, RuntimeUnavailable, did_you_mean
from worldsim.world import World

CACHE = "WORLDSIM_CACHE"  # environment variable: another place for the cache folder
BATCHES = (1, 2, 4, 8, 16, 32)  # that are timed
SECONDS = 0.6  # for each
_PACKAGE = Path(__file__).resolve().parent.parent
_SOURCES = sorted([*_PACKAGE.glob("models/*.py"), *_PACKAGE.glob("diffusion/*.py"), *_PACKAGE.glob("engine/**/*.py")])


@dataclass(frozen=True, kw_only=True)
class TuneConfig:
    """What to tune."""

    world: Path
    """A world's folder or hub id, or the name of a shipped world."""


def cache_folder() -> Path:
    """Where what was built and measured is stored: libraries that are loaded, so that no one else may write there.

    A user without a home folder (of a container) has a folder of its own among the temporary ones.
    """
    if named := os.environ.get(CACHE):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worldsim"
    except RuntimeError:  # no HOME, and no entry for the user
        return _temporary(Path(tempfile.gettempdir()) / f"worldsim-cache-{os.getuid()}")


@functools.cache
def _temporary(place: Path) -> Path:
    with contextlib.suppress(OSError):
        place.mkdir(mode=0o700, exist_ok=True)
        about = place.lstat()
        if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and not about.st_mode & 0o077:
            return place
    return Path(tempfile.mkdtemp(prefix="worldsim-cache-"))


def choose(world: World, name: str = "auto") -> Runtime:
    """The runtime of that name, or with "auto" the one that `tune` found fastest; eager where it was not run.

    Raises:
        ConfigError: there is no such runtime.
        RuntimeUnavailable: this machine cannot build it.
    """
    if name not in ("auto", *RUNTIMES):
        raise ConfigError(f"runtime is {name!r}.{did_you_mean(name, ['auto', *RUNTIMES])}")
    folder = _folder(world)
    found = _read(folder)
    if name == "auto":
        name = found.get("fastest", "eager")
    known = found["runtimes"].get(name, {})

    def find_sizes(runtime: Runtime) -> Sizes:
        if isinstance(known.get("sizes"), dict):
            return {stage: tuple(sizes) for stage, sizes in known["sizes"].items()}
        sizes = try_sizes(runtime)
        _note(folder, name, {"sizes": sizes})
        return sizes

    runtime = build(world, name, folder, known.get("split_k"), find_sizes)
    runtime.largest = known.get("largest", runtime.largest)
    if "split_k" not in known:
        _note(folder, name, {"split_k": runtime.split_k})
    return runtime


def tune(world: World, report: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Build and time all runtimes that this machine can, and remember the fastest.

    Args:
        world: to run.
        report: is told what is going on, a line at a time.

    Returns:
        "fastest", and for each of "runtimes" its exact sizes and the ms of a step (decode included) by batch size;
        "unavailable" says why others are not there.
    """
    folder, before = _folder(world), torch.get_num_threads()
    unavailable: dict[str, str] = {}
    torch.set_num_threads(1)  # an engine computes on one core for each batch
    try:
        for name in RUNTIMES:
            report(f"{name}: building")
            begin = time.perf_counter()
            try:
                runtime = choose(world, name)
            except RuntimeUnavailable as error:
                unavailable[name] = str(error)
                report(f"{name}: {error}")
                continue
            built = time.perf_counter() - begin
            exact = runtime.sizes["denoise"]
            ms = {size: time_step(world, runtime, size) for size in BATCHES if size in exact}
            best = min(ms[size] / size for size in ms)
            largest = min(size for size in ms if ms[size] / size <= 1.05 * best)
            _note(folder, name, {"ms": ms, "largest": largest})
            shown = ", ".join(f"{size}: {value:.1f}" for size, value in ms.items())
            report(f"{name}: ms a step by sessions {shown}; exact up to {exact[-1]}; ready in {built:.0f} s")
    finally:
        torch.set_num_threads(before)
    found = _read(folder)
    timed = {name: entry["ms"]["1"] for name, entry in found["runtimes"].items() if "ms" in entry}
    found |= {"fastest": min(timed, key=lambda name: timed[name]), "unavailable": unavailable}
    _write(folder, found)
    return found


def time_step(world: World, runtime: Runtime, sessions: int) -> float:
    """Milliseconds of a step of some sessions, decode included."""
    stages = in_pieces(runtime.stages, lambda: runtime.sizes)
    simulator = Simulator(runtime.dynamics, SamplerConfig.of(world.card.sampler), stages)
    state = simulator.begin(list(range(sessions)), [world.book.encode("")] * sessions)
    action = torch.zeros(sessions, runtime.dynamics.config.action_size, device=simulator.device)
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < 4 or time.perf_counter() < end:
        begin = time.perf_counter()
        stages.frames(simulator.step(state, action).latents).cpu()
        times.append(time.perf_counter() - begin)
    return 1000 * statistics.median(times[2:])


def _folder(world: World) -> Path:
    """Named by the world's weights and by all of the machine that a runtime depends on."""
    machine = [torch.__version__, platform.machine(), _cpu(), world.dynamics.dtype, world.card.sampler]
    machine.append(torch.cuda.get_device_name() if torch.cuda.is_available() else "")
    digest = hashlib.blake2b(repr([world.fingerprint(), *machine]).encode(), digest_size=16)
    for source in _SOURCES:  # another version of our own code makes other graphs
        digest.update(source.read_bytes())
    return cache_folder() / "runtimes" / digest.hexdigest()  # no name: that is a stranger's word, and could be a path


def _read(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "runtimes.json").read_text())
        return found if isinstance(found.get("runtimes"), dict) else {"runtimes": {}}
    except (OSError, ValueError, AttributeError):  # nothing is known yet, or the file is damaged
        return {"runtimes": {}}


def _note(folder: Path, name: str, facts: dict[str, Any]) -> None:
    found = _read(folder)
    found["runtimes"][name] = found["runtimes"].get(name, {}) | facts
    _write(folder, found)


def _write(folder: Path, found: dict[str, Any]) -> None:
    """Write what was found; where the cache folder cannot be written, it is found again next time."""
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"runtimes.{os.getpid()}.part"
        part.write_text(json.dumps(found, indent=2) + "\n")
        part.replace(folder / "runtimes.json")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        return platform.processor()
