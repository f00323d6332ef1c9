"""Datasets to and from Minari, and from plain video with an action log."""

import gc
import json
import subprocess
import warnings
from pathlib import Path

import gymnasium as gym
import imageio_ffmpeg
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from worldsim import cli
from worldsim.data.actionlog import read_actions, read_log
from worldsim.data.episodes import Dataset, Episode, read_episode
from worldsim.data.importing import importing, make_card
from worldsim.data.minari import MinariExport, MinariImport, export_minari, import_minari
from worldsim.data.recipe import SPLITS
from worldsim.data.video import Video, VideoImport, import_video
from worldsim.envs.keymap import KeyMap, read_keys
from worldsim.errors import ConfigError, DataError

SEED = 11


def equal(a, b) -> bool:
    """The same numbers in the same types, also within dicts."""
    if isinstance(a, dict):
        return list(a) == list(b) and all(equal(a[key], b[key]) for key in a)
    return a.dtype == b.dtype and a.shape == b.shape and np.array_equal(a, b)


def make_dataset(out, space: spaces.Space, episodes=3) -> Dataset:
    """Noise of 40 x 48 under seeded actions, with prompts, labels and all splits."""
    rng = np.random.default_rng(SEED)
    space.seed(SEED)
    card = make_card(
        name="odd name", frame_size=(40, 48), fps=12.5, space=space, keys={"": [0]}, provenance={"seed": SEED}
    )

    def stacked(space, actions):
        if isinstance(space, spaces.Dict):
            return {key: stacked(inner, [a[key] for a in actions]) for key, inner in space.spaces.items()}
        return np.asarray(actions, np.int64 if isinstance(space, spaces.Discrete) else space.dtype)

    with importing(out, card) as importer:
        for number in range(episodes):
            steps = 3 + number
            episode = Episode(
                frames=rng.integers(0, 256, (steps + 1, 40, 48, 3), np.uint8),
                actions=stacked(space, [space.sample() for _ in range(steps)]),
                rewards=rng.normal(size=steps).astype(np.float32),
                terminated=np.arange(steps) == (steps - 1 if number else -1),
                truncated=np.arange(steps) == (-1 if number else steps - 1),
                prompt_index=np.minimum(np.arange(steps + 1), 1).astype(np.int32),
                prompts=[{"text": "day", "palette": [1, 2]}, {"text": "day", "palette": [3]}],  # one text, two labels
                meta={"index": number, "seed": 2**40 + number, "split": ("train", "heldout", "unseen")[number % 3]},
            )
            importer.add(episode, number, episode.meta["split"])
    return Dataset(out)


SPACES = [
    spaces.Discrete(5),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([3, 2]),
    spaces.MultiBinary(4),
    spaces.Box(np.array([-1, 0], np.float32), np.ones(2, np.float32)),
    spaces.Dict([("z", spaces.Discrete(2)), ("a", spaces.Box(-np.inf, np.inf, (2, 2), np.float64))]),
]


@pytest.mark.parametrize("space", SPACES, ids=lambda space: type(space).__name__)
def test_minari_and_back_is_equal_to_the_bit(tmp_path, space, monkeypatch):
    pytest.importorskip("minari")
    dataset = make_dataset(tmp_path / "data", space)
    monkeypatch.chdir(tmp_path)
    folder = export_minari(MinariExport(dataset=dataset.path, root=Path("root")))
    assert folder == tmp_path / "root" / "worldsim" / "odd-name-v0"
    back = import_minari(MinariImport(source="worldsim/odd-name-v0", root=Path("root"), out=Path("back")))
    assert back.card == dataset.card and back.action_space == dataset.action_space
    for split in ("train", "heldout", "unseen"):
        assert [p.name for p in back.episodes(split)] == [p.name for p in dataset.episodes(split)] != []
        for path, other in zip(dataset.episodes(split), back.episodes(split), strict=True):
            a, b = read_episode(path), read_episode(other)
            for name in ("frames", "actions", "rewards", "terminated", "truncated", "prompt_index"):
                assert equal(getattr(a, name), getattr(b, name)), name
            assert (a.prompts, a.meta) == (b.prompts, b.meta)
            assert path.read_bytes() == other.read_bytes()


