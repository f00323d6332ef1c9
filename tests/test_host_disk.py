"""What lies on a host's disk: a stranger's data hurts nothing, and a full disk refuses and kills nothing."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_lab import ServiceLab, Victim, full_disk, no_files

from worldsim.bridges.host.checkpoints import Checkpoints
from worldsim.bridges.host.stored import generations
from worldsim.engine.engine import Engine
from worldsim.world import World

HOSTILE: list[Any] = [
    None, True, -1, 0, 2**64, 1.5, 1e300, "", "x", "../x", "../../etc", "/etc", "a/b", "x" * 500, "\x1b[2J", "a\x00b",
    "abcdefgh\n", "%2e%2e", [], [1], ["x"], ["a", -1], [["a", 1]], {}, {"a": 1}, {"mode": "turns"}, [[[[]]]],
]  # fmt: skip
"""Values that a field of a file may have; most are wrong anywhere."""


@pytest.fixture(scope="module")
def engine(world_path: Path) -> Iterator[Engine]:
    engine = Engine(World.from_pretrained(world_path), runtime="eager", threads=1, max_sessions=64)
    yield engine
    engine.close()


def left_behind(engine: Engine, folder: Path, count: int) -> tuple[list[str], list[int]]:
    """Sessions that a host has left on disk, each with two steps and a second player; their tokens and steps."""
    lab = ServiceLab(engine, folder)
    lab.hello(b"a")
    tokens, steps = [], []
    for seed in range(count):
        about = lab.ask(b"a", "open", seed=seed, prompt="a cart")
        tokens.append(about["session"])
        lab.ask(b"a", "share", session=tokens[-1], mode="split", parts=["left"])
        for _ in range(2):
            about = lab.ask(b"a", "step", session=tokens[-1], step=about["step"], action=0)
        steps.append(about["step"])
    lab.ask(b"a", "snapshot", session=tokens[0])
    lab.close()
    return tokens, steps


def resumed(engine: Engine, folder: Path) -> ServiceLab:
    lab = ServiceLab(engine, folder, resumed=True)
    lab.hello(b"a")
    return lab


def journal(place: Path) -> Path:
    (path,) = place.glob("journal-*.jsonl")
    return path


def line(text: str | bytes) -> Callable[[Path], None]:
    def add(place: Path) -> None:
        with journal(place).open("ab") as file:
            file.write(text.encode() if isinstance(text, str) else text)

    return add


def meta(**fields: Any) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        path = place / "meta.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


def whole(text: str) -> Callable[[Path], object]:
    return lambda place: (place / "meta.json").write_text(text)


def linked(place: Path) -> None:
    shutil.move(place, place.with_name("elsewhere"))
    place.symlink_to(place.with_name("elsewhere"))


def state(place: Path) -> None:
    (path,) = place.glob("state-*.session")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)


DAMAGE: dict[str, tuple[Callable[[Path], object], bool]] = {
    "nothing": (lambda place: None, True),
    "half a line": (line('{"step":0,"by":["aaaa'), True),
    "zeros after a power cut": (line(b"\0" * 4096), True),
    "a prompt that is no prompt": (line('{"prompt":5}\n'), False),
    "an action outside": (line('{"step":99999,"by":["aaaaaaaa",9]}\n'), False),
    "an action that is none": (line('{"step":null}\n'), False),
    "two events in one": (line('{"step":0,"fps":1}\n'), False),
    "a second beginning": (line('{"begin":{"seed":1}}\n'), False),
    "a negative clock": (line('{"fps":-1}\n'), False),
    "a request that is none": (line('{"step":0,"by":[1]}\n'), False),
    "a line of a list": (line("[1]\n"), False),
    "deep JSON": (line('{"step":' + "[" * 10_000 + "]" * 10_000 + "}\n"), False),
    "an unknown event": (line('{"exec":"rm"}\n'), False),
    "no journal": (lambda place: journal(place).unlink(), False),
    "an empty meta": (whole(""), False),
    "a deep meta": (whole("[" * 100_000 + "]" * 100_000), False),
    "a token that leaves the folder": (meta(token="../victim"), False),
    "a number that is a path": (meta(number="../../x"), False),
    "a number that is infinite": (whole('{"number":1e999}'), False),
    "another world": (meta(world="other"), False),
    "an unknown field": (meta(command="rm"), False),
    "a share of nothing": (meta(share={"mode": "turns", "token": "x" * 8, "every": 0}), False),
    "parts that the world has not": (meta(share={"mode": "split", "token": "x" * 8, "parts": [99]}), False),
    "a folder that is a link": (linked, False),
    "a changed state": (state, False),
}


def test_a_damaged_session_hurts_no_other(engine: Engine, tmp_path: Path) -> None:
    """All at once: a session of each damage lies among those of the others."""
    folder, outside = tmp_path / "sessions", tmp_path / "victim"
    tokens, steps = left_behind(engine, folder, len(DAMAGE))
    outside.mkdir()
    (outside / "thesis.txt").write_text("years of work")
    for token, (damage, _) in zip(tokens, DAMAGE.values(), strict=True):
        damage(folder / token)
    lab = resumed(engine, folder)
    codes = {
        name: lab.code(b"a", "step", session=token, step=step, action=0)
        for name, token, step in zip(DAMAGE, tokens, steps, strict=True)
    }
    assert codes == {name: "ok" if good else "no-session" for name, (_, good) in DAMAGE.items()}
    for hosted in list(lab.service.sessions.values()):
        lab.service.remove(hosted, "lease")
    assert (outside / "thesis.txt").exists() and engine.sessions == {}
    left = {path.name for path in folder.iterdir() if path.name not in ("snapshots", "elsewhere")}
    assert left == {token for token, (_, good) in zip(tokens, DAMAGE.values(), strict=True) if not good}
    lab.close()


def test_every_field_with_hostile_values(engine: Engine, tmp_path: Path) -> None:
    """Whatever a field says: the other sessions go on, nothing outside is touched, and what goes on can be stepped."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    folder, outside = tmp_path / "sessions", tmp_path / "x"
    tokens, steps = left_behind(engine, folder, 20)
    outside.mkdir()
    fields = list(json.loads((folder / tokens[0] / "meta.json").read_text()))
    assert 14 <= len(fields) < len(tokens)
    (kept,) = (folder / "snapshots").glob("*.json")
    for round_ in range(3):
        again = tmp_path / f"again-{round_}"
        shutil.copytree(folder, again)
        for token, name in zip(tokens[1:], fields, strict=False):
            meta(**{name: rng.choice(HOSTILE)})(again / token)
        about = json.loads(kept.read_text()) | {rng.choice(["owner", "world", "episode"]): rng.choice(HOSTILE)}
        (again / "snapshots" / kept.name).write_text(json.dumps(about))
        lab = resumed(engine, again)
        for token in {tokens[0], tokens[-1], *lab.service.sessions}:
            if (hosted := lab.service.sessions.get(token)) is None or not hosted.fps:
                assert lab.code(b"a", "step", session=token, step=steps[0], action=0) == "ok"
        assert lab.code(b"a", "stats") == "ok"
        for hosted in list(lab.service.sessions.values()):
            lab.service.remove(hosted, "lease")
        lab.close()
        assert outside.exists() and not list(outside.iterdir())


