"""One request's trouble is its own: hostile values beside a victim, passes that fail, leases, limits."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from service_lab import WORLD, ServiceLab, Victim

from worldsim.bridges.host.accounts import Rates, account_of
from worldsim.bridges.host.dispatch import receive
from worldsim.bridges.host.records import ServiceConfig
from worldsim.bridges.host.serve import TextLines
from worldsim.bridges.host.turns import Turns
from worldsim.bridges.messages import pack
from worldsim.bridges.protocol import VERBS
from worldsim.engine.engine import Engine
from worldsim.world import World

SIZE = (40, 40)


@pytest.fixture(scope="module")
def shared(world_path: Path) -> Iterator[Engine]:
    engine = Engine(World.from_pretrained(world_path), runtime="eager", threads=1, max_sessions=64)
    yield engine
    engine.close()


@pytest.fixture
def engine(shared: Engine) -> Iterator[Engine]:
    """An engine without sessions, whatever a test before has left."""
    yield shared
    for number in list(shared.sessions):
        shared.close(number)


def clip(actions: Any, frames: int = 2, size: tuple[int, int] = SIZE, dtype: str = "uint8") -> dict[str, Any]:
    """Buffers of a clip to begin from."""
    return {"f": np.zeros((frames, *size, 3), dtype), "a": np.asarray(actions)}


NAN = np.array([np.nan], "float32")
FROM_CLIP = {"start": {"frames": "f", "actions": "a"}}
ROWS: dict[str, tuple[str, dict[str, Any], dict[str, Any] | None, str]] = {
    "nan in a clip": ("open", FROM_CLIP, clip(NAN), "bad-action"),
    "inf in a clip": ("open", FROM_CLIP, clip(np.array([np.inf], "float64")), "bad-action"),
    "-1 for a choice": ("open", FROM_CLIP, clip(np.array([-1], "int64")), "bad-action"),
    "int8 below": ("open", FROM_CLIP, clip(np.array([-2], "int8")), "bad-action"),
    "a huge choice": ("open", FROM_CLIP, clip(np.array([2**62], "int64")), "bad-action"),
    "too many actions": ("open", FROM_CLIP, clip(np.array([0, 0, 0], "int64")), "bad-action"),
    "actions of another shape": ("open", FROM_CLIP, clip(np.zeros((1, 3), np.int64)), "bad-action"),
    "frames of another size": ("open", FROM_CLIP, clip(np.array([0], "int64"), size=(8, 8)), "bad-start"),
    "frames of another kind": ("open", FROM_CLIP, clip(np.array([0], "int64"), dtype="float32"), "bad-start"),
    "no frames": ("open", FROM_CLIP, clip(np.array([], "int64"), frames=0), "bad-start"),
    "a ragged list": ("open", {"start": {"frames": "f", "actions": [[0], [0, 1]]}}, clip([0], 3), "bad-action"),
    "words for actions": ("open", {"start": {"frames": "f", "actions": ["left"]}}, clip([0]), "bad-action"),
    "a clip in a batch": ("open_batch", {"openings": [{}, FROM_CLIP]}, clip(NAN), "bad-action"),
    "a reset to nan": ("reset", {"session": "MINE", **FROM_CLIP}, clip(NAN), "bad-action"),
    "guidance as an integer": ("open", {"guidance": 2, "prompt": "a cart"}, None, "ok"),
    "guidance too high": ("open", {"guidance": 21}, None, "bad-field"),
    "a seed too large": ("open", {"seed": 2**63}, None, "bad-field"),
    "a clip that is not there": ("open", {"start": 2**62}, None, "bad-start"),
    "a huge action": ("step", {"session": "MINE", "step": "STEP", "action": 10**30}, None, "bad-action"),
    "a nan action": ("step", {"session": "MINE", "step": "STEP"}, {"action": NAN}, "bad-action"),
    "an empty action": ("step", {"session": "MINE", "step": "STEP"}, {"action": np.array([], "float32")}, "bad-action"),
    "an int8 action": ("step", {"session": "MINE", "step": "STEP"}, {"action": np.array([-1], "int8")}, "bad-action"),
    "a batch with one nan": (
        "step_batch", {"sessions": ["MINE"], "steps": ["STEP"]}, {"actions": NAN.astype(float)}, "bad-action",
    ),
    "a share of parts that are none": ("share", {"session": "MINE", "mode": "split", "parts": [0]}, None, "bad-field"),
    "the slowest clock": ("run", {"session": "MINE", "fps": 5e-324}, None, "ok"),
}  # fmt: skip


def test_hostile_values_in_valid_verbs(engine: Engine, tmp_path: Path) -> None:
    """Each is answered, changes nothing where it is refused, and the victim's frames are right, bit for bit."""
    lab = ServiceLab(engine, tmp_path)
    victim = Victim(lab, len(ROWS))
    lab.hello(b"a")
    found: dict[str, str] = {}
    for name, (verb, fields, buffers, _) in ROWS.items():
        about = lab.ask(b"a", "open", seed=1)
        places = {"MINE": about["session"], "STEP": about["step"]}
        filled = {
            key: [places.get(v, v) if isinstance(v, str) else v for v in value]
            if isinstance(value, list)
            else places.get(value, value) if isinstance(value, str) else value
            for key, value in fields.items()
        }  # fmt: skip
        before = (set(engine.sessions), engine.sessions[lab.service.sessions[about["session"]].number])
        found[name] = lab.code(b"a", verb, buffers, **filled)
        if found[name] != "ok":
            assert before == (set(engine.sessions), engine.sessions[lab.service.sessions[about["session"]].number])
        victim.play()
        for token in set(lab.service.sessions) - {victim.token}:
            lab.service.remove(lab.service.sessions[token], "end")
    assert found == {name: code for name, (*_, code) in ROWS.items()}
    lab.close()


