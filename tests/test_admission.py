"""What is admitted at the door goes the whole way: recorded, trained, exported, opened, stepped, hosted, learned in.

What cannot is refused at the first door, by an error of ours that says what is allowed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tiny import tiny_autoencoder, tiny_dynamics

import worldsim.envs
import worldsim.world
from worldsim.data import admission, card
from worldsim.data.admission import check_space, read_prompt, read_reward
from worldsim.data.card import FILE, DatasetCard
from worldsim.data.episodes import Dataset, read_episode
from worldsim.data.frames import is_picture
from worldsim.data.importing import importing, make_card
from worldsim.data.latents import LatentData
from worldsim.data.record import RecordConfig, record
from worldsim.errors import DataError, WorldsimError
from worldsim.spaces import ActionCodec, space_from_json, space_to_json
from worldsim.training.autoencoder import train_autoencoder
from worldsim.training.run import train_dynamics


class Odd(gym.Env):
    """A square that moves; action space, infos, rewards and observations as a row of the table has them."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode: str | None = None, space: Any = None, **row: Any) -> None:
        self.render_mode, self.row = render_mode, row
        self.action_space = spaces.Discrete(3) if space is None else space
        self.observation_space = row.get("observes", spaces.Box(0, 255, (32, 32, 3), np.uint8))
        if "keys" in row:
            self.get_keys_to_action = lambda: row["keys"]
        if "breaks" in row:
            raise row["breaks"]

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), self.row.get("info", {})

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.steps += 1
        if "exits" in self.row:
            raise SystemExit("no licence")
        ended = self.steps == 14
        return self._observation(), self.row.get("reward", 1.0), ended, False, self.row.get("info", {})

    def render(self) -> Any:
        frame = np.full((32, 32, 3), 40, np.uint8)
        frame[10:14, self.steps : self.steps + 4] = (240, 200, 60)
        return frame

    def _observation(self) -> Any:
        shape = self.observation_space.shape or ()
        return self.render() if shape == (32, 32, 3) else np.full(shape, 7, self.observation_space.dtype)


def odd(name: str, **row: Any) -> str:
    """Register a row's environment; return its id."""
    gym.registry.pop(f"Odd{name}-v0", None)
    gym.register(f"Odd{name}-v0", entry_point=lambda **more: Odd(**more, **row), max_episode_steps=30)
    return f"Odd{name}-v0"


BIG = np.finfo(np.float64).max


def F32(values: Any) -> Any:  # noqa: N802 -- a type's name
    return np.array(values, np.float32)