def test_minari_itself_reads_what_is_exported(tmp_path, monkeypatch, capsys):
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "root"))
    dataset = make_dataset(tmp_path / "data", spaces.Discrete(5))
    assert cli.main(["data", "export-minari", str(dataset.path), "--id", "toy/noise-v3", "--author", "A"]) == 0
    assert "toy/noise-v3 is in" in capsys.readouterr().out
    assert list(minari.list_local_datasets()) == ["toy/noise-v3"]
    loaded = minari.load_dataset("toy/noise-v3")
    assert (loaded.total_episodes, loaded.total_steps) == (3, 3 + 4 + 5)
    episode = read_episode(dataset.episodes("train")[0])
    first = next(iter(loaded.iterate_episodes()))
    assert np.array_equal(first.observations, episode.frames) and np.array_equal(first.actions, episode.actions)
    assert list(first.infos["prompt"]) == episode.texts()
    assert cli.main(["data", "export-minari", str(dataset.path), "--id", "toy/noise-v3"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert cli.main(["data", "import-minari", "toy/noise-v3", "--out", str(tmp_path / "again")]) == 0
    assert "1 train, 1 heldout, 1 unseen episodes" in capsys.readouterr().out


def minari_of_others(minari, root, observation_space, observe, steps=4):
    """A dataset as others make one, with hdf5's successor and without anything of ours."""
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    (root / "data").mkdir(parents=True)
    storage = MinariStorage.new(
        root / "data",
        observation_space=observation_space,
        action_space=spaces.Discrete(4),
        data_format="arrow",
        jpeg_encoding=False,
    )
    storage.update_metadata({"dataset_id": "others/game-v1", "minari_version": minari.__version__})
    frames = np.random.default_rng(SEED).integers(0, 256, (11, steps + 1, 40, 48), np.uint8)
    for number, grey in enumerate(frames):
        buffer = EpisodeBuffer(
            id=number, observations=observe(grey), actions=list(range(steps)), rewards=[0.5] * steps,
            terminations=[False] * steps, truncations=[False] * steps,
        )  # fmt: skip
        storage.update_episodes([buffer])
    return frames


def test_minari_of_others(tmp_path):
    minari = pytest.importorskip("minari")
    images = spaces.Box(0, 255, (40, 48, 1), np.uint8)
    both = spaces.Dict(view=images, mission=spaces.Box(0, 1, (2,), np.float32))
    frames = minari_of_others(
        minari, tmp_path / "a", both, lambda grey: {"view": grey[..., None], "mission": np.zeros((5, 2), np.float32)}
    )
    found = import_minari(MinariImport(source=str(tmp_path / "a"), out=tmp_path / "out", prompt="a maze", fps=10))
    assert (len(found.episodes("train")), len(found.episodes("heldout"))) == (10, 1)  # one in ten
    assert found.card.name == "game-v1" and found.card.fps == 10 and found.frame_size == (40, 48)
    episode = found.read()[0]
    assert np.array_equal(episode.frames, np.stack([frames[0]] * 3, axis=-1))
    assert episode.actions.tolist() == [0, 1, 2, 3] and episode.texts() == ["a maze"] * 5
    assert episode.truncated.tolist() == [False] * 3 + [True] and not episode.terminated.any()
    small = import_minari(MinariImport(source=str(tmp_path / "a"), out=tmp_path / "small", frame_size=(20, 24)))
    assert small.read()[0].frames.shape == (5, 20, 24, 3)
    with pytest.raises(DataError, match="observation 'veiw' has no images. Did you mean 'view'"):
        import_minari(MinariImport(source=str(tmp_path / "a"), out=tmp_path / "x", observation="veiw"))
    minari_of_others(minari, tmp_path / "b", spaces.Box(0, 1, (2,), np.float32), lambda g: np.zeros((5, 2), np.float32))
    with pytest.raises(DataError, match="not images"):
        import_minari(MinariImport(source=str(tmp_path / "b"), out=tmp_path / "x"))
    with pytest.raises(DataError, match="no Minari dataset 'nobody/game-v0'.*minari download"):
        import_minari(MinariImport(source="nobody/game-v0", root=tmp_path, out=tmp_path / "x"))
    with pytest.raises(DataError, match="no Minari id"):
        export_minari(MinariExport(dataset=found.path, root=tmp_path, id="no version"))
    assert not list(tmp_path.glob("x*"))


def write_video(path, frames, fps=20):
    """A real video, as a screen recorder would write it."""
    height, width = frames.shape[1:3]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the writer leaves its pipes to the garbage collector
        writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=fps, macro_block_size=1, quality=9)
        writer.send(None)
        for frame in frames:
            writer.send(np.ascontiguousarray(frame))
        writer.close()
        del writer
        gc.collect()


def grey_frames(count, size=(48, 64)) -> np.ndarray:
    """Frame i is all of one grey, which says its number."""
    return np.stack([np.full((*size, 3), 20 + 9 * i, np.uint8) for i in range(count)])


def shades(episode) -> np.ndarray:
    """The numbers that `grey_frames` wrote."""
    return np.rint((episode.frames.mean(axis=(1, 2, 3)) - 20) / 9).astype(int)


def test_an_mp4_with_keys_becomes_a_dataset(tmp_path, capsys):
    write_video(tmp_path / "play.mp4", grey_frames(20))
    held = ["", "left", "left+space", "right"] * 5
    rows = [f"{i},{keys},{i / 2},{int(i == 7)},{'night' if i > 3 else 'day'}" for i, keys in enumerate(held)]
    (tmp_path / "play.csv").write_text("frame,keys,reward,terminated,prompt\n" + "\n".join(rows) + "\n")
    words = [
        "data",
        "import-video",
        str(tmp_path / "play.mp4"),
        "--out",
        str(tmp_path / "out"),
        "--frame-size",
        "24",
        "32",
    ]
    assert cli.main(words) == 0, capsys.readouterr().err
    dataset = Dataset(tmp_path / "out")
    assert dataset.card.fps == 20 and dataset.frame_size == (24, 32) and dataset.card.name == "out"
    assert dataset.action_space == spaces.MultiBinary(3)  # left, right, space
    first, second = dataset.read()
    assert shades(first).tolist() == list(range(9)) and shades(second).tolist() == list(
        range(9, 20)
    )  # no frame is lost
    assert (
        first.terminated.tolist() == [False] * 7 + [True] and not first.truncated.any()
    )  # row 7 is step 7, to frame 8
    assert second.truncated.tolist() == [False] * 9 + [True] and not second.terminated.any()
    assert first.actions.tolist() == [[0, 0, 0], [1, 0, 0], [1, 0, 1], [0, 1, 0]] * 2
    assert second.actions[0].tolist() == [1, 0, 0]  # of row 9: row 8's leads to another episode
    assert first.rewards.tolist() == [i / 2 for i in range(8)]
    assert first.texts() == ["day"] * 4 + ["night"] * 5
    keymap = KeyMap(read_keys(dataset.card.keys, dataset.action_space))
    for keys in held:
        assert keymap.action(keys.split("+")).tolist() == [int(key in keys) for key in ("left", "right", "space")]
    assert cli.main(words) == 2 and "is there already" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".avi", ".gif", ""])
