"""Malformed messages for a live host, by the million; beside them somebody plays, and must see the right frames.

python tests/benchmarks/fuzz_bridge.py car-racing --messages 1000000
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hosting import HostProcess
from nonsense import fuzz


def main() -> None:
    """Start a host and fuzz it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("world")
    parser.add_argument("--messages", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = ("--sessions", "24", "--snapshots", "8", "--rate", "1e9")
        host = HostProcess([words.world], Path(folder), 0, *settings)
        try:
            print(fuzz(host.address, host.process.pid, words.messages, words.seed, 10.0))
            print("the host", "lives" if host.process.poll() is None else "DIED")
        finally:
            host.kill()


if __name__ == "__main__":
    main()