BOX: Any = spaces.Box
DICT: Any = spaces.Dict
ROWS: dict[str, dict[str, Any]] = {
    "nested": {
        "space": DICT({"a": DICT({"b": spaces.Discrete(2), "c.d": BOX(-1, 1, (2,))}), "e": spaces.MultiBinary(3)}),
        "size": (13, 22), "info": {"prompt": "a square", "labels": {"x": np.int64(3), "y": [1, "b"]}},
    },
    "dict": {
        "space": DICT({"a": spaces.Discrete(2), "camera": BOX(-9, 9, (2,)), "e": spaces.MultiBinary(3)}),
        "size": (13, 22), "info": {"prompt": "a square"},
    },
    "half": {"space": BOX(F32([0, -np.inf]), F32([np.inf, 1])), "size": (7, 7), "reward": np.array([2])},
    "scalar": {"space": BOX(-1, 1, (), np.float16), "size": (1, 64), "info": {"prompt": None}},
    "binary": {"space": spaces.MultiBinary([2, 3]), "size": (84, 84), "info": {"prompt": "snow \u2744" * 40}},
    "multi": {"space": spaces.MultiDiscrete(np.array([[3, 2], [4, 5]])), "size": (17, 9), "reward": np.bool_(True)},
    "start": {"space": spaces.Discrete(4, start=-2), "size": (16, 24)},
    "one": {"space": spaces.Discrete(1), "size": (50, 70)},
    "wide": {"space": BOX(-1e6, 1e6, (2,), np.float64), "size": (33, 8)},
    "uint8": {"space": BOX(0, 255, (2,), np.uint8), "size": (20, 20)},
    "degenerate": {"space": BOX(F32([0, 1]), F32([0, 2])), "size": (8, 8)},
    "symbols": {"observes": BOX(0, 255, (7, 7, 3), np.uint8), "size": (16, 16)},
    "floats": {"observes": BOX(0, 1, (32, 32), np.float32), "size": (16, 16)},
    "keyed": {"keys": {("a",): 0, ("d",): 2}, "size": (16, 16)},
}  # fmt: skip
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "many": ({"space": spaces.Discrete(100_000)}, "an action would be 100000 numbers; allowed: 1 to 16384"),
    "huge": ({"space": spaces.Discrete(2**40)}, "allowed: 1 to 16384"),
    "tuple": ({"space": spaces.Tuple([spaces.Discrete(2)])}, "allowed: Discrete, MultiDiscrete"),
    "text": ({"space": spaces.Text(5)}, "allowed: Discrete, MultiDiscrete"),
    "numbered": ({"space": DICT({0: spaces.Discrete(2)})}, "named 0; allowed: strings"),
    "empty": ({"space": BOX(-1, 1, (0,))}, "0 numbers; allowed: 1 to"),
    "largest": ({"space": BOX(-BIG, BIG, (2,), np.float64)}, r"bounds of 1.8e\+308; allowed: up to 1e\+09"),
    "within": ({"space": DICT({"x": BOX(-1e30, 1, (2,))})}, r"space\['x'\] has bounds of 1e\+30"),
    "nan": ({"reward": float("nan")}, "episode 0 of seed 0: the reward is nan; allowed: one finite number"),
    "infinite": ({"reward": float("inf")}, "the reward is inf"),
    "none": ({"reward": None}, "the reward is None"),
    "two": ({"reward": np.ones(2)}, "the reward is array"),
    "dict": ({"info": {"prompt": {"task": "x"}}}, r"info\['prompt'\] is dict .* allowed: text"),
    "bytes": ({"info": {"prompt": b"x"}}, r"info\['prompt'\] is bytes"),
    "list": ({"info": {"prompt": ["a"]}}, r"info\['prompt'\] is list"),
    "half-a-character": ({"info": {"prompt": "\ud800"}}, "surrogates"),
    "endless": ({"info": {"prompt": "x" * 10_001}}, "10001 characters; allowed: 10000"),
    "labels": ({"info": {"labels": np.arange(3)}}, r"info\['labels'\] is ndarray"),
    "label": ({"info": {"labels": {"x": np.arange(3)}}}, "the label 'x' is ndarray"),
    "label-nan": ({"info": {"labels": {"x": float("nan")}}}, "the label 'x' is float"),
    "exits": ({"exits": True}, "OddExits-v0 failed in episode 0 of seed 0: SystemExit: no licence"),
    **{
        f"breaks-{type(error).__name__.lower()}": ({"breaks": error}, "cannot make the environment '.*': " + says)
        for error, says in [
            (AttributeError("no attribute bool8"), "AttributeError: no attribute"),
            (OSError("libOSMesa.so.8: cannot open"), "OSError: libOSMesa"),
            (RuntimeError("could not create\n a context"), "RuntimeError: could not create a context"),
            (KeyError("UNREAL_PATH"), "KeyError: 'UNREAL_PATH'"),
            (AssertionError("license key"), "AssertionError: license key"),
            (SystemExit("please install the game"), "SystemExit: please install"),
        ]
    },
}


def recording(name: str, folder: Path, frames: int = 180, **row: Any) -> Dataset:
    size = row.pop("size", (16, 16))
    config = RecordConfig(game=odd(name.title(), **row), out=folder, frames=frames, workers=1, frame_size=size)
    return record(config)


@pytest.mark.parametrize("name", ROWS)
def test_what_is_recorded_is_whole(tmp_path: Path, name: str) -> None:
    row = ROWS[name]
    dataset = recording(name, tmp_path / "d", 20, **row)
    episodes = dataset.read()
    assert all(episode.frames.shape[1:3] == row["size"] and np.isfinite(episode.rewards).all() for episode in episodes)
    assert dataset.action_space == row.get("space", spaces.Discrete(3))
    shown = Odd(render_mode="rgb_array")
    shown.steps = 0
    if row["size"] == (16, 16):  # a picture, not symbols
        assert abs(float(episodes[0].frames[0].mean()) - float(shown.render().mean())) < 1
    assert dataset.card.keys == ({"": 1, "a": 0, "d": 2} if name == "keyed" else {})


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_go_the_whole_way_is_refused_at_the_door(tmp_path: Path, name: str) -> None:
    row, says = REFUSED[name]
    with pytest.raises(WorldsimError, match=says) as error:
        recording(name, tmp_path / "d", **row)
    assert "\n" not in str(error.value)
    assert not list((tmp_path).glob("d/*/*")), "nothing is left of the episode"