def test_the_checkpoint_before_goes_on_where_a_power_cut_took_the_newest(engine: Engine, tmp_path: Path) -> None:
    """Until the newest files were synced, those before them stay; with both journals they give the same frames."""
    lab = ServiceLab(engine, tmp_path)
    lab.checkpoints = lab.service.checkpoints = Checkpoints(tmp_path, every=0, fsync=1000)
    lab.hello(b"a")
    about = lab.ask(b"a", "open", seed=3, prompt="a cart")
    token = about["session"]
    for number in range(4):
        about = lab.ask(b"a", "step", session=token, step=about["step"], action=number % 2)
        if number == 1:
            lab.service.save(lab.service.sessions[token])
    frame = engine.sessions[lab.service.sessions[token].number].frame
    place = tmp_path / token
    assert set(generations(place, "journal")) == {1, 2}
    for path in (place / "meta.json", place / "state-2.session"):
        path.write_bytes(b"\0" * 100)
    lab.close()
    lab.service.checkpoints = None
    lab = resumed(engine, tmp_path)
    hosted = lab.service.sessions[token]
    assert engine.sessions[hosted.number].step >= about["step"] - 2
    lab.close()
    (place / "meta.json").unlink()
    assert np.asarray(frame).any()


def test_synced_checkpoints_leave_one_generation(engine: Engine, tmp_path: Path) -> None:
    lab = ServiceLab(engine, tmp_path)
    lab.checkpoints = lab.service.checkpoints = Checkpoints(tmp_path, every=0, fsync=1000)
    lab.hello(b"a")
    token = lab.ask(b"a", "open", seed=3, prompt="a cart")["session"]
    for _ in range(3):
        lab.service.save(lab.service.sessions[token])
    assert len(generations(tmp_path / token, "journal")) == 4
    lab.checkpoints.close()  # syncs what waits
    assert len(generations(tmp_path / token, "journal", "meta")) == 1
    lab.close()


