"""scripts/lab: a background run that is paused, stopped and gone on from ends as one that was left alone."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from worldsim.cli import main as worldsim
from worldsim.errors import ConfigError, SessionError
from worldsim.world import World

pytestmark = pytest.mark.timeout(600)  # its runs give way to all other work on the machine
TOP = Path(__file__).resolve().parent.parent
STEPS = 60  # so many that a fast machine is not through before the run is stopped
PLAN = """
[recordings.cart]
args = ["CartPole-v1", "--frames", 220, "--workers", 1, "--frame-size", 40, 40, "--seed", 3]

[runs.cart]
recordings = ["cart"]
start = "{world}"
args = ["--steps", {steps}, "--log-every", 1, "--segments", 2, "--frames", 4, "--rollout-segments", 1,
        "--rollout-start", 5, "--rollout-buffer", 2,
        "--image-samples", 1, "--context", 3, "--compile", "False", "--bf16", "False",
        "--matmul", "highest"]
"""  # `start` may be an absolute path as well


@pytest.fixture(scope="module")
def script() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("lab_script", str(TOP / "scripts" / "lab"))
    spec = importlib.util.spec_from_loader("lab_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


class Lab:
    """The command and the object beside it, on a plan of one tiny run."""

    def __init__(self, script: ModuleType, folder: Path, world: Path) -> None:
        plan = folder / "plan.toml"
        plan.write_text(PLAN.format(world=world, steps=STEPS))
        self.script, self.words = script, ["--home", str(folder / "lab"), "--plan", str(plan)]
        self.inside = script.Lab(folder / "lab", plan)
        self.home, self.out = self.inside.home, self.inside.home / "runs" / "cart"

    def __call__(self, *args: str) -> int:
        return self.script.main([*args, *self.words])

    def step(self) -> int:
        log = self.out / "log.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        return json.loads(lines[-1])["step"] if lines else 0

    def until(self, what: Callable[[], bool], seconds: float = 600) -> None:
        end = time.monotonic() + seconds
        while not what():
            alive = self.inside.process("cart") is not None
            log = (self.home / "logs" / "cart.log").read_text()
            assert time.monotonic() < end and (alive or what()), log[-3000:]
            time.sleep(0.01)


@pytest.fixture
def lab(script: ModuleType, tmp_path: Path, world_path: Path) -> Iterator[Lab]:
    if shutil.which("git") is None or not (TOP / ".git").exists():
        pytest.skip("needs a git checkout: the code that trains is a copy of a commit")
    made = Lab(script, tmp_path, world_path)
    yield made
    if process := made.inside.process("cart"):
        os.killpg(process[0], signal.SIGKILL)


def checkpoint(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path / "checkpoint.pt", weights_only=True)
    return {**state["module"], **{f"ema.{name}": tensor for name, tensor in state["ema"].items()}}


def pause_and_go_on(lab: Lab, capsys: pytest.CaptureFixture[str]) -> int:
    """Pause what trains, see that it rests, and let it train on; returns the step at which it rested."""
    assert lab("pause") == 0
    assert lab.inside.state("cart") == "paused"
    step = lab.step()
    assert step < STEPS
    time.sleep(0.5)
    assert lab.step() == step
    assert lab("start", "cart") == 2 and "paused already" in capsys.readouterr().err
    assert lab("continue", "cart") == 0
    lab.until(lambda: lab.step() > step)
    return step


# four processes that load torch, one after the other; a default test below has the parts but the export
@pytest.mark.slow
def test_a_run_is_paused_stopped_and_goes_on_exactly(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    assert lab("start", "cart") == 0
    lab.until(lambda: lab.step() >= 2)
    step = pause_and_go_on(lab, capsys)

    assert lab("pause", "cart") == 0  # a paused run saves too
    assert lab("stop", "cart") == 0
    assert lab.inside.state("cart") == "stopped"
    stopped = torch.load(lab.out / "checkpoint.pt", weights_only=True)["step"]
    assert step < stopped < STEPS, "the run was over before it could be stopped"
    assert (lab.out / "world" / "world.json").exists()

    assert lab("export", "cart") == 0
    exported = Path(capsys.readouterr().out.splitlines()[-1])
    assert World.from_pretrained(exported).card.provenance["steps"] == stopped
    assert torch.load(lab.out / "checkpoint.pt", weights_only=True)["step"] == stopped

    assert lab("start", "cart") == 0
    lab.until(lambda: lab.inside.process("cart") is None)
    assert lab("status") == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:3] == ["cart", "stopped", str(STEPS)] and float(row[5]) > 0

    whole = lab.home / "whole"
    assert worldsim([*lab.inside.train_words("cart"), "--out", str(whole)]) == 0
    one, other = checkpoint(lab.out), checkpoint(whole)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_lost_machine_is_restored(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """The same recording comes again from its seed, and training begins at the landed world; it pauses and stops."""
    assert lab("record", "cart") == 0
    files = {path.name: path.read_bytes() for path in (lab.home / "data" / "cart").rglob("*.safetensors")}
    shutil.rmtree(lab.home)
    assert lab("restore") == 0
    lab.until(lambda: lab.step() >= 1)
    assert lab("restore") == 0  # leaves alone what runs
    step = pause_and_go_on(lab, capsys)
    assert lab("pause", "cart") == 0  # a paused run saves too
    assert lab("stop") == 0
    assert lab.inside.state("cart") == "stopped"
    assert step < torch.load(lab.out / "checkpoint.pt", weights_only=True)["step"] < STEPS
    assert (lab.out / "world" / "world.json").exists()
    again = (lab.home / "data" / "cart").glob("[th]*/*.safetensors")  # train and heldout, not the latents
    assert files == {path.name: path.read_bytes() for path in again}


def test_the_code_that_trains_is_a_copy(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=TOP, capture_output=True, text=True).stdout.strip()
    code = lab.inside.copy_code("cart")
    assert (code / "COMMIT").read_text().strip() == commit and commit[:9] in capsys.readouterr().out
    where = "import worldsim, worldsim.envs; print(worldsim.__file__)"
    environment = {**os.environ, "PYTHONPATH": str(code)}
    found = subprocess.run([sys.executable, "-c", where], cwd="/", env=environment, capture_output=True, text=True)
    assert found.stdout.strip() == str(code / "worldsim" / "__init__.py"), found.stderr
    (code / "mark").touch()
    assert (lab.inside.copy_code("cart") / "mark").exists()
    assert not (lab.inside.copy_code("cart", update=True) / "mark").exists()


def test_a_number_that_now_belongs_to_another_process(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    """After a restart of the machine the kept process id is anybody's: it must not be paused or ended."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        kept = {"pid": os.getpid(), "born": "long ago"}
        lab.inside.file("cart", "json").write_text(json.dumps(kept))
        lab.inside.file("cart", "stage").write_text("running")
        assert lab.inside.state("cart") == "stopped"
        assert lab("pause") == lab("stop") == 0
        assert capsys.readouterr().out.splitlines() == ["cart: stopped"] * 2
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == []
    kept["born"] = lab.script.look(os.getpid())[1]
    lab.inside.file("cart", "json").write_text(json.dumps(kept))
    assert lab.inside.process("cart") is not None  # the same number and the same process
    with pytest.raises(SessionError, match="running already"):
        lab.inside.start("cart")
    lab.inside.file("cart", "json").unlink()