def test_other_videos_and_the_other_way_of_rows(tmp_path, suffix):
    frames, video = grey_frames(11), tmp_path / f"run{suffix}"
    if suffix == ".gif":
        images = [Image.fromarray(frame) for frame in frames]
        images[0].save(video, save_all=True, append_images=images[1:], duration=100, disposal=1)
    elif suffix:
        write_video(video, frames)
    else:
        video.mkdir()
        for i, frame in enumerate(frames):
            Image.fromarray(frame).save(video / f"frame{i}.png")  # 10 comes after 9
    lines = [{"action_0": i / 10, "action_1": -i / 10, "terminated": i == 4, "prompt": "run"} for i in range(11)]
    (tmp_path / "run.jsonl").write_text("\n".join(map(json.dumps, lines)))
    config = VideoImport(videos=(video,), out=tmp_path / "out", align="from-last", episode_steps=3, fps=8)
    dataset = import_video(config)
    assert dataset.card.fps == 8
    assert dataset.action_space == spaces.Box(-1, 1, (2,), np.float32)
    episodes = dataset.read()
    assert [shades(e).tolist() for e in episodes] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    np.testing.assert_allclose(episodes[0].actions[:, 0], [0.1, 0.2, 0.3], rtol=1e-6)  # row 1 led to frame 1
    np.testing.assert_allclose(episodes[2].actions[:, 1], [-0.9, -1.0], rtol=1e-6)
    assert all(e.truncated[-1] and e.texts() == ["run"] * len(e.frames) for e in episodes)


