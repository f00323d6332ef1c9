"""What the system refuses is one line that names the file, leaves nothing half written, and can be tried again."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file

from worldsim import cli
from worldsim.data.episodes import Dataset
from worldsim.errors import DataError
from worldsim.files import locked, replacing, replacing_folder

SMALL = "--steps 2 --widths 16 --encoder-blocks 1 --decoder-blocks 1 --latent-channels 4 --batch 4".split()


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """A system that refuses to write more than `size` bytes into a file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def frames(folder: Path) -> Path:
    """A folder of PNGs and its log."""
    (folder / "v").mkdir()
    for i, frame in enumerate(np.random.default_rng(1).integers(0, 256, (6, 40, 40, 3), np.uint8)):
        Image.fromarray(frame).save(folder / "v" / f"{i}.png")
    (folder / "v.csv").write_text("action\n" + "0\n1\n" * 3)
    return folder / "v"


VERBS = {
    "record": "record CartPole-v1 --frames 100 --workers 1 --frame-size 40 40 --max-episode-steps 20 --out {out}",
    "record-2": "record CartPole-v1 --frames 100 --workers 2 --frame-size 40 40 --max-episode-steps 20 --out {out}",
    "import-video": "data import-video {video} --out {out}",
    "sheet": "data sheet {data} --out {out}/s.png",
    "export-minari": "data export-minari {data} --root {out}",
    "train": "train autoencoder {data} --out {out}",
    "keys": "keys alice --folder {out}",
}


def words(verb: str, out: Path | str, data: Path, folder: Path) -> list[str]:
    video = frames(folder) if verb == "import-video" else ""
    return VERBS[verb].format(out=out, data=data, video=video).split() + (SMALL if verb == "train" else [])


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("place", ["/proc/nothing/x", "file/x"])
def test_a_folder_that_cannot_be_made(
    verb: str, place: str, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if verb == "export-minari":
        pytest.importorskip("minari")
    (tmp_path / "file").write_text("a file")
    out = place if place.startswith("/") else str(tmp_path / place)
    assert cli.main(words(verb, out, dataset.path, tmp_path)) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("worldsim: ") and out.rsplit("/", 1)[0] in said[-1] and "Traceback" not in str(said)


@pytest.mark.parametrize("verb", ["record", "record-2", "import-video", "train"])
def test_a_full_disk(verb: str, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    line = words(verb, out, dataset.path, tmp_path)
    with full_disk(20_000):
        assert cli.main(line) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"worldsim: {out}") and os.strerror(errno.EFBIG) in said
    left = [path.name for path in out.rglob("*") if path.is_file()] if out.exists() else []
    assert not [name for name in left if not name.startswith(("dataset.json", "events.out", "log.jsonl"))], left
    assert cli.main(line) == 0, "it can be tried again"


def test_finished_episodes_stay_when_the_disk_is_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = words("record", tmp_path / "d", tmp_path, tmp_path)
    line[line.index("--frames") + 1] = "20"
    assert cli.main(line) == 0
    line[line.index("--frames") + 1] = "100"
    before = {path: path.read_bytes() for path in (tmp_path / "d").rglob("*.safetensors")}
    with full_disk(20_000):
        assert cli.main(line) == 2
    assert before == {path: path.read_bytes() for path in (tmp_path / "d").rglob("*.safetensors")}


def raising(error: BaseException) -> object:
    def verb(args: object) -> None:
        raise error

    return verb


@pytest.mark.parametrize(
    ("error", "says", "status"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "d/x"), "d/x: No space left on device. Free some space", 2),
        (OSError(errno.EROFS, "Read-only file system", "d"), "d: Read-only file system. Choose a folder", 2),
        (PermissionError(errno.EACCES, "Permission denied", "d"), "d: Permission denied. Choose a folder that can", 2),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "a"), "a: No such file or directory.", 2),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), "a -> b: Invalid cross-device link.", 2),
        (OSError(errno.EMFILE, "Too many open files"), "Too many open files. Allow more open files", 2),
        (OSError("a socket of the system"), "a socket of the system.", 2),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), "Connection reset by peer.", 2),
        (MemoryError(), "there is not enough memory.", 2),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes"), "not enough memory", 2),
        (RuntimeError("Could not determine home directory."), "this user has no home folder; set HOME", 2),
        (DataError("a world says \x1b[2J\x07 hello"), r"a world says \x1b[2J\x07 hello", 2),
        (DataError("\u202egnp.exe"), r"\u202egnp.exe", 2),
        (KeyboardInterrupt(), "stopped", 130),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "what reads the output has gone away", 2),
    ],
)
def test_errors_are_one_line(
    error: BaseException, says: str, status: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(cli.VERBS, "record", raising(error))
    kept = os.dup(1)
    try:
        assert cli.main(["record"]) == status
    finally:
        os.dup2(kept, 1)
        os.close(kept)
    said = capfd.readouterr().err
    assert says in said and said.startswith("worldsim: ") and said.count("\n") == 1


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=40), st.integers(0, 140), st.one_of(st.none(), st.text(max_size=10)))
def test_whatever_the_system_says_is_printable(words: str, number: int, name: str | None) -> None:
    for error in (OSError(number, words, name), DataError(words), MemoryError(words)):
        explained = cli.explain(error)
        assert explained is not None and explained[1] in (2, 130)
        assert all(part.isprintable() for part in explained[0].split("\n"))


