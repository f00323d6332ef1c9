"""Whose long work is done next, on a host: nobody waits for ever, whoever else asks for how much."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from service_lab import ServiceLab

from worldsim.bridges.host import verbs as verbs_package
from worldsim.bridges.host.records import ServiceConfig
from worldsim.bridges.host.turns import MOST_JOBS, Turns
from worldsim.bridges.host.verbs import opening
from worldsim.bridges.messages import pack
from worldsim.engine.engine import Engine
from worldsim.world import World

assert verbs_package  # the handlers


@pytest.fixture
def engine(world: World) -> Iterator[Engine]:
    found = Engine(world, threads=1, memory_mb=256)
    yield found
    found.close()


class Crowd:
    """Connections by address, whose messages wait for their turn."""

    def __init__(self, engine: Engine) -> None:
        self.lab = ServiceLab(engine, config=ServiceConfig(lease=1e6, rate=1e9, wait_ms=0, sessions=4096))
        self.turns, self.ids, self.sent = Turns(self.lab.service), itertools.count(1), 0

    def say(self, name: str, address: str, verb: str, **fields: object) -> int:
        """Send a request over the connection of a client and return its id."""
        number, peer = next(self.ids), f"{name}@{address}".encode()
        if peer not in self.lab.service.peers:
            hello = {
                "v": 1,
                "id": next(self.ids),
                "verb": "hello",
                "client": f"client-{name}-{address}".replace(".", "-"),
            }
            self.turns.put(peer, pack(hello), "", address)
        self.turns.put(peer, pack({"v": 1, "id": number, "verb": verb, **fields}), "", address)
        return number

    def until(
        self, number: int, meanwhile: Callable[[], object] = lambda: None, most: int = 5000, refused: bool = False
    ) -> int:
        """Do turns until a request is answered, and return how many."""
        for turn in range(most):
            for _, message in self.lab.sent:
                if message.header["id"] == number:
                    assert ("error" in message.header) == refused, message.header
                    return turn
            meanwhile()
            self.turns.turn()
        raise AssertionError(f"request {number} is not answered after {most} turns")


@pytest.fixture
def crowd(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Crowd]:
    monkeypatch.setattr(opening, "LONG", 1e-9)  # each pass is a piece
    found = Crowd(engine)
    yield found
    found.lab.close()


def openings(count: int) -> list[dict[str, object]]:
    return [{"seed": i, "prompt": "a cart"} for i in range(count)]


def alone(crowd: Crowd) -> int:
    """Turns that a session takes to begin."""
    return crowd.until(crowd.say("first", "10.0.0.1", "open", seed=1, prompt="a cart"))


@pytest.mark.parametrize("batches", [1, 4, MOST_JOBS - 1])
@pytest.mark.parametrize("address", ["10.0.0.9", "10.0.0.2"])
def test_batches_hold_nobody_up(crowd: Crowd, batches: int, address: str) -> None:
    pieces = alone(crowd)
    for i in range(batches):
        crowd.say(f"batch-{i}", "10.0.0.2", "open_batch", openings=openings(64))
    number = crowd.say("victim", address, "open", seed=2, prompt="a cart")
    shares = batches + 1 if address == "10.0.0.2" else 2
    assert crowd.until(number) <= (pieces + 2) * shares + batches


def test_two_accounts_in_turn(crowd: Crowd) -> None:
    """One has a long job, the other jobs and small long requests."""
    pieces = alone(crowd)
    session = crowd.lab.sent[-1][1].header["session"]
    crowd.say("batch", "10.0.0.2", "open_batch", openings=openings(100))
    number = crowd.say("victim", "10.0.0.9", "open", seed=2, prompt="a cart")

    def busy() -> None:
        for name in ("b", "c"):
            if len(crowd.turns._queues) < 4:
                crowd.say(name, "10.0.0.9", "fork", session=session)

    assert crowd.until(number, busy) <= 8 * (pieces + 2)


@pytest.mark.parametrize("accounts", [8, 100])
def test_many_accounts_that_always_ask(crowd: Crowd, accounts: int) -> None:
    pieces = alone(crowd)
    session = crowd.lab.sent[-1][1].header["session"]
    number = crowd.say("victim", "10.0.0.9", "open", seed=2, prompt="a cart")

    def busy() -> None:
        waiting = {crowd.turns._account(peer) for peer in crowd.turns._queues}
        for i in range(accounts):
            if f"address 10.1.0.{i}" not in waiting:
                crowd.say("a", f"10.1.0.{i}", "fork", session=session)

    assert crowd.until(number, busy, 20_000) <= (pieces + 2) * (accounts + 2)


def test_newcomers_do_not_overtake_for_ever(crowd: Crowd) -> None:
    """Each of a stream of new connections of the same address has one request."""
    pieces = alone(crowd)
    session = crowd.lab.sent[-1][1].header["session"]
    number, names = crowd.say("victim", "10.0.0.9", "open", seed=2, prompt="a cart"), itertools.count()
    waiting = lambda: sum(map(len, crowd.turns._queues.values()))  # noqa: E731
    newcomer = lambda: waiting() < 5 and crowd.say(f"n{next(names)}", "10.0.0.9", "fork", session=session)  # noqa: E731
    assert crowd.until(number, newcomer) <= (pieces + 2) * 8


def test_a_bounded_number_is_worked_on(crowd: Crowd) -> None:
    numbers = [crowd.say(f"c{i}", "10.0.0.2", "open", seed=i, prompt="a cart") for i in range(3 * MOST_JOBS)]
    most = 0

    def look() -> None:
        nonlocal most
        most = max(most, len(crowd.lab.service.jobs))

    for number in numbers:
        crowd.until(number, look)
    assert most == MOST_JOBS and not crowd.lab.service.jobs and not crowd.lab.service.beginning


def test_a_reset_that_comes_late_is_refused(crowd: Crowd) -> None:
    """A newer request of the same client was acknowledged while the reset was worked on."""
    alone(crowd)
    session = crowd.lab.sent[-1][1].header["session"]
    late = crowd.say("first", "10.0.0.1", "reset", session=session, seed=9)
    crowd.turns.turn()
    assert crowd.lab.service.jobs
    client, newer = "client-first-10-0-0-1", next(crowd.ids)
    for header in (
        {"id": next(crowd.ids), "verb": "hello", "client": client},
        {"id": newer, "verb": "prompt", "session": session, "prompt": ""},
    ):
        crowd.turns.put(b"second", pack({"v": 1, **header}), "", "10.0.0.1")
    crowd.until(late, refused=True)
    said = {message.header["id"]: message.header for _, message in crowd.lab.sent}
    assert said[late]["error"]["code"] == "out-of-order" and "error" not in said[newer]
    hosted = crowd.lab.service.sessions[session]
    assert crowd.lab.service.record(hosted).prompt == "" and len(crowd.lab.engine.sessions) == 1
