"""Kill a host again and again, and damage what it has left of some sessions: the others go on as if nothing had been.

    python tests/benchmarks/kill_host.py tests/data/old_world --kills 100

Clients play without a break, each a session whose frames are known from an engine of this process. At each kill the
files of up to two sessions are damaged, in the ways of tests/test_host_disk.py. A client may lose its session, or see
it go back by some steps, only if that was damaged, and then begins another; every frame that anybody sees must be the
right one.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hosting import HostProcess, digest
from test_host_disk import DAMAGE

from worldsim.bridges.client import RemoteEngine
from worldsim.bridges.client.connection import ConnectionConfig
from worldsim.engine.engine import Engine
from worldsim.engine.records import SessionSpec
from worldsim.errors import ProtocolError, SessionError
from worldsim.world import World

PATIENT = ConnectionConfig(timeout=1.0, patience=180.0)


class Client(threading.Thread):
    """Plays a session and holds its frames against those of an engine of its own."""

    def __init__(self, address: str, world: World, seed: int) -> None:
        """Begin a session of each."""
        super().__init__()
        self.remote, self.local = RemoteEngine(address, config=PATIENT), Engine(world, threads=1, isolated=True)
        self.rng, self.token, self.damaged, self.stopped = random.Random(seed), "", dict[str, str](), threading.Event()
        self.frames = self.lost = self.back = self.wrong = 0
        self.failure: BaseException | None = None
        self._begin()

    def _begin(self) -> None:
        spec = SessionSpec(seed=self.rng.randrange(2**31), prompt="a cart")
        self.here, self.there = (engine.open_all([spec])[0] for engine in (self.local, self.remote))
        self.token = self.remote.sessions[self.there].token

    def run(self) -> None:
        """Play until told to stop."""
        try:
            while not self.stopped.is_set():
                action = self.rng.randrange(2)
                try:
                    seen = self.remote.step({self.there: action})[self.there]
                except (SessionError, ProtocolError) as error:
                    # Gone, or back where the files before the damaged ones end, as after a power cut.
                    back = isinstance(error, ProtocolError) and error.code == "out-of-order"
                    if self.token not in self.damaged or not (back or isinstance(error, SessionError)):
                        raise
                    self.lost, self.back = self.lost + (not back), self.back + back
                    self._begin()
                    continue
                right = self.local.step({self.here: action})[self.here]
                self.frames += 1
                self.wrong += (seen.step, digest(seen.frame)) != (right.step, digest(right.frame))
        except BaseException as error:
            self.failure = error


def main() -> None:
    """Kill, damage, resume; then say what was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, damages = random.Random(options.seed), 0
    with tempfile.TemporaryDirectory() as folder:
        words = ("--every", "0.5", "--isolated")
        host = HostProcess([options.world], Path(folder), 0, *words)
        world = World.from_pretrained(options.world)
        clients = [Client(host.address, world, options.seed + i) for i in range(options.clients)]
        for client in clients:
            client.start()
        for kill in range(options.kills):
            time.sleep(rng.uniform(0.2, 1.5))
            host.kill()
            for client in rng.sample(clients, rng.randrange(3)):
                place, (name, (damage, _)) = Path(folder) / "sessions" / client.token, rng.choice(list(DAMAGE.items()))
                if (place / "meta.json").is_file() and list(place.glob("journal-*")) and list(place.glob("state-*")):
                    client.damaged[client.token] = name
                    try:
                        damage(place)
                    except ValueError:  # two generations lie there: the older one is damaged by hand
                        max(place.glob("journal-*.jsonl")).write_bytes(b"[1]\n")
                    damages += name != "nothing"
            host = HostProcess([options.world], Path(folder), host.port, *words, "--resume")
            if any(client.failure for client in clients):
                break
            print(f"\r{kill + 1} kills, {damages} damaged", end="", flush=True)
        for client in clients:
            client.stopped.set()
        for client in clients:
            client.join(60)
        host.kill()
    names = ("frames", "wrong", "lost", "back")
    frames, wrong, lost, back = (sum(getattr(client, name) for client in clients) for name in names)
    print(f"\n{frames} frames, {wrong} wrong; {damages} damaged; of these {lost} lost, {back} back by some steps")
    for client in clients:
        if client.failure is not None:
            raise client.failure


if __name__ == "__main__":
    main()
