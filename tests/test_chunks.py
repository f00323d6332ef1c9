"""An autoencoder with a stride in time: a tiny real Wan, dynamics on its latents, and play by chunks of four frames."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tiny import tiny_dynamics

from worldsim.cli import main
from worldsim.data.chunks import chunks_of
from worldsim.data.episodes import Dataset, Episode, read_episode
from worldsim.data.latents import LatentData
from worldsim.data.record import RecordConfig, record
from worldsim.engine.engine import Engine
from worldsim.engine.session import Snapshot
from worldsim.engine.simulator import Simulator
from worldsim.envs.world_env import WorldEnv
from worldsim.errors import ConfigError, InputError, RuntimeUnavailable, SnapshotMismatch, WorldError
from worldsim.evaluation.rollout import Runner
from worldsim.models.autoencoder_files import load_autoencoder, load_pretrained
from worldsim.models.clip_autoencoder import ClipAutoencoder
from worldsim.models.dit import DiTConfig
from worldsim.training.autoencoder import AutoencoderTraining, load_run, train_autoencoder
from worldsim.training.run import train_dynamics
from worldsim.training.trainer import TrainerConfig
from worldsim.world import World

STRIDE, STEPS = 4, 58  # two steps fill no chunk
RIGHT, LEFT = 2, 0


class Slider(gym.Env):
    """A bright square on a plain ground, which moves left, not, or right; a reward at the right wall."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}
    action_space = spaces.Discrete(3)
    observation_space = spaces.Box(0, 255, (16, 16, 3), np.uint8)

    def __init__(self, render_mode="rgb_array"):
        self.render_mode = render_mode

    def render(self):
        frame = np.full((16, 16, 3), (30, 60, 90), np.uint8)
        frame[6:10, self.x : self.x + 4] = (240, 220, 60)
        return frame

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.count = int(self.np_random.integers(3, 10)), 0
        return self.render(), {}

    def step(self, action):
        self.x, self.count = int(np.clip(self.x + int(action) - 1, 0, 12)), self.count + 1
        return self.render(), float(self.x == 12), self.count >= STEPS, False, {}


def _slider(**settings: Any) -> gym.Env:
    return Slider(**settings)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dataset]:
    """A recording of the slider at 16x16."""
    gym.register("Slider-v0", _slider)
    out = tmp_path_factory.mktemp("data") / "slider"
    yield record(RecordConfig(game="Slider-v0", out=out, frames=3000, workers=1, frame_size=(16, 16)))
    del gym.registry["Slider-v0"]


