"""A remote world against the local one: equal, bit for bit."""

from __future__ import annotations

from hosting import HostProcess, drive, reference


def test_reference_is_repeatable(host: HostProcess) -> None:
    first, second = (reference(host.address, 3, drive(20)) for _ in range(2))
    assert first == second and len(set(first)) > 1