NUMBERS: list[Any] = [
    0, 1, -1, 2, 255, 2**31, 2**53, 2**63 - 1, 2**63, 10**400, 0.0, -0.0, 1.0, 0.5, 5e-324, 1e308, True, None, "0", "",
    "left", "left+right", "\ud800", "\x1b[2J", [], [0], [1.0], [[0]], [None], {}, {"action": 0}, "x" * 2000,
]  # fmt: skip
ARRAYS = [np.nan, np.inf, -np.inf, -1, 0, 1, 2, 255, 3e38, 2**62]


def test_a_storm_of_hostile_values_beside_a_victim(engine: Engine, tmp_path: Path) -> None:
    """Requests of the right form, in whose fields and buffers anything may be."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    lab = ServiceLab(engine, tmp_path)
    victim = Victim(lab, 30)
    secret = {victim.token, lab.service.sessions[victim.token].watch}
    lab.hello(b"a")
    codes: set[str] = set()
    for number in range(3000):
        if number >= 450 and len(codes) >= 6:
            break
        tokens = [token for token in [*lab.service.tokens, *lab.service.snapshots] if token not in secret] or ["x" * 8]
        verb = rng.choice([name for name in VERBS if name != "hello"])
        fields: dict[str, Any] = {}
        for field in VERBS[verb].request:
            if field.needed or rng.random() < 0.5:
                good = {
                    "token": rng.choice(tokens), "tokens": rng.sample(tokens, 1), "int": rng.randrange(4),
                    "ints": [rng.randrange(4)], "start": rng.choice([0, FROM_CLIP["start"]]), "name": WORLD,
                    "openings": [{"seed": 1}, {"guidance": 2}], "encoding": "raw", "text": "a cart",
                }  # fmt: skip
                right = rng.random() < 0.7 and field.kind in good
                fields[field.name] = good[field.kind] if right else rng.choice(NUMBERS)
        dtype = rng.choice(["float32", "float64", "int64", "int8", "uint8", "int32"])
        with np.errstate(all="ignore"):
            array = np.asarray([rng.choice(ARRAYS)] * rng.randrange(3)).astype(dtype)
        buffers = clip(array, frames=rng.randrange(1, 4)) if rng.random() < 0.4 else None
        if rng.random() < 0.2:
            buffers = {rng.choice(["action", "actions"]): array}
        header = {"v": 1, "id": 10_000 + number, "verb": verb, **fields}
        receive(lab.service, b"a", pack(header, buffers))
        lab.service.draw()
        lab.service.tidy()
        codes |= {message.header["error"]["code"] for _, message in lab.sent if "error" in message.header}
        lab.sent.clear()
        if number % 15 == 0 and number < 450:
            victim.play()
        if len(lab.service.sessions) > 16:
            lab.service.remove(lab.service.sessions[(set(lab.service.sessions) - secret).pop()], "end")
    assert "failed" not in codes and len(codes) >= 6
    lab.close()


def test_a_pass_that_fails_is_the_trouble_of_one(engine: Engine, tmp_path: Path) -> None:
    """A session that the engine cannot step is drawn with others: only its own sender hears of it."""
    lab = ServiceLab(engine, tmp_path)
    victim = Victim(lab, 3)
    for name in (b"a", b"b"):
        lab.hello(name)
    about = {name: lab.ask(name, "open", seed=2, prompt="a cart") for name in (b"a", b"b")}
    broken = lab.service.sessions[about[b"a"]["session"]].number
    engine.sessions[broken] = replace(engine.sessions[broken], actions="nothing that can be stacked")  # type: ignore
    journal = next((tmp_path / about[b"a"]["session"]).glob("journal*")).read_bytes()
    sent = {
        name: lab.send(name, "step", session=one["session"], step=one["step"], action=0) for name, one in about.items()
    }
    victim.play()  # all three in one pass
    assert lab.answer(b"a", sent[b"a"]).header["error"]["code"] == "failed"
    assert lab.answer(b"b", sent[b"b"]).header["step"] == about[b"b"]["step"] + 1
    assert next((tmp_path / about[b"a"]["session"]).glob("journal*")).read_bytes() == journal  # taken back
    lab.ask(b"b", "watch", session=about[b"b"]["session"], credits=100)
    engine.sessions[broken] = replace(engine.sessions[broken], reward=float("nan"))
    lab.ask(b"b", "run", session=about[b"b"]["session"], fps=1000)
    assert lab.code(b"a", "watch", session=about[b"a"]["session"], credits=9) == "ok"
    lab.service.push_all(lab.service.sessions[about[b"a"]["session"]])  # a frame that cannot be told
    victim.play()
    lab.service.tidy()
    lab.close()


def test_a_lease_counts_only_time_in_which_the_host_listened(engine: Engine) -> None:
    """The host was paused, or its machine slept, for longer than a lease."""
    lab = ServiceLab(engine, config=ServiceConfig(lease=0.8, rate=1e9, wait_ms=0))
    lab.hello(b"a")
    about = lab.ask(b"a", "open", seed=1)
    lab.ask(b"a", "snapshot", session=about["session"])
    lab.service.tidy()
    time.sleep(1.0)
    lab.service.tidy()
    assert list(lab.service.sessions) == [about["session"]] and len(lab.service.snapshots) == 1
    for _ in range(11):  # now it listens, and nobody asks
        time.sleep(0.1)
        lab.service.tidy()
    assert not lab.service.sessions and not lab.service.snapshots


ACCOUNTS = [
    ("", "192.0.2.7", "address 192.0.2.7"),
    ("", "::ffff:192.0.2.7", "address 192.0.2.7"),
    ("", "2001:db8:1:2:3:4:5:6", "address 2001:db8:1:2::/64"),
    ("", "2001:db8:1:2:ffff::9", "address 2001:db8:1:2::/64"),
    ("", "2001:db8:1:3::9", "address 2001:db8:1:3::/64"),
    ("", "fe80::1%eth0", "address fe80::/64"),
    ("", "::1", "address ::/64"),
    ("", "127.0.0.1", "address 127.0.0.1"),
    ("", "localhost:0:0:31976", "local"),
    ("", "", "local"),
    ("", "\x00nonsense", "local"),
    ("k3y", "192.0.2.7", "key k3y"),
    ("k3y", "192.0.2.8", "key k3y"),
]


@pytest.mark.parametrize(("key", "address", "account"), ACCOUNTS)
def test_whom_limits_count(key: str, address: str, account: str) -> None:
    assert account_of(key, address) == account


@pytest.mark.parametrize(("account", "connections", "most"), [
    ("address a", 1, 100), ("address a", 3, 300), ("address a", 8, 800), ("address a", 50, 800),
    ("local", 50, 800), ("key a", 1, 100), ("key a", 3, 100), ("key a", 50, 100),
])  # fmt: skip
def test_the_rate_holds_by_account(account: str, connections: int, most: int) -> None:
    """Ten seconds of as many requests as a connection may: a key has one client's rate, an address that of eight."""
    rates, granted, now = Rates(100, 8), 0, 1000.0
    for step in range(10_000):
        now += 0.001
        granted += not rates.spend(account, b"%d" % (step % connections), now)
    assert 0.9 * min(10_000, 10 * most) <= granted <= 10 * most + 4 * most  # and one burst, which shrinks as they come
    assert rates.spend("address b", b"other", now) == 0.0