@pytest.fixture(scope="module")
def wan(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan of diffusers, trained until the square is where it should be, in diffusers' own folder."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model: Any = AutoencoderKLWan(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    episodes = [read_episode(path).frames for path in dataset.episodes()]
    rng, steps, optimizer = np.random.default_rng(0), 180, torch.optim.AdamW(model.parameters(), 1e-2, (0.9, 0.95))
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 1e-2 * min(1, (step + 1) / 20, 2.5 * (steps - step) / steps)
        places = [(rng.integers(len(episodes)), rng.integers(STEPS - STRIDE)) for _ in range(4)]
        clips = np.stack([episodes[e][b : b + 1 + STRIDE] for e, b in places])
        pixels = torch.from_numpy(clips).permute(0, 4, 1, 2, 3).float() / 127.5 - 1
        loss = (model.decode(model.encode(pixels).latent_dist.mode()).sample - pixels).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    path = tmp_path_factory.mktemp("wan")
    model.eval().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def run(dataset: Dataset, wan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the autoencoder, as the command line makes it."""
    out = tmp_path_factory.mktemp("run")
    assert main(["train", "autoencoder", str(dataset.path), "--pretrained", str(wan), "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def path(dataset: Dataset, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A world after 300 steps."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("dynamics")
    shape = {"width": 48, "heads": 3, "pattern": "sts", "text_layers": (0,)}
    trainer = TrainerConfig(
        steps=300, warmup=10, cooldown=100, learning_rate=2e-3, ema=0.98, matmul="highest", log_every=50
    )
    train_dynamics(
        tiny_dynamics(
            dataset,
            run,
            out,
            objective="flow",
            model=DiTConfig(**shape, history=2, action_history=2, context=4),
            trainer=trainer,
            segments=8,
            rollout_segments=1,
            rollout_start=200,
        )
    )
    return out / "world"


@pytest.fixture
def world(path: Path) -> World:
    """The same world, without ends, so that play goes on."""
    world = World.from_pretrained(path, dtype=torch.float32)
    _end_bias(world, [-20.0] * STRIDE)
    return world


@pytest.mark.parametrize(
    ("steps", "terminated", "latents", "counted"),
    [(8, True, 3, 8), (10, False, 3, 8), (10, True, 4, 10), (3, True, 2, 3), (3, False, 1, 0), (0, False, 1, 0)],
)
def test_steps_become_chunks(steps: int, terminated: bool, latents: int, counted: int) -> None:
    """A last chunk that is not full is left out, but where the episode ends in it."""
    ends = np.zeros(steps, bool)
    ends[-1:] = terminated
    episode = Episode(
        frames=np.arange(steps + 1, dtype=np.uint8)[:, None, None, None].repeat(3, axis=3),
        actions=np.arange(steps),
        rewards=1 + np.arange(steps, dtype=np.float32),
        terminated=ends,
        truncated=np.zeros(steps, bool),
        prompt_index=np.zeros(steps + 1, np.int32),
        prompts=[{"text": ""}],
    )
    actions = torch.arange(1.0, 1 + 2 * steps).view(steps, 2)
    chunks = chunks_of(episode, actions, STRIDE)
    assert chunks.frames.shape[0] == 1 + (latents - 1) * STRIDE
    assert chunks.frames[:, 0, 0, 0].tolist() == [min(i, steps) for i in range(len(chunks.frames))]
    assert chunks.actions.shape == (latents, 2 * STRIDE) and not chunks.actions[0].any()
    assert chunks.actions[1:].flatten().tolist()[: 2 * counted] == actions[:counted].flatten().tolist()
    assert chunks.known.sum() == counted and chunks.rewards.sum() == sum(range(counted + 1))
    assert chunks.terminated.sum() == float(terminated)
    assert chunks.last.tolist() == [min(STRIDE * i, steps) for i in range(latents)]
    single = chunks_of(episode, actions, 1)
    assert single.rewards.tolist() == [0, *episode.rewards] and single.known.tolist() == [0] + [1] * steps
    assert single.frames.shape[0] == len(single.last) == steps + 1


def test_the_stride_is_found_and_kept(wan: Path, run: Path, dataset: Dataset) -> None:
    given, loaded = load_pretrained(wan), load_run(run)
    assert isinstance(loaded, ClipAutoencoder) and given.temporal_stride == loaded.temporal_stride == STRIDE
    frames = torch.from_numpy(read_episode(dataset.episodes("heldout")[0]).frames[:17])
    latents = loaded.encode_clip(frames)
    assert latents.shape == (5, 4, 4, 4) and latents.std() == pytest.approx(1, abs=0.6)
    torch.testing.assert_close(loaded.encode_clip(frames[:9]), latents[:3], atol=1e-4, rtol=1e-4)  # causal
    decoded = loaded.decode_clip(latents)
    assert decoded.shape == frames.shape
    assert (decoded.float() - frames.float()).square().mean() < 0.3 * frames.float().var()
    torch.testing.assert_close(loaded.decode_clip(latents[:3]).int(), decoded[:9].int(), atol=1, rtol=0)
    assert torch.equal(loaded.decode(latents[:2])[0], loaded.decode_clip(latents[:1])[0])  # frames alone


def test_what_is_no_autoencoder_is_refused(tmp_path: Path, wan: Path) -> None:
    with pytest.raises(WorldError, match="cannot load the autoencoder"):
        load_pretrained(tmp_path / "nothing")
    config = (wan / "config.json").read_text().replace("AutoencoderKLWan", "UNet2DModel")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(WorldError, match="names the autoencoder class 'UNet2DModel'"):
        load_pretrained(tmp_path)


@pytest.mark.parametrize("said", [0, 2, "4", -4])
def test_a_card_with_another_stride_is_refused(run: Path, said: Any) -> None:
    card = json.loads((run / "autoencoder.json").read_text()) | {"temporal_stride": said}
    with pytest.raises(WorldError, match="stands for"):
        load_autoencoder(card, card["mean"], card["std"], run / "autoencoder")


def test_frames_that_do_not_fit_are_refused(wan: Path, tmp_path: Path) -> None:
    data = record(RecordConfig(game="CartPole-v1", out=tmp_path / "d", frames=200, workers=1, frame_size=(18, 18)))
    with pytest.raises(ConfigError, match="record with --frame-size 16 16"):
        train_autoencoder(AutoencoderTraining(data=data.path, out=tmp_path / "a", pretrained=str(wan)))


def test_a_world_beats_copying(path: Path, dataset: Dataset) -> None:
    """The next latent on held-out episodes, from true ones and the four actions between."""
    world = World.from_pretrained(path, dtype=torch.float32)
    val, simulator = LatentData.encode(dataset, "heldout", world.autoencoder), Simulator.of(world)
    errors = {"model": [], "copy": [], "no action": []}
    for first in val.first.unique().tolist():
        state = simulator.begin([first], [world.book.encode("")])
        simulator.observe(state, val.latents[first : first + 1].float(), None)
        for row in range(first + 1, int(val.last[first]) + 1):
            truth, before = val.latents[row : row + 1].float(), val.latents[row - 1 : row].float()
            for name, actions in (("model", val.actions[row : row + 1]), ("no action", torch.zeros(1, 3 * STRIDE))):
                drawn = simulator.step(dataclasses.replace(state), actions).latents
                errors[name].append(float((drawn - truth).square().mean()))
            errors["copy"].append(float((before - truth).square().mean()))
            simulator.observe(state, truth, val.actions[row : row + 1])
    found = {name: float(np.mean(values)) for name, values in errors.items()}
    assert found["model"] < 0.5 * found["copy"] and found["model"] < 0.6 * found["no action"], found


def test_frames_are_shown_one_a_step(world: World) -> None:
    """What a step shows is three steps old; a session shows the frame it began with until then."""
    engine = Engine(world, threads=1)
    start = world.starts[0]
    number = engine.open(seed=1, start=0)
    age = engine.sessions[number].step
    assert age % STRIDE == 1 and np.array_equal(engine.sessions[number].frame, start["frames"][age - 1])
    steps = [engine.step({number: RIGHT})[number] for _ in range(3 * STRIDE)]
    assert [step.step for step in steps] == list(range(age + 1, age + 1 + 3 * STRIDE))
    for step in steps[: STRIDE - 1]:
        assert np.array_equal(step.frame, start["frames"][age - 1]) and step.reward == step.ended == 0
    shown = {step.frame.tobytes() for step in steps[STRIDE - 1 :]}
    assert len(shown) > STRIDE  # not one frame a chunk
    # The square moves as the keys say, three steps later.
    begun, ends = _place(start["frames"][age - 1]), {}
    for action in (LEFT, RIGHT):
        session = engine.open(seed=1, start={name: start[name] for name in ("frames", "actions")})
        frames = [engine.step({session: action})[session].frame for _ in range(3 * STRIDE)]
        ends[action] = _place(frames[-1])
    assert ends[LEFT] < begun - 0.5 or ends[RIGHT] > begun + 0.5, (begun, ends)
    assert ends[LEFT] + 2 < ends[RIGHT], (begun, ends)


@pytest.mark.parametrize("buckets", [None, (3,)])
def test_batch_equals_singles(world: World, buckets: tuple[int, ...] | None) -> None:
    """Sessions at different places of their chunks have the bits that they have alone."""
    together, alone = (Engine(world, threads=1, isolated=one and not buckets, buckets=buckets) for one in (False, True))
    rng = np.random.default_rng(5)
    pairs = []
    for seed in range(5):
        spec = {"seed": seed, "prompt": "" if seed == 3 else None}
        pair = together.open(**spec), alone.open(**spec)
        pairs.append(pair)
        for _ in range(seed):  # out of step with the others
            together.step({pair[0]: 1})
            alone.step({pair[1]: 1})
    for _ in range(2 * STRIDE + 1):
        actions = rng.integers(0, 3, len(pairs)).tolist()
        both = together.step(dict(zip((a for a, _ in pairs), actions, strict=True)))
        single = {b: alone.step({b: action})[b] for (_, b), action in zip(pairs, actions, strict=True)}
        for a, b in pairs:
            assert np.array_equal(both[a].frame, single[b].frame)
            assert (both[a].reward, both[a].ended, both[a].step) == (single[b].reward, single[b].ended, single[b].step)


def test_threads_do_not_matter(world: World) -> None:
    """Diffusers keeps what a causal convolution has seen in the model; sessions of other threads must not meet it."""
    shown = []
    for threads in (1, 4):
        engine = Engine(world, threads=threads)
        numbers = [engine.open(seed=seed) for seed in range(4)]
        turns = [engine.step(dict.fromkeys(numbers, RIGHT)) for _ in range(3 * STRIDE)]
        shown.append([steps[number].frame for steps in turns for number in numbers])
    assert all(np.array_equal(a, b) for a, b in zip(*shown, strict=True))


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("chunk", None),
        ("chunk.actions", torch.zeros(STRIDE, 3)),
        ("chunk.actions", torch.zeros(1, 5)),
        ("chunk.frames", np.zeros((1, 7, 7, 3), np.uint8)),
        ("chunk.frames", np.zeros((1, 16, 16, 3))),
        ("chunk.rewards", torch.zeros(3)),
        ("frame", np.zeros((3, 3, 3), np.uint8)),
        ("actions", torch.zeros(1, 1)),
        ("step", "5"),
    ],
)
def test_strange_snapshots_are_refused(world: World, tmp_path: Path, part: str, value: Any) -> None:
    """A file with parts that no session has: nothing opens, and the others step on."""
    engine = Engine(world, threads=1)
    number = engine.open(seed=2)
    for _ in range(STRIDE + 1):
        engine.step({number: RIGHT})
    snapshot = engine.snapshot(number, share=False)
    name, _, inner = part.partition(".")
    if inner:
        assert snapshot.session.chunk is not None
        value = dataclasses.replace(snapshot.session.chunk, **{inner: value})
    strange = Snapshot(dataclasses.replace(snapshot.session, **{name: value}), snapshot.belongs, None, snapshot.memory)
    used = engine.table.pool.used
    with pytest.raises(SnapshotMismatch):
        engine.restore(strange)
    assert engine.table.pool.used == used and list(engine.sessions) == [number]
    engine.step({number: RIGHT})


@pytest.mark.parametrize("taken", [0, 1, STRIDE, STRIDE + 3])
def test_snapshots_hold_what_is_between_two_latents(world: World, tmp_path: Path, taken: int) -> None:
    engine = Engine(world, threads=1)
    number = engine.open(seed=2)
    for _ in range(taken):
        engine.step({number: RIGHT})
    engine.snapshot(number).save(tmp_path / "snapshot")
    fork = engine.fork(number)
    other = Engine(world, threads=1)
    moved = other.restore(Snapshot.load(tmp_path / "snapshot"))
    actions = [LEFT, RIGHT, RIGHT, 1, LEFT, LEFT, 1]
    here = engine.play({number: actions, fork: actions})
    there = other.play({moved: actions})
    for a, b, c in zip(here[number], here[fork], there[moved], strict=True):
        assert np.array_equal(a.frame, b.frame) and np.array_equal(a.frame, c.frame)
        assert (a.reward, a.ended, a.step) == (b.reward, b.ended, b.step) == (c.reward, c.ended, c.step)


def test_it_is_an_environment(path: Path) -> None:
    """The Gymnasium environment plays it, replays it, and hands out the reward with its frame."""
    env = WorldEnv(str(path))
    for _ in range(2):
        first, _ = env.reset(seed=3)
        frames = [first] + [env.step(RIGHT)[0] for _ in range(6)]
        again, _ = env.reset(seed=3)
        assert np.array_equal(again, first)
        assert all(np.array_equal(env.step(RIGHT)[0], frame) for frame in frames[1:])
    env.close()


def test_rewards_and_ends_come_with_their_frames(world: World) -> None:
    """At the right wall there is a reward; an end waits until its frame is shown."""
    engine = Engine(world, threads=1)
    number = engine.open(seed=1, start=0)
    steps = [engine.step({number: RIGHT})[number] for _ in range(24)]
    rewards = {
        side: [s.reward for s in steps[STRIDE - 1 :] if (_place(s.frame) > 12.5) == side] for side in (True, False)
    }
    assert rewards[True] and np.mean(rewards[True]) > np.mean(rewards[False] or [0.0])
    _end_bias(world, [-40.0, -40.0, 60.0, -40.0])
    ending = Engine(world, threads=1)
    number = ending.open(seed=1, start=0)
    ends = [ending.step({number: 1})[number].terminated for _ in range(2 * STRIDE)]
    assert [i for i, end in enumerate(ends) if end] == [STRIDE + 1]  # the third frame of the first chunk


def test_what_takes_single_frames_refuses_it(world: World, dataset: Dataset) -> None:
    engine = Engine(world, threads=1)
    number = engine.open(seed=1)
    with pytest.raises(InputError, match="stand for 4 frames"):
        engine.observe(number, 1, engine.sessions[number].frame)
    with pytest.raises(RuntimeUnavailable, match="'eager'"):
        Engine(world, runtime="compiled")
    with pytest.raises(ConfigError, match="one frame a latent"):
        Runner(world)
    with pytest.raises(WorldError, match="not of one world"):
        other = load_pretrained(world.path / "autoencoder")  # type: ignore[operator]
        other.temporal_stride = 2
        World(world.card, other, world.dynamics, world.book)


def _end_bias(world: World, more: list[float]) -> None:
    """Make an end likelier, or not, in each of the frames of a latent."""
    bias = dict(world.dynamics.named_parameters())["heads.termination.2.bias"]
    with torch.no_grad():
        bias += torch.tensor(more)


def _place(frame: np.ndarray) -> float:
    """The middle of what is yellow, in columns; the mean column where nothing is."""
    yellow = np.clip(frame[6:10, :, 0].astype(float).mean(0) - 90, 0, None)
    return float((yellow * np.arange(16)).sum() / yellow.sum()) if yellow.sum() else 7.5
