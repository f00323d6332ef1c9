"""What `worldsim bench engine` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worldsim.cli import main
from worldsim.engine.engine import Engine
from worldsim.errors import ConfigError
from worldsim.evaluation.bench_engine import EngineBenchConfig, bench_engine, flat_run, soak, table
from worldsim.world import World


@pytest.mark.slow  # two processes that load torch; the tests below have its parts, of a young session
def test_report(world_path: Path) -> None:
    config = EngineBenchConfig(world=world_path, runtimes=("eager", "cudagraph"), sessions=(1, 4), seconds=0.1, age=60,
                               soak_minutes=0.02)  # fmt: skip
    report = bench_engine(config)
    assert report["speeds"]["eager, exact"]["1"]["gain"] == 1 and report["speeds"]["eager, fast"]["4"]["step_ms"] > 0
    for age, step in (("young", 10), ("old", 70)):
        part = report[age]
        assert part["step"] >= step and part["equal_frames"] == 100 and part["fork_ms"] > 0
        assert part["fork_share_of_memory"] < 1 and part["load_ms"] > 0
    assert report["flat"]["steps"] == 60 and report["flat"]["ratio"] > 0
    assert report["soak"]["blocks_left"] == 0 and report["soak"]["operations"] > report["soak"]["refused"]
    text = table(json.loads(json.dumps(report)))
    assert "100 frames equal there" in text and "0 blocks left" in text


def test_a_flat_run_and_a_soak(world: World, world_path: Path) -> None:
    engine = Engine(world, runtime="eager", threads=1)
    number = engine.open(seed=0)
    begun = engine.sessions[number].step
    flat = flat_run(engine, number, 60)
    assert flat["steps"] == 60 == engine.sessions[number].step - begun and flat["ratio"] > 0
    engine.close()
    found = soak(world, EngineBenchConfig(world=world_path, runtimes=("eager",), soak_minutes=0.02))
    assert found["blocks_left"] == 0 and found["operations"] > found["refused"]


def test_command(world_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["bench", "engine", str(world_path), "--sessions", "1", "2", "--seconds", "0.05", "--age", "0", "--json"]
    assert main(args) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["speeds"]["eager, exact"]["1"]["gain"] == 1 and report["speeds"]["eager, fast"]["2"]["step_ms"] > 0
    part = report["young"]
    assert part["step"] >= 10 and part["equal_frames"] == 100 and part["fork_ms"] > 0
    assert part["fork_share_of_memory"] < 1 and part["load_ms"] > 0
    text = table(report)
    assert "eager, exact" in text and "100 frames equal there" in text
    with pytest.raises(ConfigError, match="at least one of each"):
        EngineBenchConfig(world=world_path, sessions=())
