"""Recordings as others write them: Minari's formats, logs of other programs, videos of phones, LeRobot datasets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from worldsim import cli
from worldsim.data.actionlog import read_actions, read_log
from worldsim.data.episodes import Dataset
from worldsim.data.lerobot import LeRobotImport, import_lerobot
from worldsim.data.minari import MinariImport, import_minari
from worldsim.data.video import VideoImport, import_video
from worldsim.errors import DataError, WorldsimError

RGB = spaces.Box(0, 255, (24, 20, 3), np.uint8)
STEPS = 4


def values(space: spaces.Space, count: int) -> Any:
    """So many samples, as Minari has them."""
    if isinstance(space, spaces.Dict):
        return {key: values(inner, count) for key, inner in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return tuple(values(inner, count) for inner in space.spaces)
    if isinstance(space, spaces.Text):
        return ["reach the goal"] * count
    return np.stack([space.sample() for _ in range(count)])


MINARI: dict[str, tuple[spaces.Space, dict[str, Any], str]] = {
    "rgb": (RGB, {}, ""),
    "grey": (spaces.Box(0, 255, (24, 20), np.uint8), {}, ""),
    "channels-first": (spaces.Box(0, 255, (3, 24, 20), np.uint8), {}, ""),
    "nested": (spaces.Dict(obs=spaces.Dict(pixels=RGB, v=spaces.Box(0, 1, (2,)))), {}, ""),
    "tuple": (spaces.Tuple([RGB, spaces.Discrete(3)]), {}, ""),
    "mission": (spaces.Dict(image=RGB, mission=spaces.Text(30)), {}, ""),
    "no-end": (RGB, {"terminations": [False] * STEPS}, ""),
    "dict-actions": (RGB, {"space": spaces.Dict(camera=spaces.Box(-9, 9, (2,)), jump=spaces.Discrete(2))}, ""),
    "grid": (
        spaces.Dict(image=spaces.Box(0, 255, (7, 7, 3), np.uint8), direction=spaces.Discrete(4)),
        {},
        "not images",
    ),
    "floats": (spaces.Box(0, 1, (24, 20, 3), np.float32), {}, "not images"),
    "stack": (spaces.Box(0, 255, (24, 20, 4), np.uint8), {}, "not images"),
    "two": (spaces.Dict(a=RGB, b=RGB), {}, r"\['a', 'b'\] are images; say which one with --observation"),
    "nan": (
        RGB,
        {"rewards": [1.0, float("nan"), 1.0, 1.0]},
        "episode 0 cannot be imported: the reward of step 1 is nan",
    ),
    "tuple-actions": (RGB, {"space": spaces.Tuple([spaces.Discrete(2)])}, "allowed: Discrete"),
}


@pytest.mark.parametrize("form", ["hdf5", "arrow"])
@pytest.mark.parametrize("kind", MINARI)
def test_minari_as_others_write_it(tmp_path: Path, kind: str, form: str) -> None:
    minari = pytest.importorskip("minari")
    pytest.importorskip("h5py" if form == "hdf5" else "pyarrow")
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    observed, changes, says = MINARI[kind]
    actions = MINARI_ACTIONS.get(kind, spaces.Discrete(7))
    (tmp_path / "m" / "data").mkdir(parents=True)
    settings: Any = {} if form == "hdf5" else {"jpeg_encoding": False}
    storage = MinariStorage.new(
        tmp_path / "m" / "data", observation_space=observed, action_space=actions, data_format=form, **settings
    )
    storage.update_metadata({"dataset_id": "others/game-v1", "minari_version": minari.__version__})
    for number in range(2):
        about = {"rewards": [0.5] * STEPS, "terminations": [False] * 3 + [True], "truncations": [False] * STEPS}
        about |= {"observations": values(observed, STEPS + 1), "actions": values(actions, STEPS)}
        storage.update_episodes([EpisodeBuffer(id=number, **(about | changes))])
    config = MinariImport(source=str(tmp_path / "m"), out=tmp_path / "out")
    if says:
        with pytest.raises(WorldsimError, match=says):
            import_minari(config)
        assert not list(tmp_path.glob("out*"))
        return
    dataset = import_minari(config)
    assert dataset.frame_size == (24, 20) and dataset.action_space == actions
    (episode, _) = dataset.read()
    assert episode.frames.shape == (STEPS + 1, 24, 20, 3) and episode.frames.std() > 30
    assert bool(episode.terminated[-1]) == (kind != "no-end") and bool(episode.truncated[-1]) == (kind == "no-end")


MINARI_ACTIONS = {kind: row[1].pop("space") for kind, row in MINARI.items() if "space" in row[1]}

LOGS: dict[str, tuple[str, bytes, Any]] = {
    "jsonl-bom": (".jsonl", b'\xef\xbb\xbf{"action": 1}\n{"action": 0}\n', spaces.Discrete(2)),
    "csv-bom": (".csv", b"\xef\xbb\xbfaction\n1\n0\n", spaces.Discrete(2)),
    "semicolons": (".csv", b"frame;action_0;action_1\n0;0,5;-1\n1;0;0,25\n", spaces.Box(-1, 1, (2,))),
    "tabs": (".csv", b"action\treward\n1\t0.5\n0\t1\n", spaces.Discrete(2)),
    "crlf": (".csv", b"action\r\n1\r\n0\r\n", spaces.Discrete(2)),
    "quoted": (".csv", b'"keys","prompt"\n"left","a, b"\n"","c"\n', spaces.MultiBinary(1)),
    "keys-and-mouse": (".csv", b"keys,mouse_dx,mouse_dy\nw+space,0.5,0\n,-1,1\n", None),
    "columns-and-mouse": (".jsonl", b'{"w": true, "mouse_dx": 0.5}\n{"w": false, "mouse_dx": -1}\n', None),
    "keys-and-numbers": (".csv", b"left;right;action_0\n1;0;0,5\n0;0;1\n", None),
    "mouse": (".csv", b"mouse_x,mouse_y\n0.1,0.2\n0,1\n", spaces.Box(-1, 1, (2,))),
    "lists": (".jsonl", b'{"keys": ["left", "up"]}\n{"keys": []}\n', spaces.MultiBinary(2)),
    "ndjson": (".ndjson", b'{"action": 3}\n\n{"action": 0}\n', spaces.Discrete(4)),
}


@pytest.mark.parametrize("kind", LOGS)
def test_logs_as_others_write_them(tmp_path: Path, kind: str) -> None:
    suffix, data, space = LOGS[kind]
    (tmp_path / f"log{suffix}").write_bytes(data)
    found = read_actions([read_log(tmp_path / f"log{suffix}")])
    assert len(found.of_log[0]) == 2 and all(found.space.contains(action) for action in found.of_log[0])
    assert space is None or found.space == space
    if space is None:  # a number for each key, then those of the mouse; the keys leave the mouse at rest
        assert isinstance(found.space, spaces.Box) and found.of_log[0][0, 0] in (0, 1)
        numbers = len(found.of_log[0][0]) - 1 if "columns" in kind else None
        assert found.keys[""][-1] == 0 and all(len(action) == found.space.shape[0] for action in found.keys.values())
        assert numbers in (None, 1)


def film(path: Path, count: int, size: tuple[int, int] = (48, 64), fps: int = 10, shift: int = 0) -> None:
    """Write a video whose frame k is a grey of 8 k."""
    av = pytest.importorskip("av")
    with av.open(str(path.absolute()), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for k in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), 8 * (k + shift) % 256, np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)


@pytest.mark.parametrize("name", ["12:30:00.mp4", "a b %03d \u00fc.mp4", "file:x.mp4", "#1?x=2.mp4"])
def test_any_name_of_a_video(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    film(Path(name), 6)
    Path(name).with_suffix(".csv").write_text("action\n" + "1\n0\n" * 3)
    dataset = import_video(VideoImport(videos=(Path(name),), out=Path("a:b")))
    assert dataset.read()[0].frames.shape == (6, 64, 64, 3) and dataset.card.name == "a:b"


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "song.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.rate = 44100
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    (tmp_path / "song.csv").write_text("action\n1\n0\n")
    with pytest.raises(DataError, match="no video stream, only sound or a picture on its cover"):
        import_video(VideoImport(videos=(tmp_path / "song.mp4",), out=tmp_path / "out"))


LENGTHS = (5, 3, 4)


def lerobot(root: Path, *, dtype: str = "video", whole: bool = False, **changes: Any) -> Path:
    """A LeRobot dataset of three episodes, two in the first video and table, as version 3 of the format has it."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    def table(path: str, rows: list[dict[str, Any]]) -> None:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), root / path)

    camera, fps = "observation.images.top", 10
    about: dict[str, Any] = {"codebase_version": "v3.0", "robot_type": "so100", "fps": fps, "total_episodes": 3}
    about["features"] = {
        camera: {"dtype": dtype, "shape": [48, 64, 3], "names": ["height", "width", "channels"]},
        "action": {"dtype": "float32", "shape": [2]},
        "observation.state": {"dtype": "float32", "shape": [2]},
    }
    about |= {"data_path": "../../{chunk_index}", "video_path": "/etc/{video_key}"}  # which nobody follows
    (root / "meta").mkdir(parents=True)
    (root / "meta" / "info.json").write_text(json.dumps(about | changes.pop("info", {})))
    tasks = [{"task_index": 0, "task": "push the T"}, {"task_index": 1, "task": "lift \u00e4"}]
    table("meta/tasks.parquet", tasks)
    rows: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    episodes, index = [], 0
    for number, length in enumerate(LENGTHS):
        file = number // 2
        episodes.append({
            "episode_index": number, "length": length, "tasks": ["push the T"], "data/chunk_index": 0,
            "data/file_index": file, "dataset_from_index": index, "dataset_to_index": index + length,
            f"videos/{camera}/chunk_index": 0, f"videos/{camera}/file_index": file,
            f"videos/{camera}/from_timestamp": (LENGTHS[0] if number == 1 else 0) / fps,
            f"videos/{camera}/to_timestamp": 1.0, "stats/action/min": [0.0], "meta/episodes/chunk_index": 0,
        })  # fmt: skip
        for k in range(length):
            row: dict[str, Any] = {"episode_index": number, "frame_index": k, "timestamp": k / fps, "index": index + k}
            row |= {
                "action": k if whole else [k / 2, -float(number)],
                "next.reward": k / 4,
                "next.done": k == length - 1,
            }
            row |= {"task_index": int(number == 2), "observation.state": [0.0, 0.0]}
            if dtype == "image":
                from io import BytesIO

                picture = BytesIO()
                Image.fromarray(np.full((48, 64, 3), 8 * (index + k), np.uint8)).save(picture, "PNG")
                row[camera] = {"bytes": picture.getvalue(), "path": f"frame-{k:06d}.png"}
            rows[file].append(row | changes)
        index += length
    table("meta/episodes/chunk-000/file-000.parquet", episodes)
    for file, content in rows.items():
        table(f"data/chunk-000/file-{file:03d}.parquet", content)
    if dtype == "video":
        for file, (count, shift) in enumerate([(8, 0), (4, 8)]):
            path = root / "videos" / camera / "chunk-000" / f"file-{file:03d}.mp4"
            path.parent.mkdir(parents=True, exist_ok=True)
            film(path, count, fps=fps, shift=shift)
    return root


