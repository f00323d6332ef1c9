"""The C++ client has the same frames as the Python client, with and without CURVE keys."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hosting import HostProcess, drive, hosting, reference

from worldsim.bridges.keys import KeysConfig, make_keys

FOLDER = Path(__file__).parent.parent / "bridges" / "addons" / "cpp"
SEED = 12
HEADERS = "#include <nlohmann/json.hpp>\n#include <zmq.hpp>\n"


def missing() -> str:
    """What of a C++ compiler and the two libraries is not there."""
    tools = [tool for tool in ("cmake", "g++", "make") if shutil.which(tool) is None]
    if tools:
        return ", ".join(tools)
    command = ["g++", "-std=c++17", "-E", "-x", "c++", "-", "-o", "/dev/null"]
    done = subprocess.run(command, input=HEADERS, capture_output=True, text=True)
    return "" if done.returncode == 0 else "zmq.hpp or nlohmann/json.hpp"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, built without a warning."""
    if lack := missing():
        pytest.skip(f"needs {lack}: apt-get install cmake g++ make libzmq3-dev cppzmq-dev nlohmann-json3-dev")
    build = tmp_path_factory.mktemp("cpp")
    for command in (["cmake", "-S", FOLDER, "-B", build], ["cmake", "--build", build]):
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    return build / "worldsim_example"


def run(program: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Its output; it must end well."""
    done = subprocess.run([program, *map(str, words)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def test_same_frames_as_python_though_the_connection_breaks_twice(example: Path, host: HostProcess) -> None:
    done = run(example, "drive", host.address, SEED, 300)
    assert done.stdout.split() == reference(host.address, SEED, drive(300, SEED))
    assert "connections: 3" in done.stderr  # one request and one reply were lost


def test_every_other_verb(example: Path, host: HostProcess) -> None:
    assert run(example, "tour", host.address).stdout.endswith("all well\n")


def test_what_is_refused_is_said(example: Path, host: HostProcess) -> None:
    done = subprocess.run([example, "drive", host.address, "-1", "3"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.startswith("bad-field: 'seed' is -1")


def test_keys(example: Path, host: HostProcess, world_path: Path, tmp_path: Path) -> None:
    key, _ = make_keys(KeysConfig(name="host", folder=tmp_path / "keys"))
    _, secret = make_keys(KeysConfig(name="alice", folder=tmp_path / "keys"))
    with hosting([world_path], tmp_path / "host", "--key", f"{key}_secret") as locked:
        done = run(example, "drive", locked.address, SEED, 20, secret, key)
    assert done.stdout.split() == reference(host.address, SEED, drive(20, SEED))
