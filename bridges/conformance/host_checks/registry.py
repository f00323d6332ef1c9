"""The registry of checks: by name, in the order of their definition."""

from __future__ import annotations

from collections.abc import Callable

from worldsim.bridges.conformance.host_lab import Lab

FEW = 16  # a limit up to which it is tried out

Check = Callable[[Lab], "str | None"]


class Checks(dict[str, Check]):
    """Checks by name."""

    def add(self, name: str) -> Callable[[Check], Check]:
        """Add a check; the first line of its docstring is what is expected."""
        return lambda function: self.setdefault(name, function)