@pytest.mark.parametrize("dtype", ["video", "image"])
def test_lerobot(tmp_path: Path, dtype: str, capsys: pytest.CaptureFixture[str]) -> None:
    source = lerobot(tmp_path / "pusht", dtype=dtype)
    words = ["data", "import-lerobot", str(source), "--out", str(tmp_path / "out"), "--frame-size", "24", "32"]
    assert cli.main(words) == 0
    assert "3 train, 0 heldout" in capsys.readouterr().out
    dataset = Dataset(tmp_path / "out")
    assert dataset.card.fps == 10 and dataset.frame_size == (24, 32)
    assert dataset.action_space == spaces.Box(np.array([0, -2], np.float32), np.array([2, 0], np.float32))
    row = 0
    for number, (episode, length) in enumerate(zip(dataset.read(), LENGTHS, strict=True)):
        grey = episode.frames.mean(axis=(1, 2, 3))
        assert grey == pytest.approx(8 * np.arange(row, row + length), abs=3.9), "each of its place"
        assert episode.actions.tolist() == [[k / 2, -number] for k in range(length - 1)]
        assert episode.rewards.tolist() == [k / 4 for k in range(length - 1)]
        assert set(episode.texts()) == {"lift \u00e4" if number == 2 else "push the T"}
        assert episode.truncated.tolist()[-1] and not episode.terminated.any()
        row += length


