"""The Godot add-on, in the engines that are installed: the frames it sees are those that the Python client sees."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hosting import HostProcess, drive, reference

ADDON = Path(__file__).parents[1] / "bridges" / "addons" / "godot"
FRAMES, SEED = 300, 7
TOUR = """\
the same again: true
the same again: true
a closed session: no-session
prompt: a cart
half an action: bad-action
as it began: true
texture: true
watched: true
"""


def command(version: int) -> list[str]:
    """What runs this version of Godot without a window, up to the project's path, or a skip."""
    if version == 3:
        server = shutil.which("godot3-server")
        if server is None:
            pytest.skip("Godot 3 is not installed (Debian: godot3-server)")
        return [server, "--no-window", "--path"]
    godot = os.environ.get("GODOT4") or shutil.which("godot4")
    if godot is None and (other := shutil.which("godot")) is not None:
        said = subprocess.run([other, "--version"], capture_output=True, text=True, timeout=30).stdout
        godot = other if said.startswith("4.") else None
    if godot is None:
        pytest.skip("Godot 4 is not installed (name it in the variable GODOT4; .ci/godot4 fetches Debian's)")
    return [godot, "--headless", "--path"]


def play(version: int, folder: Path, script: list[str], *words: str) -> str:
    """What a program of the add-on's project prints."""
    engine = command(version)
    project = shutil.copytree(ADDON / f"godot{version}", folder / "project")  # the engine writes into it
    between = ["--"] if version == 4 else []
    environment = {k: v for k, v in os.environ.items() if not k.startswith("XDG_")} | {"HOME": str(folder)}
    done = subprocess.run(
        [*engine, str(project), *script, *between, *words], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0 and "SCRIPT ERROR" not in done.stderr, done.stdout[-1000:] + done.stderr
    return done.stdout


@pytest.mark.parametrize("version", [4, 3])
def test_sees_the_frames_of_the_python_client(version: int, host: HostProcess, tmp_path: Path) -> None:
    words = f"--address={host.address}", f"--seed={SEED}", f"--frames={FRAMES}", "--tour"
    said = play(version, tmp_path, ["-s", "res://headless.gd"], *words)
    hashes = re.findall(r"^[0-9a-f]{64}$", said, re.MULTILINE)
    assert hashes == reference(host.address, SEED, drive(FRAMES, SEED))
    assert said.endswith(TOUR), said[-1000:]


@pytest.mark.parametrize("version", [4, 3])
def test_example_plays(version: int, host: HostProcess, tmp_path: Path) -> None:
    said = play(version, tmp_path, [], f"--address={host.address}", "--frames=20")
    assert re.search(r"^CartPole-v1  frame 2\d$", said, re.MULTILINE), said