def test_names_and_connections_make_no_new_limits(engine: Engine, tmp_path: Path) -> None:
    config = ServiceConfig(sessions=3, snapshots=2, lease=1e6, rate=1e9, wait_ms=0, per_address=2)
    lab = ServiceLab(engine, tmp_path, config=config)
    lab.hello(b"victim")
    about = lab.ask(b"victim", "open", seed=1)
    kept = lab.ask(b"victim", "snapshot", session=about["session"])["snapshot"]
    for number in range(20):  # one connection under many names
        lab.hello(b"a", f"many-{number:04}")
        lab.code(b"a", "open", seed=number)
    assert len(lab.service.sessions) == 1 + 3
    for number in range(20):  # many connections
        lab.hello(b"c%d" % number)
        code = lab.code(b"c%d" % number, "open", seed=number)
        if code == "ok":
            mine = lab.ask(b"c%d" % number, "open", seed=number).get("session", list(lab.service.sessions)[-1])
            lab.code(b"c%d" % number, "snapshot", session=mine)
    assert len(lab.service.sessions) == 3 * 2 and len(lab.service.snapshots) <= 2 * 2
    for number in range(4300):
        receive(lab.service, b"d%d" % number, pack({"v": 1, "id": 1, "verb": "hello", "client": f"name-{number:06}"}))
    lab.service.tidy()
    assert lab.code(b"victim", "restore", session=about["session"], snapshot=kept) in ("ok", "hello-first")
    assert kept in lab.service.snapshots and len(lab.service.clients) <= 4096
    lab.close()