def test_several_videos_share_one_action_space(tmp_path):
    for name, count, top in (("one", 4, 1), ("two", 5, 6)):
        (tmp_path / name).mkdir()
        for i, frame in enumerate(grey_frames(count, (8, 8))):
            Image.fromarray(frame).save(tmp_path / name / f"{i:03d}.png")
        (tmp_path / f"{name}.csv").write_text("action\n" + "\n".join(str(i % 2 * top) for i in range(count)))
    videos = (tmp_path / "one", tmp_path / "two")
    dataset = import_video(VideoImport(videos=videos, out=tmp_path / "out", frame_size=(8, 8), prompt="both"))
    assert dataset.action_space == spaces.Discrete(7)
    assert [e.actions.tolist() for e in dataset.read()] == [[0, 1, 0], [0, 6, 0, 6]]
    assert np.array_equal(dataset.read()[1].frames, grey_frames(5, (8, 8)))
    more = import_video(VideoImport(videos=videos[:1], out=tmp_path / "more", num_actions=9))
    assert more.action_space == spaces.Discrete(9)
    with pytest.raises(ConfigError, match="one log for 2 videos"):
        VideoImport(videos=videos, log=tmp_path / "one.csv")


@pytest.mark.parametrize(
    ("log", "says"),
    [
        ("action\n0\n1\n", "has 3 frames, but .* has 2 rows"),
        ("action\n0\n1\n1\n1\n", "has 3 frames, but .* has 4 rows"),
        ("action,rewrad\n0,0\n1,0\n1,0\n", "unknown column 'rewrad'. Did you mean 'reward'"),
        ("reward\n0\n1\n1\n", "action columns are none"),
        ("action,keys\n0,\n1,\n1,\n", "action columns are action, keys"),
        ("action\n0\n1.5\n1\n", "row 1 has the action 1.5"),
        ("action\n0\nup\n1\n", "row 1 has action = 'up'; it must be a number"),
        ("action_0\n0\n3\n1\n", "row 1 has action_0 = 3; allowed: -1 to 1"),
        ("action_1\n0\n1\n1\n", "numbered from 0"),
        ("keys\nleft\nlefft\n\n", "row 1 has the unknown key 'lefft'. Did you mean 'left'"),
        ("left,right\n0,0\n0,2\n0,0\n", "row 1 has right = '2'; allowed: 1 and 0"),
        ("action,terminated\n0,0\n1,maybe\n1,0\n", "terminated = 'maybe'"),
        ("frame,action\n0,0\n2,1\n3,1\n", "row 1 is of frame 2, not 1"),
        ("action,prompt\n0\n1,a\n1,a\n", "row 0 has 1 values for 2 columns"),
        ("action,action\n0,1\n", "two columns of one name"),
        ("action\n", "has no rows"),
        ("", "action columns are none"),
    ],
)  # fmt: skip
def test_logs_that_do_not_fit(tmp_path, log, says):
    (tmp_path / "v").mkdir()
    for i, frame in enumerate(grey_frames(3, (8, 8))):
        Image.fromarray(frame).save(tmp_path / "v" / f"{i}.png")
    (tmp_path / "v.csv").write_text(log)
    with pytest.raises(DataError, match=says):
        import_video(VideoImport(videos=(tmp_path / "v",), out=tmp_path / "out"))
    assert not list(tmp_path.glob("out*"))  # nothing half done


def test_frames_have_times(tmp_path):
    write_video(tmp_path / "v.mp4", grey_frames(12), fps=8)
    video = Video(tmp_path / "v.mp4")
    times, frames = zip(*video.timed(), strict=True)
    assert video.fps == 8 and times == pytest.approx(np.arange(12) / 8, abs=1e-3)
    assert [frame.shape for frame in frames] == [(48, 64, 3)] * 12


