"""The benchmark of the bridge: its still engine can be served, and the whole of it ends with a table."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from worldsim import cli
from worldsim.bridges.bench import StillEngine
from worldsim.bridges.client import RemoteEngine
from worldsim.bridges.host.server import Host, HostConfig
from worldsim.engine.records import SessionSpec


def test_a_still_engine_is_served() -> None:
    engine = StillEngine((32, 48))
    with Host({"still": cast(Any, engine)}, HostConfig(port=0, ipc=False)) as host:
        thread = threading.Thread(target=host.run)
        thread.start()
        remote = RemoteEngine(host.address)
        try:
            number = remote.open_all([SessionSpec()])[0]
            first = remote.sessions[number].frame
            for step in (2, 3):
                drawn = remote.step({number: np.zeros(3, np.float32)})[number]
                assert drawn.step == step and not drawn.terminated
                assert np.array_equal(drawn.frame, first) == (step == 2)  # two frames, in turns
        finally:
            remote.close()
            host.stop()
            thread.join()


@pytest.mark.slow
def test_the_command(world_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "bridge", "--world", str(world_path), "--steps", "5", "--clients", "2", "--seconds", "0.5"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "tcp jpeg" in said and "bare echo, ipc" in said and "2 remote clients" in said