def test_lerobot_choices(tmp_path: Path) -> None:
    dataset = import_lerobot(
        LeRobotImport(source=lerobot(tmp_path / "x", whole=True), out=tmp_path / "out", prompt="p")
    )
    assert dataset.action_space == spaces.Discrete(5) and dataset.read()[0].actions.tolist() == [0, 1, 2, 3]
    assert set(dataset.read()[0].texts()) == {"p"}


@pytest.mark.parametrize(
    ("changes", "damage", "says"),
    [
        ({"info": {"codebase_version": "v2.1"}}, "", "format 'v2.1'; allowed: v3.0. Convert it"),
        ({"info": {"fps": 0}}, "", "fps is 0"),
        ({"info": {"fps": "fast"}}, "", "damaged or incomplete"),
        ({"info": {"features": {}}}, "", "0 features have images"),
        ({"info": {"features": []}}, "", "damaged or incomplete"),
        ({"info": {"features": {"../x": {"dtype": "video"}}}}, "", "damaged or incomplete"),
        ({"action": [1.0, float("nan")]}, "", "actions that are no finite numbers"),
        ({"action": [1.0, None]}, "", "actions that are no finite numbers|damaged"),
        ({"next.reward": float("inf")}, "", "the reward of step 0 is inf"),
        ({"episode_index": 0}, "", "rows of episode 0; meta/episodes says 5"),
        ({}, "data/chunk-000/file-001.parquet", "damaged or incomplete|No such file"),
        ({}, "meta/info.json", "meta/info.json is missing"),
        ({}, "meta/episodes/chunk-000/file-000.parquet", "no episodes"),
        ({}, "videos/observation.images.top/chunk-000/file-001.mp4", "there is no video"),
    ],
)
def test_damaged_lerobot_datasets(tmp_path: Path, changes: Any, damage: str, says: str) -> None:
    source = lerobot(tmp_path / "x", **changes)
    if damage:
        (source / damage).unlink()
    with pytest.raises((WorldsimError, OSError), match=says):
        import_lerobot(LeRobotImport(source=source, out=tmp_path / "out"))
    assert not list(tmp_path.glob("out*")), "nothing is left behind"


def test_a_video_that_ends_early(tmp_path: Path) -> None:
    source = lerobot(tmp_path / "x")
    film(source / "videos" / "observation.images.top" / "chunk-000" / "file-000.mp4", 7)
    with pytest.raises(DataError, match="ends before episode 1 does"):
        import_lerobot(LeRobotImport(source=source, out=tmp_path / "out"))
