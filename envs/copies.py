"""Copies of environments: a pickle is made anew from what its original was made from, `copy.deepcopy` forks."""

from __future__ import annotations

from typing import Any

from worldsim.errors import ConfigError


class Copies:
    """What single and vector environments have in common.

    Attributes:
        _made: the keywords that it was made from; None where it shares an engine, which no other process has.
    """

    _made: dict[str, Any] | None = None
    spec: Any

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what it was made from; what comes out has no episode yet.

        Raises:
            ConfigError: it shares the engine of another one.
        """
        if self._made is None:
            raise ConfigError(
                "this environment shares the engine of another one, which no other process has; pickle one that was "
                "made from a world, such as gym.make('worldsim/World-v0', world=FOLDER)."
            )
        return _remake, (type(self), self._made, getattr(self, "spec", None))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Fork: the copy shares the engine, and goes on by itself."""
        copied = type(self).__new__(type(self))
        vars(copied).update(vars(self))
        copied._fork_sessions()
        memo[id(self)] = copied
        return copied

    def _fork_sessions(self) -> None:
        """Give a copy sessions, generators and arrays of its own."""
        raise NotImplementedError


def _remake(cls: type, made: dict[str, Any], spec: Any) -> Any:
    env = cls(**made)
    env.spec = spec
    return env
