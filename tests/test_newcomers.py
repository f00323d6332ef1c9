"""What a newcomer meets in the first hours: versions, keys of one's own game, names of games, what a run shows."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image
from tiny import tiny_autoencoder

import worldsim
from worldsim import cli
from worldsim.commands.completion import SHELLS, completion
from worldsim.data.episodes import Dataset
from worldsim.data.foreign import PACKAGES, full_id
from worldsim.data.record import RecordConfig, record
from worldsim.envs.keymap import read_keys
from worldsim.errors import ConfigError, DataError, MissingDependency
from worldsim.model_card import model_card, write_model_card
from worldsim.plots import draw_curves, table_picture
from worldsim.training.autoencoder import prepare_autoencoder
from worldsim.world import World, read_card


def test_the_module_runs_and_says_its_version() -> None:
    run = subprocess.run([sys.executable, "-m", "worldsim", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == worldsim.__version__ == version("worldsim-engine")


class Steered(gym.Env):
    """A game that says which keys it has, in Gymnasium's form."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    action_space: Any = spaces.Box(-1, 1, (2,), np.float32)
    observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)
    keys: Any = {("a",): np.array([-1, 0], np.float32), ("d",): np.array([1, 0], np.float32)}

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def get_keys_to_action(self) -> Any:
        return self.keys

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros((16, 16, 3), np.uint8), {}

    def step(self, action: Any) -> Any:
        return np.zeros((16, 16, 3), np.uint8), 0.0, False, False, {}


class Misspelled(Steered):
    """Its keys are none."""

    keys = {(3,): np.zeros(2, np.float32)}


class Flat(Steered):
    """Choices by characters; nothing for no key."""

    action_space = spaces.Discrete(4, start=1)
    keys = {"w": 2, "s": 3, "wd": 4}


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (Steered, {"": [0, 0], "a": [-1, 0], "d": [1, 0]}),
        (Flat, {"": 1, "w": 2, "s": 3, "d+w": 4}),
        (Misspelled, {}),
    ],
)
def test_the_keys_of_ones_own_game_are_stored(tmp_path: Path, kind: type[gym.Env], keys: dict[str, Any]) -> None:
    gym.registry.pop(f"Own{kind.__name__}-v0", None)
    gym.register(f"Own{kind.__name__}-v0", entry_point=kind, max_episode_steps=5)
    config = RecordConfig(game=f"Own{kind.__name__}-v0", out=tmp_path / "d", frames=6, workers=1, frame_size=(16, 16))
    dataset = record(config)
    assert dataset.card.keys == keys
    if keys:
        assert all(
            dataset.action_space.contains(a) for a in read_keys(dataset.card.keys, dataset.action_space).values()
        )
        still = dataclasses.replace(config, out=tmp_path / "e", frames=60, no_op_fraction=0.5)  # the keys have a rest
        assert len(record(still).episodes())
    # a recording of before has no keys: it can be continued, and then has them
    about = json.loads((tmp_path / "d" / "dataset.json").read_text()) | {"keys": {}}
    (tmp_path / "d" / "dataset.json").write_text(json.dumps(about))
    assert record(dataclasses.replace(config, frames=12)).card.keys == keys


@pytest.mark.parametrize("prefix", PACKAGES)
def test_well_known_ids_need_no_package_name(prefix: str) -> None:
    module, package = PACKAGES[prefix]
    name = f"{prefix}Nothing-v0"
    try:
        assert full_id(name) == f"{module}:{name}"
    except MissingDependency as error:
        assert f"pip install {package}" in str(error) and name in str(error)
    assert full_id("CartPole-v1") == "CartPole-v1" and full_id("some:Thing-v0") == "some:Thing-v0"