def the_whole_way(tmp_path: Path, name: str) -> None:
    """Record, train, export, open, step, host, learn."""
    from hosting import hosting

    from worldsim.bridges.client import RemoteEngine
    from worldsim.engine.records import SessionSpec
    from worldsim.world import World

    row = ROWS[name]
    dataset = recording(name, tmp_path / "d", **row)
    train_autoencoder(tiny_autoencoder(dataset, tmp_path / "ae", steps=2))
    train_dynamics(tiny_dynamics(dataset, tmp_path / "ae", tmp_path / "dyn", steps=2, frames=4, rollout_start=1))
    path = tmp_path / "dyn" / "world"
    world = World.from_pretrained(path)
    assert tuple(world.card.frame_size) == row["size"] and world.action_space == dataset.action_space
    env = gym.make("worldsim/World-v0", world=str(path))
    try:
        first, _ = env.reset(seed=3)
        action = env.action_space.sample()
        frame, reward, *_ = env.step(action)
    finally:
        env.close()
    assert first.shape == frame.shape == (*row["size"], 3) and np.isfinite(float(reward))
    with hosting([path], tmp_path / "host") as host, contextlib.closing(RemoteEngine(host.address)) as engine:
        (session,) = engine.open_all([SessionSpec(seed=3)])
        assert engine.step({session: action})[session].frame.shape == frame.shape
    pytest.importorskip("stable_baselines3")
    from small_agents import small

    from worldsim.agents.training import train_agent

    config = small(f"Odd{name.title()}-v0", world=str(path), steps=16, out=tmp_path / "agent", runtime="eager")
    if isinstance(dataset.action_space, spaces.Dict) or min(row["size"]) < 20:
        with pytest.raises(WorldsimError, match="allowed: Discrete, Box|at least 20 x 20"):
            train_agent(config)
    else:
        assert train_agent(config).card.progress


def test_odd_actions_and_sizes_go_the_whole_way(tmp_path: Path) -> None:
    the_whole_way(tmp_path, "uint8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*maximum and minimum values are equal")
@pytest.mark.parametrize("name", ROWS)
def test_all_go_the_whole_way(tmp_path: Path, name: str) -> None:
    the_whole_way(tmp_path, name)


def test_dict_actions_and_padded_frames_open(tmp_path: Path) -> None:
    """The short way, without a host and an agent."""
    dataset = recording("dict", tmp_path / "d", **ROWS["dict"])
    train_autoencoder(tiny_autoencoder(dataset, tmp_path / "ae", steps=2))
    train_dynamics(tiny_dynamics(dataset, tmp_path / "ae", tmp_path / "dyn", steps=2, frames=4, rollout_start=1))
    env = gym.make("worldsim/World-v0", world=str(tmp_path / "dyn" / "world"))
    try:
        env.reset(seed=1)
        frame = env.step(env.action_space.sample())[0]
    finally:
        env.close()
    assert frame.shape == (13, 22, 3)


def test_the_door_is_no_wider_than_a_world() -> None:
    assert card.NAME.pattern == worldsim.world.NAME.pattern
    assert admission.LONGEST_PROMPT == worldsim.world.LONGEST


def test_an_import_has_the_same_door(tmp_path: Path) -> None:
    dataset = recording("start", tmp_path / "d", 20, **ROWS["start"])
    (episode,) = dataset.read(limit=1)
    about = make_card(name="x", frame_size=(16, 24), fps=10, space=dataset.action_space, keys={}, provenance={})
    wrong: list[dict[str, Any]] = [
        {"rewards": np.full_like(episode.rewards, np.nan)},
        {"rewards": episode.rewards[:-1]},
        {"actions": episode.actions + 9},
        {"actions": episode.actions[:-1]},
        {"frames": episode.frames[:, :8]},
        {"frames": episode.frames.astype(np.float32)},
        {"terminated": episode.terminated[:2]},
        {"prompt_index": episode.prompt_index + 1},
        {"prompt_index": episode.prompt_index.astype(float)},
        {"prompts": [{"text": 3}]},
        {"prompts": []},
        {"prompts": [{"text": "\udfff"}]},
    ]
    for changes in wrong:
        with pytest.raises(DataError, match="episode 0 cannot be imported"), importing(tmp_path / "i", about) as new:
            new.add(dataclasses.replace(episode, **changes))
        assert not list(tmp_path.glob("i*")), "nothing is left behind"


HOSTILE: list[Any] = [
    None, True, 0, -1, 2**70, 0.5, 1e300, float("nan"), float("inf"), "", "x" * 300, "../x", "\x1b[2J", "\ud800",
    b"x", [], [0], [[0]], {}, {"type": "dict", "spaces": {}}, np.float32(3), np.arange(3), object(),
]  # fmt: skip
JSON = [value for value in HOSTILE if isinstance(value, type(None) | bool | int | float | str | list | dict)]
anything = st.one_of(st.sampled_from(HOSTILE), st.floats(), st.text(max_size=5), st.binary(max_size=5))