Request = Callable[[list[str], list[int], str], tuple[str, dict[str, Any]]]
REQUESTS: dict[str, Request] = {
    "open": lambda tokens, steps, kept: ("open", {"seed": 1, "prompt": "a cart"}),
    "open from a clip": lambda tokens, steps, kept: ("open", {"start": 0}),
    "open from a snapshot": lambda tokens, steps, kept: ("open", {"snapshot": kept}),
    "open_batch": lambda tokens, steps, kept: ("open_batch", {"openings": [{"seed": i} for i in range(6)]}),
    "fork": lambda tokens, steps, kept: ("fork", {"session": tokens[0]}),
    "reset": lambda tokens, steps, kept: ("reset", {"session": tokens[0], "seed": 9}),
    "reset_batch": lambda tokens, steps, kept: ("reset_batch", {"sessions": tokens, "openings": [{"seed": 8}] * 2}),
    "restore": lambda tokens, steps, kept: ("restore", {"session": tokens[0], "snapshot": kept}),
    "snapshot": lambda tokens, steps, kept: ("snapshot", {"session": tokens[0]}),
    "share": lambda tokens, steps, kept: ("share", {"session": tokens[0], "mode": "turns"}),
    "prompt": lambda tokens, steps, kept: ("prompt", {"session": tokens[0], "prompt": ""}),
    "run": lambda tokens, steps, kept: ("run", {"session": tokens[0], "fps": 0.001}),
    "step": lambda tokens, steps, kept: ("step", {"session": tokens[0], "step": steps[0], "action": 1}),
    "step_batch": lambda tokens, steps, kept: (
        "step_batch",
        {"sessions": tokens, "steps": steps, "actions": [1, 0]},
    ),
}


@pytest.mark.parametrize("trouble", [lambda: full_disk(10), no_files], ids=["full", "files"])
def test_what_cannot_be_written_has_not_happened(trouble: Callable[[], Any], engine: Engine, tmp_path: Path) -> None:
    lab = ServiceLab(engine, tmp_path)
    victim = Victim(lab, 2 * len(REQUESTS))
    lab.hello(b"a")
    codes = {}
    for name, request in REQUESTS.items():
        about = [lab.ask(b"a", "open", seed=seed, prompt="a cart") for seed in range(2)]
        tokens, steps = [one["session"] for one in about], [one["step"] for one in about]
        kept = lab.ask(b"a", "snapshot", session=tokens[0])["snapshot"]
        verb, fields = request(tokens, steps, kept)
        before = state_of(lab, tmp_path)
        with trouble():
            codes[name] = lab.code(b"a", verb, **fields)
        assert state_of(lab, tmp_path) == before, name
        victim.play()
        codes[name] += " " + lab.code(b"a", verb, **fields)  # with room again it goes on
        victim.play()
        for token in set(lab.service.sessions) - {victim.token}:
            lab.ask(b"a", "close", session=token)
    assert codes == dict.fromkeys(REQUESTS, "no-room ok")
    lab.close()
    again = resumed(engine, tmp_path)
    assert lab_steps(again) == {victim.token: victim.step}
    again.close()


def lab_steps(lab: ServiceLab) -> dict[str, int]:
    return {token: lab.engine.sessions[hosted.number].step for token, hosted in lab.service.sessions.items()}


def state_of(lab: ServiceLab, folder: Path) -> Any:
    """All that a request could have changed: sessions, their frames and prompts, snapshots, files."""
    sessions = {
        token: (
            lab.engine.sessions[hosted.number].frame.tobytes(), lab.engine.sessions[hosted.number].prompt,
            lab.engine.sessions[hosted.number].step, hosted.episode, hosted.last_request, hosted.fps, hosted.share,
        )
        for token, hosted in lab.service.sessions.items()
    }  # fmt: skip
    files = {
        path.relative_to(folder): path.read_bytes() if path.suffix != ".session" else path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return sessions, sorted(lab.service.snapshots), len(lab.engine.sessions), files, len(lab.service.tokens)


def test_half_a_line_is_truncated_away(engine: Engine, tmp_path: Path) -> None:
    lab = ServiceLab(engine, tmp_path)
    lab.hello(b"a")
    about = lab.ask(b"a", "open", seed=3, prompt="a cart")
    path = journal(tmp_path / about["session"])
    for more in range(0, 60, 7):
        before = path.read_bytes()
        with full_disk(len(before) + more):
            code = lab.code(b"a", "step", session=about["session"], step=about["step"], action=0)
        assert code in ("ok", "no-room") and path.read_bytes()[-1:] == b"\n"
        assert (path.read_bytes() == before) == (code == "no-room")
        about["step"] += code == "ok"
    lab.close()


def test_sessions_take_no_files(engine: Engine, tmp_path: Path) -> None:
    def count() -> int:
        return len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").is_dir() else 0

    lab = ServiceLab(engine, tmp_path)
    lab.hello(b"a")
    before = count()
    for seed in range(8):
        about = lab.ask(b"a", "open", seed=seed, prompt="a cart")
        lab.ask(b"a", "step", session=about["session"], step=about["step"], action=0)
    assert count() == before
    lab.close()
