"""A driver for clips: it steers by what it sees where the game is known, and presses random keys elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.demos.clip import Turn, random_turns
from worldsim.demos.session import Session


def driver(session: Session, rng: np.random.Generator) -> Iterator[Turn]:
    """Choose the keys of one step after the other, from the frame that is shown."""
    return _steering(session, rng) or random_turns(session.first.keymap, rng)


def _steering(session: Session, rng: np.random.Generator) -> Iterator[Turn] | None:
    """The keys of the beginner who steers gently (see `worldsim.evaluation.beginners`); None for an unknown game."""
    world = getattr(session.first.env.unwrapped, "world", None)
    if world is None or not hasattr(world, "dynamics"):  # no world, or one of a host
        return None
    from worldsim.evaluation.beginners import SteerPolicy
    from worldsim.evaluation.probe import Probe, probe_of

    if (probe := probe_of(world)) is None or type(probe) is Probe:  # which knows no game
        return None

    def turns() -> Iterator[Turn]:
        policy, resets, keys = None, -1, _Keys(session)
        while True:
            if session.resets != resets or policy is None:
                resets = session.resets
                known = probe.prompts([session.first.prompt])
                labels = probe.named(*known[0]) if known else {}
                policy = SteerPolicy(probe, world.action_space, labels) if known or not probe.colored else None
                if policy is None:  # nobody knows how the road looks that these words name
                    yield from random_turns(session.first.keymap, rng)
                    return
                policy.begin(rng, "heldout")
            yield keys.nearest(policy.act(None, session.first.frame, {})), None

    return turns()


class _Keys:
    """Keys in place of an action between them: what is left over is made up for in the next steps."""

    def __init__(self, session: Session) -> None:
        keymap, self.space = session.first.keymap, session.first.env.action_space
        self.combos = [tuple(sorted(combo)) for combo in keymap.entries]
        self.actions = [np.asarray(action, np.float64) for action in keymap.entries.values()]
        self.left: Any = 0.0

    def nearest(self, action: Any) -> tuple[str, ...]:
        wanted = np.asarray(action, np.float64)
        if isinstance(self.space, spaces.Box):
            wanted = wanted + self.left
        best = int(np.argmin([np.square(wanted - one).sum() for one in self.actions]))
        if isinstance(self.space, spaces.Box):
            self.left = np.clip(wanted - self.actions[best], -1, 1)
        return self.combos[best]