def test_long_work_takes_turns(engine: Engine) -> None:
    """However much others ask for, at most one piece of it is done between two frames of someone who plays."""
    lab = ServiceLab(engine)
    victim = Victim(lab, 12)
    turns = Turns(lab.service)
    for name in (b"a", b"b"):
        lab.hello(name)
    for number in range(30):
        header = {"v": 1, "id": 10**6 + number, "verb": "open", "seed": number}
        turns.put(b"a", pack(header), "", "")
    batch = {"v": 1, "id": 10**6, "verb": "open_batch", "openings": [{"seed": i} for i in range(24)]}
    turns.put(b"b", pack(batch), "", "")
    behind = {"v": 1, "id": 10**6 + 1, "verb": "stats"}
    turns.put(b"b", pack(behind), "", "")
    assert not lab.sent[-1:] or lab.sent[-1][1].header["verb"] == "hello"
    while victim.done < 12:
        victim.ask()
        turns.turn()
        once = len(engine.sessions)
        turns.turn()  # a second piece has to wait until the frame was drawn
        assert len(engine.sessions) == once
        victim.see()
        turns.drew()
        time.sleep(0.01)
    end = time.monotonic() + 30
    while len(lab.service.sessions) < 1 + 30 + 24 and time.monotonic() < end:
        turns.turn()
    assert len(lab.service.sessions) == 1 + 30 + 24
    verbs = [message.header["verb"] for peer, message in lab.sent if peer == b"b"]
    assert verbs.index("open_batch") < verbs.index("stats")  # in the order in which they were sent
    lab.close()


def batch_of(lab: ServiceLab, count: int) -> tuple[list[str], list[int]]:
    """Sessions of the connection "a", and their steps."""
    lab.hello(b"a")
    about = lab.ask(b"a", "open_batch", openings=[{"seed": i, "prompt": "a cart"} for i in range(count)])
    return about["sessions"], about["steps"]


