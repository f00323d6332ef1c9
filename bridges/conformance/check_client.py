"""Check whether a client follows the protocol; for authors of clients.

python -m worldsim.bridges.conformance.check_client -- my-client {address} {frames}

Each check starts a scripted host and runs the client once. The client must say hello, open one session, step it
{frames} times, one step after the other, and end. Address and number stand in its command for {address} and {frames},
and in WORLDSIM_ADDRESS and WORLDSIM_FRAMES. In most checks the host does what networks and hosts do on bad days. It
makes its frames up, so that nothing but numpy and pyzmq is needed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence

from worldsim.bridges.conformance.checks import Failed, Result, attempt
from worldsim.bridges.conformance.scripted_host import (
    FRAMES,
    WORLD,
    ScriptedHost,
    Trouble,
)
from worldsim.bridges.conformance.troubles import (
    TROUBLES,
)


class Client:
    """The client under test, while it runs.

    Args:
        run: a command, or a function of the address.
        address: of the host.
        frames: to draw.
    """

    def __init__(self, run: Sequence[str] | Callable[[str], None], address: str, frames: int) -> None:
        """Start the client."""
        self.said = tempfile.TemporaryFile()
        self.error = ""
        self.process: subprocess.Popen[bytes] | None = None
        if not callable(run):
            words = [word.replace("{address}", address).replace("{frames}", str(frames)) for word in run]
            environment = os.environ | {"WORLDSIM_ADDRESS": address, "WORLDSIM_FRAMES": str(frames)}
            self.process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=self.said, stderr=subprocess.STDOUT, env=environment
            )
            return
        self.thread = threading.Thread(target=self._call, args=(run, address), daemon=True)
        self.thread.start()

    def ended(self) -> bool:
        """Say whether the client has ended."""
        return not self.thread.is_alive() if self.process is None else self.process.poll() is not None

    def end(self) -> str:
        """End the client if it still runs; return what went wrong, if anything."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            if self.process.wait():
                self.said.seek(0)
                lines = [line for line in self.said.read().decode(errors="replace").splitlines() if line.strip()]
                self.error = f"it ended with {self.process.returncode}: {lines[-1] if lines else 'no word'}"
        self.said.close()
        return self.error

    def _call(self, run: Callable[[str], None], address: str) -> None:
        try:
            run(address)
        except Exception as error:
            self.error = f"it raised {type(error).__name__}: {error}"


def check_client(
    run: Sequence[str] | Callable[[str], None],
    frames: int = 12,
    world: str = "made-up",
    only: Sequence[str] = (),
    patience: float = 20.0,
    report: Callable[[str], None] | None = None,
) -> list[Result]:
    """Check a client.

    Args:
        run: a command, in whose words {address} and {frames} are replaced; or a function that takes the address, opens
            a session, steps it `frames` times, and raises what goes wrong.
        frames: to draw, at least 8.
        world: its name.
        only: names of checks; all by default.
        patience: seconds without a request after which the client fails; more than its own timeout of a reply.
        report: takes a line for each check when it is done.

    Raises:
        ValueError: there is no such check, or too few frames.
    """
    if unknown := set(only) - set(TROUBLES):
        raise ValueError(f"there are no checks called {sorted(unknown)}; allowed: {', '.join(TROUBLES)}.")
    if frames < FRAMES:
        raise ValueError(f"frames is {frames}; allowed: at least {FRAMES}, so that all troubles come.")
    tokens: list[str] = []

    def watch(trouble: Trouble) -> str:
        host = ScriptedHost(trouble, WORLD | {"name": world})
        client = Client(run, host.address, frames)
        try:
            host.serve(client.ended, patience)
        except Failed as failure:
            host.faults.append(str(failure))
        finally:
            ending = client.end()
            host.close()
        return _verdict(host, ending, frames, tokens)

    results = []
    for name in only or TROUBLES:
        trouble = TROUBLES[name]()
        about = (type(trouble).__doc__ or "").splitlines()[0].rstrip(".")
        results.append(attempt(name, about, lambda trouble=trouble: watch(trouble), report))
    return results


def _verdict(host: ScriptedHost, ending: str, frames: int, tokens: list[str]) -> str:
    """Judge a run.

    Raises:
        Failed: something was wrong.
    """
    if not host.client:
        host.faults.append(f"expected a hello; came none. {ending}")
    elif host.client in tokens:
        host.faults.append("the client token is the same as in the run before; expected one made up at random")
    tokens.append(host.client)
    if host.faults:
        raise Failed("none of this", f"{'; '.join(dict.fromkeys(host.faults))}")
    early = host.trouble.may_end and host.done < frames
    if not early and (host.done != frames or ending):
        raise Failed(f"{frames} steps and a good end", f"{host.done} steps. {ending}")
    return f"{host.done} steps" + (f"; {ending or 'it ended'}" if early else "")


def main(words: Sequence[str] | None = None) -> int:
    """Check the client that a command starts; return 0 if no check failed."""
    parser = argparse.ArgumentParser(
        prog="python -m worldsim.bridges.conformance.check_client", description=main.__doc__
    )
    parser.add_argument("command", nargs="+", help="its words, after --; {address} and {frames} are replaced")
    parser.add_argument("--frames", type=int, default=12, help=f"to draw, at least {FRAMES}")
    parser.add_argument("--world", default="made-up", help="name of the made-up world")
    parser.add_argument("--only", action="append", default=[], metavar="CHECK", choices=list(TROUBLES),
                        help=f"may be repeated: {', '.join(TROUBLES)}")  # fmt: skip
    parser.add_argument("--patience", type=float, default=20.0, help="seconds without a request until it fails")
    args = parser.parse_args(words)
    report = lambda line: print(line, flush=True)  # noqa: E731
    results = check_client(args.command, args.frames, args.world, args.only, args.patience, report)
    counts = Counter(result.ok for result in results)
    print(f"{counts[True]} ok, {counts[False]} failed")
    return 1 if counts[False] else 0


if __name__ == "__main__":
    sys.exit(main())