def test_a_fault_of_ours_is_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.VERBS, "record", raising(ValueError("a bug")))
    with pytest.raises(ValueError, match="a bug"):
        cli.main(["record"])
    monkeypatch.setitem(cli.VERBS, "record", raising(DataError("no such thing")))
    monkeypatch.setenv("WORLDSIM_TRACEBACK", "1")
    with pytest.raises(DataError):
        cli.main(["record"])


def save_open(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"x": torch.zeros(100_000)}, file)


def test_libraries_in_other_languages_say_it_as_the_system_does(tmp_path: Path) -> None:
    big = np.zeros(100_000, np.uint8)
    with full_disk(20_000):
        for write in (
            lambda path: save_file({"x": big}, path),
            save_open,
            lambda path: path.write_bytes(big.tobytes()),
        ):
            with pytest.raises(OSError, match="File too large") as error, replacing(tmp_path / "x.bin") as partial:
                write(partial)
            assert error.value.errno == errno.EFBIG and Path(error.value.filename).stem == "x"
            assert not list(tmp_path.iterdir())


def test_folders_are_replaced_at_once(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "old").write_text("old")
    with pytest.raises(RuntimeError), replacing_folder(tmp_path / "w") as partial:
        (partial / "new").write_text("new")
        raise RuntimeError("stopped")
    assert [path.name for path in tmp_path.rglob("*")] == ["w", "old"]
    with replacing_folder(tmp_path / "w") as partial:
        (partial / "new").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["w", "new"]


def test_a_lock_is_of_one_process_and_dies_with_it(tmp_path: Path) -> None:
    code = "import sys, time; from worldsim.files import locked\nfrom pathlib import Path\n"
    code += "with locked(Path(sys.argv[1]), 'recording into d'): print('has it', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "x.lock")], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "has it\n"
        with (
            pytest.raises(DataError, match="another process is recording into d; wait"),
            locked(tmp_path / "x.lock", "recording into d"),
        ):
            pass
        other.kill()
    end = time.monotonic() + 10
    while True:
        try:
            with locked(tmp_path / "x.lock", "recording into d"):
                break
        except DataError:
            assert time.monotonic() < end
    assert not list(tmp_path.iterdir())


def test_a_script_without_a_guard_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        textwrap.dedent("""
        from pathlib import Path
        from worldsim.data.record import RecordConfig, record
        record(RecordConfig(game="CartPole-v1", out=Path("d"), frames=40, frame_size=(16, 16)))
        """)
    )
    run = subprocess.run([sys.executable, "mine.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1 and 'needs the line `if __name__ == "__main__":`' in run.stderr
    assert not list(tmp_path.glob("d/*/*"))
