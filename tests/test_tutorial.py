"""docs/your-own-game.md is run as it is written, in an empty folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

PAGE = Path(__file__).resolve().parent.parent / "docs" / "your-own-game.md"
BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)```", re.DOTALL)


def blocks() -> list[re.Match[str]]:
    return list(BLOCK.finditer(PAGE.read_text()))


def test_every_block_is_one_that_is_run():
    kinds = [(block["kind"], bool(block["file"])) for block in blocks()]
    assert set(kinds) == {("bash", False), ("python", True)} and len(kinds) > 10
    assert PAGE.read_text().count("```") == 2 * len(kinds)


def test_the_verbs_of_the_page_exist():
    from worldsim.cli import find_verb

    commands = [line for block in blocks() for line in block["text"].splitlines() if line.startswith("worldsim ")]
    for command in commands:
        find_verb(command.split()[1:])
    assert len(commands) > 10


@pytest.mark.slow
@pytest.mark.timeout(1200)  # it records, trains and measures
def test_the_page_runs_as_written(tmp_path):
    for package in ("minari", "stable_baselines3"):
        pytest.importorskip(package)
    script = ["set -e"]
    staged = tmp_path / "staged"
    staged.mkdir()
    # What the page takes from the hub lies in a folder of that name: no test needs a network.
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(4, 4), decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    )  # fmt: skip
    tiny.save_pretrained(tmp_path / "madebyollin" / "taesd")
    for number, block in enumerate(blocks()):
        if block["file"]:
            (staged / str(number)).write_text(block["text"])
            script.append(f"cp {staged / str(number)} {block['file']}")
        elif "pip install" not in block["text"]:
            # This checkout, also where another one is installed.
            script.append(block["text"].replace("PYTHONPATH=.", f"PYTHONPATH=.:{PAGE.parent.parent}"))
    # The commands of this Python first, one thread: others share the machine.
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": places, "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
    run = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    assert "the world gave (32, 32, 3)" in run.stdout
    files = [
        "sheet.png",
        "clip.mp4",
        "runs/catch/world/world.json",
        "runs/eval/report.json",
        "runs/agent/eval-real.json",
        "runs/minute/minute_steer_starts.png",
        "runs/catcher-agent/agent.json",
    ]
    for name in (*files, "data/screen/dataset.json", "data/catch-again/dataset.json"):
        assert (tmp_path / name).stat().st_size > 0, name
    assert json.loads((tmp_path / "runs/agent/agent.json").read_text())["game"] == "catch:Catch-v0"
    minute = json.loads((tmp_path / "runs/minute/report.json").read_text())
    assert minute["game"] == "catch" and set(minute["beginners"]["steer"]["starts"]["layout"]) == {"paddle", "falling"}
    splits = "[ht][er]*"  # heldout and train, not the latents that training keeps
    both = [sorted((tmp_path / "data" / name).glob(f"{splits}/*.safetensors")) for name in ("catch", "catch-again")]
    assert both[0]
    assert [path.read_bytes() for path in both[0]] == [path.read_bytes() for path in both[1]]
