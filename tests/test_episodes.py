"""Episodes and action spaces on disk: what is written is read back, and what is damaged is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from safetensors.numpy import save_file

from worldsim.data.card import FORMAT, FORMAT_VERSION
from worldsim.data.episodes import (
    Dataset,
    Episode,
    FrameTable,
    count_steps,
    read_episode,
    write_episode,
)
from worldsim.data.frames import check_frames, resize_frame
from worldsim.errors import ConfigError, DataError, FrameError
from worldsim.spaces import ActionCodec, space_from_json, space_to_json

SPACES = [
    spaces.Discrete(4),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiDiscrete(np.array([[2, 3], [4, 5]]), start=np.array([[1, 1], [0, -2]])),
    spaces.MultiBinary(3),
    spaces.MultiBinary([2, 3]),
    spaces.Box(np.array([-1, 0, 0], np.float32), np.array([1, 1, 1], np.float32)),
    spaces.Box(np.array([-np.inf, 0]), np.array([0, np.inf]), dtype=np.float64),
    spaces.Box(0, 255, (2, 2), np.uint8),
    spaces.Box(-1, 1, ()),
    spaces.Dict({"move": spaces.Box(-1, 1, (2,)), "hand": spaces.Dict({"grip.left%": spaces.Discrete(2)})}),
    spaces.Dict([("b", spaces.Discrete(2)), ("a", spaces.Discrete(3))]),
]


def make_episode(space: spaces.Space, steps: int = 6, seed: int = 0) -> Episode:
    rng = np.random.default_rng(seed)
    space.seed(seed)
    return Episode(
        frames=rng.integers(0, 256, (steps + 1, 4, 5, 3), np.uint8),
        actions=ActionCodec(space).stack([space.sample() for _ in range(steps)]),
        rewards=rng.normal(size=steps).astype(np.float32),
        terminated=np.arange(steps) == steps - 1,
        truncated=np.zeros(steps, bool),
        prompt_index=(np.arange(steps + 1) >= 3).astype(np.int32),
        prompts=[{"text": "a red road"}, {"text": "snow \u2744", "road": "white", "wall": True}],
        meta={"seed": seed, "split": "train"},
    )


def assert_equal(a, b):
    if isinstance(a, dict):
        assert list(a) == list(b)
        for key in a:
            assert_equal(a[key], b[key])
    else:
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_space_and_actions_come_back(space, tmp_path):
    text = json.dumps(space_to_json(space), allow_nan=False)  # plain JSON, that a browser reads too
    again = space_from_json(json.loads(text))
    assert again == space
    assert list(getattr(again, "spaces", [])) == list(getattr(space, "spaces", []))
    episode = make_episode(space)
    write_episode(tmp_path / "0.safetensors", episode)
    assert_equal(_sorted(read_episode(tmp_path / "0.safetensors").actions), _sorted(episode.actions))
    flat = ActionCodec(space).flatten(episode.actions)
    assert flat.dtype == np.float32 and flat.shape == (len(episode), ActionCodec(space).size)
    assert np.isfinite(flat).all()


def _sorted(actions):
    return {key: _sorted(actions[key]) for key in sorted(actions)} if isinstance(actions, dict) else actions


def test_flat_actions_are_of_unit_size():
    assert ActionCodec(spaces.Discrete(3, start=5)).flatten(np.array([5, 7])).tolist() == [[1, 0, 0], [0, 0, 1]]
    assert ActionCodec(spaces.MultiDiscrete([2, 2], start=[1, 0])).flatten(np.array([1, 1])).tolist() == [1, 0, 0, 1]
    assert ActionCodec(spaces.Box(0, 10, (2,))).flatten(np.array([0, 10], np.float32)).tolist() == [-1, 1]
    assert ActionCodec(spaces.MultiBinary(2)).flatten(np.array([0, 1])).tolist() == [-1, 1]


def test_spaces_that_cannot_be_recorded():
    with pytest.raises(ConfigError, match="allowed: Discrete"):
        space_to_json(spaces.Text(5))
    for data in (
        {"type": "tuple"},
        {"type": "discrete"},
        {"type": "box", "low": "x", "high": 1, "dtype": "float32"},
        [],
    ):
        with pytest.raises(ConfigError):
            space_from_json(data)  # pyright: ignore[reportArgumentType]  -- a damaged file


def test_episode_comes_back_bit_for_bit(tmp_path):
    episode = make_episode(spaces.Discrete(4))
    path = tmp_path / "train" / "000000.safetensors"
    write_episode(path, episode)
    again = read_episode(path)
    for name in ("frames", "actions", "rewards", "terminated", "truncated", "prompt_index"):
        assert_equal(getattr(again, name), getattr(episode, name))
    assert (again.prompts, again.meta, again.texts()) == (episode.prompts, episode.meta, episode.texts())
    assert len(again) == count_steps(path) == 6
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing half-written stays
    before = path.read_bytes()
    for _ in range(5):
        write_episode(path, again)
        assert path.read_bytes() == before


def test_a_clip_is_a_part_of_the_episode(tmp_path):
    episode = make_episode(SPACES[-2])
    path = tmp_path / "0.safetensors"
    write_episode(path, episode)
    clip = read_episode(path, 2, 5)
    assert len(clip) == 3
    assert_equal(clip.frames, episode.frames[2:6])
    assert_equal(clip.rewards, episode.rewards[2:5])
    assert_equal(clip.actions["hand"]["grip.left%"], episode.actions["hand"]["grip.left%"][2:5])
    assert clip.texts() == ["a red road", "snow \u2744", "snow \u2744", "snow \u2744"]
    for start, stop in ((-1, 2), (3, 2), (0, 7), (7, None)):
        with pytest.raises(DataError, match="allowed: within 0 to 6"):
            read_episode(path, start, stop)


def test_damaged_and_foreign_episodes(tmp_path):
    path = tmp_path / "0.safetensors"
    write_episode(path, make_episode(spaces.Discrete(4)))
    whole = path.read_bytes()
    shuffled = {"rewards": np.zeros(3)}
    damages = [
        lambda: path.unlink(),
        lambda: path.write_bytes(b""),
        lambda: path.write_bytes(whole[:-10]),
        lambda: path.write_bytes(b"no safetensors at all"),
        lambda: save_file(shuffled, path),
        lambda: save_file(shuffled, path, metadata={"episode": "[]"}),
        lambda: save_file(shuffled, path, metadata={"episode": "{"}),
    ]
    for damage in damages:
        damage()
        with pytest.raises(DataError, match="0.safetensors"):
            read_episode(path)
    path.unlink()
    with pytest.raises(DataError, match="run the recording again"):
        count_steps(path)


def make_dataset(path, **changes):
    card = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "name": "tiny",
        "frame_size": [4, 5],
        "fps": 12.5,
        "action_space": space_to_json(spaces.Discrete(4)),
    }
    path.mkdir(exist_ok=True)
    (path / "dataset.json").write_text(json.dumps({**card, **changes}))
    return path


def test_dataset(tmp_path):
    dataset = Dataset(make_dataset(tmp_path / "d"))
    assert (dataset.action_space, dataset.frame_size) == (spaces.Discrete(4), (4, 5))
    for index in (10, 2):
        write_episode(
            dataset.path / "train" / f"{index:06d}.safetensors", make_episode(dataset.action_space, seed=index)
        )
    (dataset.path / "train" / "000003.partial").write_bytes(b"half")
    assert [path.stem for path in dataset.episodes()] == ["000002", "000010"]
    assert [episode.meta["seed"] for episode in dataset.read()] == [2, 10]
    assert len(dataset.read(limit=1)) == 1
    with pytest.raises(DataError, match="no episodes in split 'heldout'"):
        dataset.read("heldout")
    with pytest.raises(DataError, match="allowed: train, heldout, unseen"):
        dataset.episodes("test")


def test_folders_that_are_no_dataset(tmp_path):
    with pytest.raises(DataError, match="dataset.json is missing"):
        Dataset(tmp_path)
    with pytest.raises(DataError, match="format_version 99; this worldsim reads 1"):
        Dataset(make_dataset(tmp_path, format_version=99))
    for changes in (
        {"format": "lerobot"},
        {"action_space": {"type": "tuple"}},
        {"frame_size": 3},
        {"frame_size": None},
    ):
        with pytest.raises(DataError, match="dataset.json"):
            Dataset(make_dataset(tmp_path, **changes))
    for text in ("", "[]", "3", "{", '{"format": "worldsim-episodes", "format_version": 1}'):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(DataError, match="dataset.json"):
            Dataset(tmp_path)


def test_resize_frame():
    frame = np.zeros((4, 6, 3), np.uint8)
    frame[:2, :2] = [[[200], [100]], [[60], [40]]]
    small = resize_frame(frame, (2, 3))
    assert small.shape == (2, 3, 3) and small[0, 0].tolist() == [100] * 3 and not small[1:].any()  # the average
    assert resize_frame(frame, (8, 9)).shape == (8, 9, 3)
    same = resize_frame(frame, (4, 6))
    assert same is not frame and (same == frame).all()
    for bad in (frame.astype(np.float32), frame[..., 0], frame[..., :2], None, [[1]]):
        with pytest.raises(FrameError, match="allowed: uint8"):
            resize_frame(bad, (2, 2))  # pyright: ignore[reportArgumentType]  -- what a game's render may give
    with pytest.raises(FrameError, match=r"clip has dtype uint8 .* \(T, H, W, 3\)"):
        check_frames(frame, "clip", dims=4)


def test_a_table_reads_the_frames_that_are_asked_for(dataset: Dataset) -> None:
    """What reading whole episodes gives, in any order, with repetitions, across episodes."""
    table = FrameTable(dataset.episodes("train"))
    frames = np.concatenate([episode.frames for episode in dataset.read("train")])
    assert len(table) == len(frames)
    rows = np.random.default_rng(0).integers(len(frames), size=50)
    np.testing.assert_array_equal(table.read(rows), frames[rows])
    np.testing.assert_array_equal(table.read([len(frames) - 1, 0]), frames[[-1, 0]])
    np.testing.assert_array_equal(table.evenly(10), frames[:: len(frames) // 10])
    with pytest.raises(DataError, match="no episodes"):
        FrameTable([])


def test_a_table_says_which_episode_is_damaged(dataset: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "0.safetensors"
    path.write_bytes(dataset.episodes("train")[0].read_bytes())
    table = FrameTable([path])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="cannot read episode .*0.safetensors"):
        table.read([0])