def test_a_large_request_is_drawn_in_parts(engine: Engine, tmp_path: Path) -> None:
    """Beside someone who plays: the frames are those of one pass, and the other waits for none of it but a part."""
    lab = ServiceLab(engine, tmp_path)
    victim = Victim(lab, 40)
    tokens, steps = batch_of(lab, 24)
    numbers = [engine.fork(lab.service.sessions[token].number) for token in tokens]
    right = [step.frame for step in engine.step({number: i % 2 for i, number in enumerate(numbers)}).values()]
    for number in numbers:
        engine.close(number)
    victim.play()
    before = victim.done
    actions = [i % 2 for i in range(24)]
    asked = lab.send(b"a", "step_batch", sessions=tokens, steps=steps, actions=actions)
    while not any(message.header["id"] == asked for _, message in lab.sent):
        victim.ask()
        lab.service.draw()
        victim.see()
        late = lab.answer(b"a", lab.send(b"a", "prompt", session=tokens[-1], prompt="")).header
        assert "error" not in late or late["error"]["code"] == "out-of-order"
        if victim.done - before > 3:
            break
    message = lab.answer(b"a", asked)
    assert victim.done - before >= 2
    assert np.array_equal(message.buffers["frames"], right) and message.header["steps"] == [s + 1 for s in steps]
    lab.close()
    again = ServiceLab(engine, tmp_path, resumed=True)  # with the frames of all of them
    left = {token: engine.sessions[hosted.number].step for token, hosted in again.service.sessions.items()}
    assert [left[token] for token in tokens] == message.header["steps"]
    again.close()


@pytest.mark.parametrize("end", ["the last part fails", "a session is closed", "the host stops"])
def test_a_large_request_is_all_or_nothing(engine: Engine, tmp_path: Path, end: str) -> None:
    lab = ServiceLab(engine, tmp_path)
    victim = Victim(lab, 12)
    tokens, steps = batch_of(lab, 24)
    journals = {token: next((tmp_path / token).glob("journal*")).read_bytes() for token in tokens}
    victim.play()
    asked = lab.send(b"a", "step_batch", sessions=tokens, steps=steps, actions=[0] * 24)
    victim.play()
    drawn = [engine.sessions[lab.service.sessions[token].number].step for token in tokens]
    assert steps != drawn and lab.service.sessions[tokens[0]].divided
    last = lab.service.sessions[tokens[-1]].number
    if end == "the host stops":
        lab.service.bye()
        assert lab.answer(b"a", asked).header["steps"] == [step + 1 for step in steps]
        lab.close()
        return
    if end == "a session is closed":
        lab.ask(b"b", "hello", client="another-one")
        lab.code(b"b", "close", session=tokens.pop())
        steps.pop()
    else:
        engine.sessions[last] = replace(engine.sessions[last], actions="nothing that can be stacked")  # type: ignore
    code = lab.answer(b"a", asked).header["error"]["code"]
    assert code == ("failed" if end == "the last part fails" else "no-session")
    assert [engine.sessions[lab.service.sessions[token].number].step for token in tokens] == steps
    assert all(next((tmp_path / token).glob("journal*")).read_bytes() == journals[token] for token in tokens)
    victim.play()
    lab.close()


def test_a_batch_that_cannot_be_opened_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    lab = ServiceLab(engine, tmp_path)
    lab.hello(b"a")
    openings = [*({"seed": i} for i in range(9)), {"start": 2**40}]
    assert lab.code(b"a", "open_batch", openings=openings) == "bad-start"
    assert not engine.sessions and [path.name for path in tmp_path.iterdir()] == ["snapshots"]
    lab.close()


def test_a_log_for_people_obeys_nobody() -> None:
    import logging

    record = logging.LogRecord("worldsim", logging.INFO, "", 0, "no \x1b[2J", (), None)
    record.fields = {"prompt": "\x1b]0;title\x07\r\nlies", "other": "\u202egnp"}
    shown = TextLines().format(record)
    assert shown.isprintable() and "\\x1b" in shown and "\\u202e" in shown