def test_what_cannot_be_done_is_explained(lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    for args, words in (
        (("start", "card"), "Did you mean 'cart'"),
        (("record", "cards"), "Did you mean 'cart'"),
        (("export", "cart"), "no checkpoint yet (it is never started)"),
    ):
        assert lab(*args) == 2
        assert words in capsys.readouterr().err
    lab.inside.plan_path.write_text("[runs")
    assert lab("status") == 2 and "cannot read the plan" in capsys.readouterr().err


def test_a_recording_of_before_an_option_was_renamed_is_left_alone(script: ModuleType, tmp_path: Path) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('[recordings.car]\nargs = ["car-racing", "--no-op-fraction", 0.06]\n')
    lab = script.Lab(tmp_path / "lab", plan)
    (lab.home / "data" / "car").mkdir()
    done = lab.home / "data" / "car.done"
    done.write_text(json.dumps(["car-racing", "--idle", "0.06"]))
    lab.record("car")
    done.write_text(json.dumps(["car-racing", "--idle", "0.1"]))
    with pytest.raises(ConfigError, match="recorded with other words"):
        lab.record("car")


def test_the_plan_of_this_repository_can_be_read(script: ModuleType, tmp_path: Path) -> None:
    """Every run names recordings and a world that exist, with words that the commands take."""
    from worldsim.commands.parsing import parse
    from worldsim.data.record import RecordConfig
    from worldsim.training.configs import DynamicsTraining

    lab = script.Lab(tmp_path, TOP / "scripts" / "lab.toml")
    for name in lab.plan["recordings"]:
        config = parse(RecordConfig, "record", [str(word) for word in lab.entry("recordings", name)["args"]])
        assert config.out is None
    for name, entry in lab.plan["runs"].items():
        assert (TOP / entry["start"] / "world.json").exists()
        assert all(lab.entry("recordings", recording) for recording in entry["recordings"])
        config = parse(DynamicsTraining, "train dynamics", lab.train_words(name)[2:], flat=True)
        assert config.out == tmp_path / "runs" / name
        assert lab.row(name)[:2] == [name, "never started"]