def test_damaged_videos_are_refused(tmp_path):
    """However a file is damaged, what comes is its frames or an error of ours."""
    write_video(tmp_path / "v.mp4", grey_frames(12))
    whole, rng = (tmp_path / "v.mp4").read_bytes(), np.random.default_rng(4)
    refused = 0
    for number in range(24):
        bad = bytearray(whole[: int(rng.integers(len(whole) // 4, len(whole)))] if number % 3 == 0 else whole)
        for place in rng.integers(0, len(bad), 40):
            bad[place] = rng.integers(256)
        (tmp_path / "bad.mp4").write_bytes(bad)
        try:
            assert all(frame.ndim == 3 for frame in Video(tmp_path / "bad.mp4"))
        except DataError as error:
            refused += "cannot read the video" in str(error)
    assert refused > 8


def test_a_film_of_a_turned_camera_is_upright(tmp_path):
    """What the file says of its rotation is followed, as players do."""
    frames = grey_frames(3, (64, 96))
    frames[:, :32] = 255  # white above
    write_video(tmp_path / "v.mp4", frames)
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    turned = [ffmpeg, "-loglevel", "error", "-display_rotation", "90", "-i", "v.mp4", "-c", "copy", "r.mp4"]
    subprocess.run(turned, cwd=tmp_path, check=True)
    shown = [ffmpeg, "-loglevel", "error", "-i", "r.mp4", "-frames:v", "1", "-f", "image2", "r.png"]
    subprocess.run(shown, cwd=tmp_path, check=True)
    expected = np.asarray(Image.open(tmp_path / "r.png").convert("RGB")).astype(int)
    found = next(iter(Video(tmp_path / "r.mp4"))).astype(int)
    assert found.shape == expected.shape == (96, 64, 3) and abs(found - expected).mean() < 8


def test_videos_that_are_none(tmp_path):
    (tmp_path / "bad.mp4").write_bytes(b"no video at all" * 100)
    (tmp_path / "bad.csv").write_text("action\n0\n1\n")
    with pytest.raises(DataError, match=r"cannot read the video .*bad\.mp4: Invalid data"):
        import_video(VideoImport(videos=(tmp_path / "bad.mp4",), out=tmp_path / "out"))
    with pytest.raises(DataError, match="has 0 action logs beside it"):
        import_video(VideoImport(videos=(tmp_path / "none.mp4",), out=tmp_path / "out"))
    with pytest.raises(DataError, match="there is no video"):
        import_video(VideoImport(videos=(tmp_path / "none.mp4",), log=tmp_path / "bad.csv", out=tmp_path / "out"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="has no .png files"):
        Video(tmp_path / "empty")
    with pytest.raises(DataError, match="neither .csv nor .jsonl"):
        read_log(tmp_path / "bad.mp4")
    (tmp_path / "odd.jsonl").write_text('{"action": 1}\n{"action": 1, "reward": 2}\n')
    with pytest.raises(DataError, match="line 1 has"):
        read_log(tmp_path / "odd.jsonl")
    (tmp_path / "keys.jsonl").write_text('{"keys": ["left", "up"]}\n{"keys": []}\n')
    with pytest.raises(DataError, match="but .*bad.csv has"):
        read_actions([read_log(tmp_path / "bad.csv"), read_log(tmp_path / "keys.jsonl")])
    keys = read_actions([read_log(tmp_path / "keys.jsonl")])
    assert keys.of_log[0].tolist() == [[1, 1], [0, 0]] and keys.keys["left+up"] == [1, 1]
    with pytest.raises(ConfigError, match="align is 'both'"):
        VideoImport(videos=(), align="both")  # pyright: ignore[reportArgumentType] -- the test


def test_a_recorded_game_survives_minari(tmp_path, dataset):
    pytest.importorskip("minari")
    folder = export_minari(MinariExport(dataset=dataset.path, root=tmp_path))
    back = import_minari(MinariImport(source=str(folder), out=tmp_path / "back"))
    assert back.action_space == gym.make("CartPole-v1").action_space
    files = sorted(path.relative_to(dataset.path) for split in SPLITS for path in dataset.episodes(split))
    assert files and all((back.path / name).read_bytes() == (dataset.path / name).read_bytes() for name in files)