def test_an_unknown_game_of_a_package_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["record", "ALE/Breakout-v99"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("pip install ale-py" in said or "Breakout-v99" in said)


def test_an_agent_learns_its_own_game(world_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("stable_baselines3")
    from small_agents import small

    from worldsim.agents.evaluation import AgentEvalConfig, evaluate_agent
    from worldsim.agents.planner import PlanConfig, plan
    from worldsim.agents.training import train_agent

    changes: dict[str, Any] = {"world": str(world_path), "out": tmp_path / "a"}
    with pytest.raises(
        ConfigError, match=r"has the action space Discrete\(2\), the game MountainCar-v0 has Discrete\(3\)"
    ):
        train_agent(small("MountainCar-v0", **changes))
    with pytest.raises(ConfigError, match="is of 'CartPole-v1', the game WorldsimLamp-v0 is"):
        train_agent(small("WorldsimLamp-v0", **changes))
    assert not (tmp_path / "a").exists()
    with pytest.raises(ConfigError, match="is of 'CartPole-v1', the game WorldsimLamp-v0 is"):
        plan(PlanConfig(world=str(world_path), game="WorldsimLamp-v0"))
    agent = train_agent(small("WorldsimLamp-v0", out=tmp_path / "lamp"))
    config = AgentEvalConfig(agent=tmp_path / "lamp", world=str(world_path), episodes=1)
    with pytest.raises(ConfigError, match="is of 'CartPole-v1', the game WorldsimLamp-v0 is"):
        evaluate_agent(config)
    assert agent.card.game == "WorldsimLamp-v0"


def test_a_world_has_a_model_card(world_path: Path, tmp_path: Path) -> None:
    card = read_card(world_path)
    text = (world_path / "README.md").read_text()
    assert text == model_card(card, world_path)
    assert "# CartPole-v1" in text and "40 x 40 pixels" in text and "- a cart" in text and "Not measured" in text
    hostile = dataclasses.replace(
        card, prompts=["\x1b[2J", "a|b", "<script>", "x" * 5000], notices=["one\ntwo"], quality={"f": {"psnr": 3.21}},
        provenance={"recording": ["no dict"], "training": 3},
    )  # fmt: skip
    write_model_card(hostile, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "\x1b" not in text and "<script>" not in text and "| f psnr | 3.21 |" in text and "> two" in text
    assert World.from_pretrained(world_path).card == card, "the folder loads with it"


def test_a_run_draws_its_curves_and_says_how_long_it_takes(dataset: Dataset, tmp_path: Path, capfd: Any) -> None:
    config = tiny_autoencoder(dataset, tmp_path / "ae")
    config = dataclasses.replace(
        config, trainer=dataclasses.replace(config.trainer, steps=None, minutes=0.02, log_every=1)
    )
    prepare_autoencoder(config)[1].run()
    with Image.open(tmp_path / "ae" / "curves.png") as picture:
        assert picture.size[0] == 840 and np.asarray(picture).std() > 5
    assert "min left" in capfd.readouterr().err


@pytest.mark.parametrize(
    "log", ["", "not json\n", '{"step": 1, "loss": NaN}\n', '{"step": 1}\n', '[1]\n{"loss": "x"}\n']
)
def test_a_damaged_log_draws_nothing(tmp_path: Path, log: str) -> None:
    (tmp_path / "log.jsonl").write_text(log)
    draw_curves(tmp_path)
    assert not (tmp_path / "curves.png").exists()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('\n{"step": 2, "loss": 1.5}\n{"step": 3, "lo')
    draw_curves(tmp_path)
    assert (tmp_path / "curves.png").is_file()


def test_a_table_is_a_picture() -> None:
    assert table_picture("psnr  21.0\n\u2744 none").size == (80, 48) and table_picture("").size[0] == 20


def test_the_cache_is_listed_and_cleared(tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLDSIM_CACHE", str(tmp_path))
    assert cli.main(["cache"]) == 0 and ": 0 entries" in capsys.readouterr().out
    for place, age in (("runtimes/aa", 40), ("runtimes/bb", 0), ("hosts/5570", 40)):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "x.json").write_text("x" * 1000)
        when = time.time() - age * 86400
        for path in (tmp_path / place / "x.json", tmp_path / place):
            os.utime(path, (when, when))
    (tmp_path / "else").mkdir()
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "mine").write_text("mine")
    (tmp_path / "runtimes" / "link").symlink_to(outside)
    assert cli.main(["cache"]) == 0
    said = capsys.readouterr().out
    assert ": 4 entries" in said and "runtimes/aa" in said and "40.0 days old" in said and "removed" not in said
    assert cli.main(["cache", "--clear", "runtimes", "--older-than-days", "30"]) == 0
    assert "removed runtimes/aa" in capsys.readouterr().out
    assert not (tmp_path / "runtimes" / "aa").exists() and (tmp_path / "runtimes" / "bb").exists()
    assert cli.main(["cache", "--clear", "all"]) == 0
    assert not list((tmp_path / "runtimes").iterdir()) and not list((tmp_path / "hosts").iterdir())
    assert (tmp_path / "else").exists() and (outside / "mine").exists()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_verbs_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--print-completion", "bash"]) == 0
    script = (
        capsys.readouterr().out + '\nCOMP_WORDS=(worldsim data im); COMP_CWORD=2; _worldsim; echo "${COMPREPLY[@]}"'
    )
    script += '\nCOMP_WORDS=(worldsim re); COMP_CWORD=1; _worldsim; echo "${COMPREPLY[@]}"'
    run = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.split("\n")[:2] == ["import-minari import-lerobot import-video", "record"]
    assert all("complete" in completion(shell, cli.VERBS) for shell in SHELLS)
    assert cli.main(["--print-completion", "fish"]) == 2 and "takes one of: bash, zsh" in capsys.readouterr().err


def test_a_recording_says_what_training_will_miss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = f"record CartPole-v1 --frames 12 --max-episode-steps 3 --workers 1 --out {tmp_path / 'd'}".split()
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "no episode is held out yet" in said and "the longest episode has 4 frames" in said


def test_a_world_in_info_cannot_steer_a_terminal(
    world_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(world_path, tmp_path / "w")
    about = json.loads((tmp_path / "w" / "world.json").read_text()) | {"prompts": ["\x1b[2J"], "notices": [""]}
    (tmp_path / "w" / "world.json").write_text(json.dumps(about))
    assert cli.main(["info", str(tmp_path / "w")]) == 0
    out = capsys.readouterr().out
    assert "\x1b[2J" not in out and r"\x1b[2J" in out and "game: CartPole-v1" in out


@pytest.mark.slow
def test_the_same_command_gives_the_same_autoencoder(dataset: Dataset, tmp_path: Path) -> None:
    words = "--steps 3 --widths 16 --encoder-blocks 1 --decoder-blocks 1 --latent-channels 4 --batch 4 --matmul highest"
    for out in ("a", "b"):
        command = [sys.executable, "-m", "worldsim", "train", "autoencoder", str(dataset.path), "--out", out]
        subprocess.run([*command, *words.split()], cwd=tmp_path, check=True, capture_output=True)
    for name in ("diffusion_pytorch_model.safetensors", "linear.safetensors"):
        first, second = ((tmp_path / out / "autoencoder" / name).read_bytes() for out in ("a", "b"))
        assert first == second


def test_a_folder_of_another_dataset_is_not_written_into(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="is no dataset"):
        record(RecordConfig(game="CartPole-v1", out=tmp_path, frames=10, workers=1))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