@settings(max_examples=200, deadline=None)
@given(anything)
def test_whatever_a_game_gives_is_read_or_refused(value: Any) -> None:
    for read in (read_reward, lambda v: read_prompt({"prompt": v}), lambda v: read_prompt({"labels": v})):
        try:
            found = read(value)
        except DataError as error:
            assert "allowed" in str(error)
        else:
            json.dumps(found, allow_nan=False).encode()


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["name", "frame_size", "fps", "action_space", "keys", "notices", "recipe", "provenance"]),
    st.one_of(
        st.sampled_from(JSON),
        st.recursive(
            st.integers() | st.text(max_size=3),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
        ),
    ),
)
def test_a_hostile_card_is_read_or_refused(field: str, value: Any) -> None:  # fmt: skip
    good = {"format": "worldsim-episodes", "format_version": 1, "name": "x", "frame_size": [4, 5], "fps": 10,
            "action_space": space_to_json(spaces.Discrete(3))}  # fmt: skip
    try:
        found = DatasetCard.of({**good, field: value}, "the card")
    except DataError as error:
        assert str(error).startswith("the card is damaged") and len(str(error)) < 1000
    else:
        assert ActionCodec(found.space()).size > 0


@pytest.mark.parametrize(
    ("part", "change", "says"),
    [
        ("rewards", lambda a: np.full_like(a, np.nan), "reward of step 0 is nan"),
        ("rewards", lambda a: a[:-1], "in an episode of|have the shape"),
        ("rewards", lambda a: a[:, None], "allowed: 1 dim"),
        ("frames", lambda a: a[:, :8], "allowed: uint8"),
        ("frames", lambda a: a.astype(np.float32), "allowed: U8"),
        ("frames", lambda a: a[..., :1], "allowed: U8"),
        ("frames", lambda a: a[:-1], "in an episode of"),
        ("actions", lambda a: a + 7, "allowed: each in Discrete"),
        ("actions", lambda a: a.astype(np.float32), "allowed: each in Discrete"),
        ("actions", lambda a: a[:-2], "in an episode of"),
        ("prompt_index", lambda a: a - 1, "prompt_index reaches"),
        ("prompt_index", lambda a: a + 5, "prompt_index reaches"),
        ("truncated", lambda a: a[:3], "in an episode of"),
    ],
)
def test_a_hostile_episode_is_named_before_training(tmp_path: Path, part: str, change: Any, says: str) -> None:
    dataset = recording("start", tmp_path / "d", 20, **ROWS["start"])
    path = dataset.episodes()[0]
    arrays = load_file(path)
    arrays[part] = np.ascontiguousarray(change(arrays[part]))
    episode = read_episode(path)
    save_file(arrays, path, metadata={"episode": json.dumps({"prompts": episode.prompts, "meta": episode.meta})})
    with pytest.raises(DataError, match=says) as error:
        LatentData.encode(dataset, "train", None)  # type: ignore[arg-type]  -- it is not reached
    assert str(path) in str(error.value) and "Delete the file" in str(error.value)


@pytest.mark.parametrize(
    ("shape", "high", "dtype", "is_one"),
    [
        ((8, 8, 3), 255, np.uint8, True),
        ((210, 160, 3), 255, np.uint8, True),
        ((7, 7, 3), 255, np.uint8, False),
        ((16, 16, 3), 10, np.uint8, False),
        ((16, 16, 3), 1, np.float32, False),
        ((3, 16, 16), 255, np.uint8, False),
        ((16, 16, 4), 255, np.uint8, False),
        ((16, 16), 255, np.uint8, False),
    ],
)
def test_pictures_are_told_from_symbols(shape: Any, high: float, dtype: Any, is_one: bool) -> None:
    space = spaces.Box(0, high, shape, dtype)
    assert is_picture(space.sample(), space) == is_one
    assert not is_picture(np.zeros((9, 9, 3), np.uint8), space)


@settings(max_examples=60, deadline=None)
@given(st.floats(-1e12, 1e12), st.floats(-1e12, 1e12), st.sampled_from([np.float16, np.float32, np.float64]))
def test_actions_of_admitted_boxes_are_finite_numbers(a: float, b: float, dtype: Any) -> None:
    with np.errstate(over="ignore"):
        low, high = sorted((dtype(a) + dtype(0), dtype(b) + dtype(0)))  # no -0.0, which numpy does not sample up to
    space = spaces.Box(low, high, (2,), dtype)
    try:
        data = check_space(space)
    except WorldsimError:
        return
    assert space_from_json(json.loads(json.dumps(data))) == space
    codec = ActionCodec(space)
    flat = codec.flatten(codec.stack([space.sample() for _ in range(4)]))
    assert np.isfinite(flat).all()


def test_a_dataset_of_other_sizes_is_refused(tmp_path: Path) -> None:
    dataset = recording("start", tmp_path / "d", 20, **ROWS["start"])
    about = json.loads((tmp_path / "d" / FILE).read_text()) | {"frame_size": [24, 16]}
    (tmp_path / "d" / FILE).write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"its frames are \(16, 24, 3\), those of the dataset \(24, 16, 3\)"):
        Dataset(dataset.path).frames()
