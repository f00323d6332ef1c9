"""Training and play on another device: every tensor is made on the device of its batch or model.

The device is a logical one (`logical_device`), so that mistakes show on a machine without a GPU.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from logical_device import Marks, WrongDevice, logical
from tiny import OPENINGS, tiny_autoencoder, tiny_baseline, tiny_dynamics

from worldsim.baselines.unet.evaluation import UNetRunner
from worldsim.baselines.unet.training import prepare_baseline
from worldsim.data.episodes import Dataset
from worldsim.data.latents import LatentData
from worldsim.engine.engine import Engine
from worldsim.engine.records import SessionSpec, StepResult
from worldsim.engine.session import Snapshot
from worldsim.engine.simulator import Simulator
from worldsim.evaluation.rollout import Runner, context_of, cut, recorded
from worldsim.models.clip_autoencoder import ClipAutoencoder
from worldsim.training.autoencoder import latent_statistics, load_run, prepare_autoencoder, save_run
from worldsim.training.latent_metric import latent_metric
from worldsim.training.run import prepare
from worldsim.training.trainer import Task, Trainer, TrainerConfig
from worldsim.types import TextContext
from worldsim.video.patterns import given_frames
from worldsim.video.sampling import sample_clips
from worldsim.world import World

if TYPE_CHECKING:
    from worldsim.agents.training import AgentConfig

TOP = Path(__file__).resolve().parent.parent
# How often modules may name the host, and why.
NAMED = {
    "worldsim/engine/aoti.py": 1,  # the C interface asks for the kind of device that its library was compiled for
    "worldsim/models/attention.py": 1,  # the question whether plain products are faster, which they are there alone
    # Files are read to the host: they may be of a machine with a device that this one lacks. `load_state_dict` copies.
    "worldsim/training/trainer.py": 1,
    "worldsim/evaluation/features.py": 1,
    "worldsim/evaluation/published.py": 2,
}
NO_CUDA = pytest.mark.filterwarnings("ignore:CUDA is not available", "ignore:User provided device_type of 'cuda'")


def host_names(source: str) -> int:
    """How often a module names the host as a device; as the key of a report the word may stand."""
    tree, keys = ast.parse(source), set[ast.AST | None]()
    for node in ast.walk(tree):
        keys |= {*node.keys} if isinstance(node, ast.Dict) else set()
        keys |= {node.slice} if isinstance(node, ast.Subscript) else set()
    words = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in keys]
    return sum(str(word, "ascii", "ignore").split(":")[0] == "cpu" if isinstance(word, bytes) else
               isinstance(word, str) and word.split(":")[0] == "cpu" for word in words)  # fmt: skip


def test_no_module_names_the_host() -> None:
    assert host_names("x.to('cpu'); f(device='cpu:0'); g(b'cpu'); {'cpu': machine['cpu']}; 'a cpu'") == 3
    found = Counter({
        str(path.relative_to(TOP)): host_names(path.read_text())
        for folder in ("worldsim", "envs", "bridges", "demos")
        for path in (TOP / folder).rglob("*.py")
        if path.resolve() == path
    })  # fmt: skip
    assert len(found) > 200
    assert +found == NAMED, "a tensor is made on the device of its batch or model"


class Caller:
    """An engine's threads, all of them the caller's: others do not know of the logical device."""

    def __init__(self, *settings: Any) -> None:
        """Start none."""

    def map(self, call: Callable[[Any], Any], items: list[Any]) -> Iterator[Any]:
        """Call for each item."""
        return map(call, items)

    def submit(self, call: Callable[..., Any], *args: Any) -> Caller:
        """Call when the result is asked for."""
        self.result = functools.partial(call, *args)
        return self

    def shutdown(self, wait: bool = True) -> None:
        """Stop none."""


def test_the_lint_sees_mistakes() -> None:
    with logical():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        assert there.device.type == "cuda" and here.device.type == "cpu"
        assert (2 * there).device == there.new_zeros(2).device == there[:2].device == there.device
        for mistake in (
            lambda: there + here,
            lambda: torch.cat([there, here]),
            lambda: here[there.long()],
            lambda: torch.nn.functional.linear(there, here[None]),
            lambda: there.add_(here),
            lambda: there.numpy(),
            lambda: torch.zeros(3, device=torch.device("cuda")) + here,
        ):
            with pytest.raises(WrongDevice):
                mistake()
        assert (there + here.to(there)).device == (there + here.to("cuda")).device == there.device
        assert (there.cpu() + here).device == (there.to("cpu") + here).device == here.device
        assert (there * torch.tensor(2.0)).device == there.device  # a number, on any device
        layer = torch.nn.Linear(3, 3).to("cuda")
        layer(there).sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.device == there.device
        with pytest.raises(WrongDevice):
            layer(here)


@NO_CUDA
@pytest.mark.parametrize("objective", ["energy", "flow", "ddpm"])
def test_training(objective: str, dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """Steps with long segments, self-rollouts and errors, a sample grid, and going on from a checkpoint."""
    config = tiny_dynamics(
        dataset, autoencoder_run, tmp_path, steps=4, objective=objective, long_frames=8, long_every=2, error_prob=0.5
    )
    task, _, _, autoencoder = prepare(config)
    with logical() as marks:
        task.module.to("cuda")
        autoencoder.to("cuda")  # which decodes for the sample grid
        assert torch.isfinite(latent_metric(autoencoder, task.data.latents[:2])).all()
        trainer = Trainer(task, config.trainer, tmp_path)
        for _ in range(3):
            trainer.train_step()
        trainer.draw()
        trainer.save()
        again = Trainer(task, config.trainer, tmp_path)
        assert again.step == 3
        again.train_step()
        assert all(map(marks.has, task.module.parameters())) and all(map(marks.has, again.ema.values()))


def test_play(world: World) -> None:
    with logical() as marks:
        world.dynamics.to("cuda")
        simulator = Simulator.of(world)
        state = simulator.begin([1, 2], [world.book.encode(text) for text in ("", "a cart")])
        state.guidance = [1.0, 2.0]
        outcome = simulator.step(state, None)
        outcome = simulator.step(state, torch.zeros(2, world.codec.size))
        assert marks.has(outcome.latents) and marks.has(outcome.keys)
        simulator.observe(state, outcome.latents, torch.zeros(2, world.codec.size))


def trains_alike(task: Task, config: TrainerConfig, folder: Path, losses: list[dict[str, float]], marks: Marks) -> None:
    """Train on the device: three steps, a sample grid and checkpoint after two, have the `losses` of the host."""
    task.module.to("cuda")
    trainer = Trainer(task, config, folder)
    assert [trainer.train_step() for _ in range(2)] == losses[:2]
    trainer.draw()
    trainer.save()
    trainer = Trainer(task, config, folder)
    assert [trainer.train_step()] == losses[2:]
    assert all(map(marks.has, task.module.parameters())) and all(map(marks.has, trainer.ema.values()))


@NO_CUDA
def test_autoencoder(dataset: Dataset, tmp_path: Path) -> None:
    """Steps, a sample grid, going on from a checkpoint, statistics and files: the numbers are those of the host."""
    config = tiny_autoencoder(dataset, tmp_path / "run")
    config = dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, bf16=False))
    (task, trainer), (other, _) = (prepare_autoencoder(config) for _ in range(2))
    losses = [trainer.train_step() for _ in range(3)]
    frames = task.frames.evenly(8)
    task.module.set_statistics(*latent_statistics(task.module, frames))
    with logical() as marks:
        trains_alike(other, config.trainer, tmp_path, losses, marks)
        other.module.set_statistics(*latent_statistics(other.module, frames))
        save_run(other.module, tmp_path)
        data = LatentData.encode(dataset, "heldout", other.module)
        assert not any(marks.has(part) for part in vars(data).values() if isinstance(part, torch.Tensor))
    assert load_run(tmp_path).fingerprint() == task.module.fingerprint()
    assert torch.equal(data.latents, LatentData.encode(dataset, "heldout", task.module).latents)


@NO_CUDA
def test_unet(dataset: Dataset, world: World, tmp_path: Path) -> None:
    """Steps, a sample grid, going on from a checkpoint, and play: the numbers are those of the host."""
    config = tiny_baseline(dataset, tmp_path / "run")
    settings = dataclasses.replace(config.trainer, bf16=False, matmul="highest")
    config = dataclasses.replace(config, trainer=settings)
    (_, trainer), (task, _) = (prepare_baseline(config) for _ in range(2))
    losses = [trainer.train_step() for _ in range(3)]
    segments = cut(dataset.read("train"), dataset.action_space, 2, context_of(world), 2, np.random.default_rng(1))
    with logical() as marks:
        trains_alike(task, config.trainer, tmp_path, losses, marks)
        drawn = UNetRunner(task.module, world).free(segments, recorded(segments))
    assert not marks.has(drawn)
    assert torch.equal(drawn, UNetRunner(task.module, world).free(segments, recorded(segments)))


@pytest.fixture
def chunked(world: World) -> World:
    """A world whose latents stand for four frames each, of random weights."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    model: Any = AutoencoderKLWan(base_dim=8, z_dim=4, dim_mult=[1, 2, 2], num_res_blocks=1,
                                  temperal_downsample=[True, True])  # fmt: skip
    autoencoder = ClipAutoencoder(model)
    stride, old = autoencoder.temporal_stride, world.dynamics.config
    config = dataclasses.replace(
        old, latent_size=(10, 10), frames_per_latent=stride, action_size=stride * old.action_size
    )
    card = dataclasses.replace(world.card, latent_mean=[0.0] * 4, latent_std=[1.0] * 4)
    return World(card, autoencoder, config.build(), world.book, world.starts)


