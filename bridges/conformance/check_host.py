"""Check whether a host follows the protocol; for authors of hosts.

python -m worldsim.bridges.conformance.check_host tcp://127.0.0.1:5570

The checks speak through plain sockets, so that they can send wrong messages too. Each prints a line: ok, FAILED or
skipped. They open and close sessions of their own, and touch no others. Run them on an idle host: two of them measure
time.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence

from worldsim.bridges import protocol
from worldsim.bridges.conformance.checks import Failed, Result, attempt, expect
from worldsim.bridges.conformance.host_checks import clock, messages, repeats, roles, sessions, shares
from worldsim.bridges.conformance.host_checks.registry import Check
from worldsim.bridges.conformance.host_lab import Lab
from worldsim.errors import WorldsimError
from worldsim.spaces import space_from_json

CHECKS: dict[str, Check] = (
    messages.CHECKS | sessions.CHECKS | repeats.CHECKS | roles.CHECKS | clock.CHECKS | shares.CHECKS
)
"""By name, in the order in which they are run."""


def check_host(
    address: str,
    world: str | None = None,
    only: Sequence[str] = (),
    patience: float = 10.0,
    report: Callable[[str], None] | None = None,
) -> list[Result]:
    """Check a running host.

    Args:
        address: of the host, which must not ask for keys.
        world: that is played; the first one by default.
        only: names of checks; all by default.
        patience: seconds to wait for a reply.
        report: takes a line for each check when it is done.

    Raises:
        ValueError: there is no such check.
    """
    if unknown := set(only) - set(CHECKS):
        raise ValueError(f"there are no checks called {sorted(unknown)}; allowed: {', '.join(CHECKS)}.")
    lab = Lab(address, patience)
    results = []

    def add(name: str, about: str, one: Check) -> bool:
        results.append(attempt(name, about, lambda: one(lab), report))
        try:
            lab.tidy()
        except (Failed, WorldsimError):
            pass  # the host does not answer any more; the next check says so
        return results[-1].ok is not False

    try:
        there = add("hello", "a reply to hello with worlds, limits and encodings", lambda lab: _hello(lab, world))
        for name in only or CHECKS if there else ():
            add(name, (CHECKS[name].__doc__ or "").splitlines()[0].rstrip("."), CHECKS[name])
        if there:
            add("declared", "every reply has the fields, kinds and buffers that are declared, no others", _declared)
    finally:
        for peer in lab.peers:
            peer.close()
        lab.context.destroy(linger=0)
    return results


def _hello(lab: Lab, world: str | None) -> str:
    lab.hello = lab.peer(greet=False).greet().header
    about = {"name", "frame_size", "fps", "action_space", "keys", "prompts", "starts", "episode_steps", "fingerprint"}
    for one in lab.hello["worlds"]:
        expect(set(one) >= about, f"worlds with {sorted(about)}", one)
    limits = {"sessions", "snapshots", "rate", "message_bytes"}
    expect(set(lab.hello["limits"]) >= limits, f"limits of {sorted(limits)}", lab.hello["limits"])
    offered = set(lab.hello["encodings"])
    expect("raw" in offered and offered <= set(protocol.ENCODINGS), "encodings, raw among them", lab.hello["encodings"])
    expect("shm" not in offered or "shm" in lab.hello, "'shm' with a path and a nonce", "none")
    worlds = {one["name"]: one for one in lab.hello["worlds"]}
    expect(world is None or world in worlds, f"the world {world}", list(worlds))
    lab.world = worlds[world or next(iter(worlds))]
    lab.space = space_from_json(lab.world["action_space"])
    return f"{lab.hello['software']}; {lab.world['name']}"


def _declared(lab: Lab) -> str:
    found = [f"{fault} ({count} times)" for fault, count in lab.faults.most_common(5)]
    expect(not found, "nothing else", "; ".join(found))
    return f"{lab.replies} replies and pushes; errors seen: {', '.join(sorted(lab.codes))}"


def main(words: Sequence[str] | None = None) -> int:
    """Check the host at an address; return 0 if no check failed."""
    parser = argparse.ArgumentParser(prog="python -m worldsim.bridges.conformance.check_host", description=main.__doc__)
    parser.add_argument("address", help=f"such as tcp://127.0.0.1:{protocol.PORT}; the host must not ask for keys")
    parser.add_argument("--world", help="that is played; the host's first one by default")
    parser.add_argument("--only", nargs="+", default=(), metavar="CHECK", choices=list(CHECKS), help=", ".join(CHECKS))
    parser.add_argument("--patience", type=float, default=10.0, help="seconds to wait for a reply")
    args = parser.parse_args(words)
    results = check_host(args.address, args.world, args.only, args.patience, lambda line: print(line, flush=True))
    counts = Counter(result.ok for result in results)
    print(f"{counts[True]} ok, {counts[False]} failed, {counts[None]} skipped")
    return 1 if counts[False] else 0


if __name__ == "__main__":
    sys.exit(main())
