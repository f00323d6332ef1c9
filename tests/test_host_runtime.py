"""A host without shared memory, without a runtime folder of its own, without a folder for checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from service_lab import ServiceLab, full_disk, no_files

from worldsim.bridges.frames import SharedFolder, SharedReader
from worldsim.bridges.host.checkpoints import Checkpoints
from worldsim.bridges.host.server import Host, HostConfig, ipc_address
from worldsim.engine.engine import Engine
from worldsim.errors import BridgeError, ConfigError
from worldsim.world import World


@pytest.fixture(scope="module")
def engine(world_path: Path) -> Iterator[Engine]:
    engine = Engine(World.from_pretrained(world_path), runtime="eager", threads=1, max_sessions=8)
    yield engine
    engine.close()


def test_frames_go_without_shared_memory_where_there_is_no_room(engine: Engine) -> None:
    shared, lab = SharedFolder(), ServiceLab(engine)
    lab.service.shared = shared
    lab.hello(b"a")
    about = lab.ask(b"a", "open", seed=3, prompt="a cart", encoding="shm")
    number, step, found = lab.service.sessions[about["session"]].number, about["step"], []
    for trouble in (no_files, no_files, nothing, nothing):
        with trouble():
            reply = lab.answer(b"a", lab.send(b"a", "step", session=about["session"], step=step, action=0))
        step, buffer = reply.header["step"], reply.buffers["frame"]
        frame = SharedReader().read(buffer) if isinstance(buffer, dict) else buffer
        assert np.array_equal(frame, engine.sessions[number].frame)
        found.append("shm" if isinstance(buffer, dict) else "raw")
    assert found == ["raw", "raw", "shm", "shm"]
    other = lab.ask(b"a", "open", seed=4, prompt="a cart")
    with full_disk(10):  # room for no file of frames
        reply = lab.answer(b"a", lab.send(b"a", "render", session=other["session"], encoding="shm"))
    assert isinstance(reply.buffers["frame"], np.ndarray) and len(list(shared.path.iterdir())) == 2
    shared.close()
    lab.close()


@contextmanager
def nothing() -> Iterator[None]:
    yield


def wide(runtime: Path) -> None:
    (runtime / f"worldsim-{os.getuid()}").mkdir(mode=0o777)
    (runtime / f"worldsim-{os.getuid()}").chmod(0o777)


def link(runtime: Path) -> None:
    (runtime / "elsewhere").mkdir(mode=0o700)
    (runtime / f"worldsim-{os.getuid()}").symlink_to(runtime / "elsewhere")


RUNTIME: dict[str, tuple[Callable[[Path], object], str | None]] = {
    "ours": (lambda runtime: None, None),
    "ours from before": (lambda runtime: (runtime / f"worldsim-{os.getuid()}").mkdir(mode=0o700), None),
    "not there": (lambda runtime: runtime.rmdir(), "cannot be made"),
    "a file": (lambda runtime: (runtime / f"worldsim-{os.getuid()}").write_text("x"), "cannot be made"),
    "others can write": (wide, "not yours alone"),
    "a link": (link, "not yours alone"),
    "long": (lambda runtime: None, "ipc path"),
}


@pytest.mark.parametrize("name", RUNTIME)
def test_a_host_serves_without_ipc_where_the_runtime_folder_is_not_its_own(
    name: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make, error = RUNTIME[name]
    runtime = tmp_path / ("x" * 120 if name == "long" else "x")
    runtime.mkdir()
    make(runtime)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    with Host({"CartPole-v1": engine}, HostConfig(port=0, shared=False)) as host:
        said = [str(getattr(record, "fields", "")) for record in caplog.records if record.message == "no ipc"]
        if error is None:
            assert not said and Path(ipc_address(host.port)[6:]).exists()
        else:
            assert len(said) == 1 and error in said[0]
            if name != "long":
                with pytest.raises(BridgeError, match=error):
                    ipc_address(host.port)


def test_checkpoints_that_cannot_be_written_are_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="--no-checkpoint"):
        Checkpoints(tmp_path / "file" / "sessions", every=0)