@pytest.mark.parametrize("kind", ["world", "chunked"])
def test_engine(kind: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Starts, batches, guidance, given frames, forks, snapshots, also in a file: the frames are those of the host."""
    world: World = request.getfixturevalue(kind)
    monkeypatch.setattr("worldsim.threads.ThreadPoolExecutor", Caller)

    def play(engine: Engine) -> list[StepResult]:
        first = engine.open_all([SessionSpec(**opening) for opening in OPENINGS])
        shown = [engine.sessions[number].as_step(engine.sessions[number].frame) for number in first]
        shown += [step for steps in engine.play({number: [0, 1, 1] for number in first}).values() for step in steps]
        if kind == "world":  # others take no single frames
            shown.append(engine.observe(first[0], 1, shown[0].frame))
        engine.snapshot(first[2]).save(tmp_path / "session")
        others = [engine.fork(number, seed=5) for number in first]
        others.append(engine.restore(engine.snapshot(first[3], share=False)))
        others.append(engine.restore(Snapshot.load(tmp_path / "session")))
        engine.set_prompt(others[0], "a cart")
        for _ in range(5):
            shown += engine.step(dict.fromkeys(others, 1)).values()
        return shown

    settings: dict[str, Any] = {"exact": False, "memory_mb": 4, "threads": 1}
    here = play(Engine(world, **settings))
    with logical() as marks:
        world.dynamics.to("cuda")
        world.autoencoder.to("cuda")
        engine = Engine(world, **settings)
        there = play(engine)
        assert all(map(marks.has, (engine.table.pool.keys, engine.table.pool.values, engine.table.pool.latents)))
        assert all(marks.has(session.actions) for session in engine.sessions.values())
    assert len(here) == len(there) > 20 and np.ptp([step.frame for step in here], axis=0).any()
    for one, other in zip(here, there, strict=True):
        assert np.array_equal(one.frame, other.frame)
        assert (one.reward, one.ended, one.step) == (other.reward, other.ended, other.step)


def test_evaluation(dataset: Dataset, world: World) -> None:
    """Free and forced runs and starts from prompts give frames on the host, those that they give there."""
    segments = cut(dataset.read("train"), dataset.action_space, 2, context_of(world), 2, np.random.default_rng(1))

    def frames() -> list[torch.Tensor]:
        runner = Runner(world)
        free = runner.free(segments, recorded(segments))
        return [free, *runner.forced(segments, segments.taken), runner.from_prompts(["a cart"], 2)]

    here = frames()
    with logical() as marks:
        world.dynamics.to("cuda")
        world.autoencoder.to("cuda")
        there = frames()
        assert not any(map(marks.has, there))
    assert all(map(torch.equal, here, there))


def test_clips(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    task, *_ = prepare(tiny_dynamics(dataset, autoencoder_run, tmp_path, objective="flow"))
    clips, index = task.val.latents[:5].float().unsqueeze(0), torch.zeros(1, 5, dtype=torch.long)
    text = TextContext.of([task.book.encode("a cart")], task.config.model.text_tokens, index)
    here = sample_clips(task.module, clips, given_frames(5, 1), text, steps=2)
    with logical() as marks:
        there = sample_clips(task.module.to("cuda"), clips.to("cuda"), given_frames(5, 1), text, steps=2)
        assert marks.has(there)
    assert torch.equal(here, there)


def test_agent(dreamer: AgentConfig) -> None:
    """Choices and values of an agent are those of the host."""
    from worldsim.agents.agent import Agent

    frames = np.random.default_rng(1).integers(256, size=(4, 2, 40, 40, 3), dtype=np.uint8)

    def play(agent: Agent) -> list[np.ndarray]:
        agent.begin(2, seed=3)
        found = [agent.act(part, np.zeros(2, bool)) for part in frames]
        return [*found, agent.value(agent.look(frames[0], np.zeros(2, bool)))]

    agent = Agent.load(dreamer.folder(), greedy=False)
    here = play(agent)
    with logical():
        agent.policy.to("cuda")
        there = play(agent)
    assert all(map(np.array_equal, here, there))
