"""One session as a host keeps it: who may do what with it, what is held, who watches."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from gymnasium import spaces

from worldsim.bridges.frames import Ring
from worldsim.envs.keymap import KeyMap
from worldsim.errors import ActionError, ProtocolError

Role = Literal["owner", "player", "watcher"]
RequestKey = tuple[str, int | str]
"""A client and the id of its request, with a number behind it in a batch: what a repeated request is known by."""


def new_token() -> str:
    """A name that nobody can guess."""
    return secrets.token_hex(16)


@dataclass
class Watch:
    """One connection that has a session's frames pushed to it."""

    id: int
    token: str
    encoding: str
    quality: int
    credits: int
    dropped: int = 0
    waiting: bool = False  # whether the last frame was drawn when there were no credits


@dataclass
class Share:
    """How two players share a session's controls.

    Attributes:
        mode: "turns" or "split".
        token: the second player's.
        every: turns: frames until it is the other's turn.
        since: turns: the step at which the owner's first turn began.
        parts: split: indices into the action, or names of keys, that are the second player's.
    """

    mode: str
    token: str
    every: int = 1
    since: int = 0
    parts: list[Any] = field(default_factory=list)

    def turn(self, step: int) -> Role:
        """Whose turn the frame after `step` is."""
        return "player" if (step - self.since) // self.every % 2 else "owner"


@dataclass
class Hosted:
    """A session with a host.

    Attributes:
        token: who knows it may do everything.
        watch: who knows it may watch.
        world: its name.
        number: the engine's.
        owner: the client that opened it, by key or token: whose share of sessions it counts against.
        born: the request that opened it.
        mark: the last request that drew a frame or began anew.
        pending: the request that waits for its frame.
        seen: the highest id of each client's requests that change the session: older ones come late.
        kept: the last snapshot that was asked for, and the request.
        shared: the request that let the second player in.
        episode: frames since the last reset.
        held: by role, the action held, or the keys.
        fps: of the clock; 0 while it stands.
        due: when the clock draws next.
    """

    world: str
    number: int
    owner: str
    born: RequestKey
    lease_end: float
    token: str = field(default_factory=new_token)
    watch: str = field(default_factory=new_token)
    encoding: str = "raw"
    quality: int = 90
    mark: RequestKey | None = None
    pending: RequestKey | None = None
    seen: dict[str, int] = field(default_factory=dict)
    kept: tuple[RequestKey, str] | None = None
    shared: RequestKey | None = None
    episode: int = 0
    share: Share | None = None
    held: dict[str, Any] = field(default_factory=dict)
    fps: float = 0.0
    due: float = 0.0
    watchers: dict[bytes, Watch] = field(default_factory=dict)
    ring: Ring | None = None

    def tokens(self) -> dict[str, Role]:
        """Every token of the session, and what its holder is."""
        player: dict[str, Role] = {self.share.token: "player"} if self.share else {}
        return {self.token: "owner", self.watch: "watcher", **player}

    def hold(self, role: Role, step: int, wish: Any, lockstep: bool) -> None:
        """Keep what a player holds.

        Args:
            role: who.
            step: how many frames the session has.
            wish: an action, or `Keys`.
            lockstep: whether a frame is asked for, which must be one's own.

        Raises:
            ProtocolError: not-your-turn.
        """
        if lockstep and self.share and self.share.mode == "turns" and self.share.turn(step) != role:
            whose = self.share.turn(step)
            raise ProtocolError("not-your-turn", f"frame {step + 1} is the {whose}'s.", {"turn": whose})
        self.held[role] = wish

    def action(self, step: int, space: spaces.Space, keymap: KeyMap) -> Any:
        """The action for the frame after `step`: what is held, combined as the share says.

        Raises:
            ActionError: what is held does not combine.
        """
        rest = keymap.entries[frozenset()]
        if self.share is None:
            return resolve(self.held.get("owner", rest), keymap)
        if self.share.mode == "turns":
            return resolve(self.held.get(self.share.turn(step), rest), keymap)
        first, second = self.held.get("owner", rest), self.held.get("player", rest)
        return split(first, second, self.share.parts, space, keymap)


@dataclass(frozen=True)
class Keys:
    """Keys held, in the order of their names."""

    names: tuple[str, ...]


def resolve(wish: Any, keymap: KeyMap) -> Any:
    """The action that is meant by an action or by keys."""
    return keymap.action(wish.names) if isinstance(wish, Keys) else wish


def split(first: Any, second: Any, parts: list[Any], space: spaces.Space, keymap: KeyMap) -> Any:
    """One action of two players': the second has `parts` of it.

    Raises:
        ActionError: parts of keys, but a player holds an action.
    """
    if parts and isinstance(parts[0], str):
        names: list[str] = []
        for wish, mine in ((first, lambda key: key not in parts), (second, lambda key: key in parts)):
            if isinstance(wish, Keys):
                names += [name for name in wish.names if mine(name)]
            elif not _same(wish, keymap.entries[frozenset()]):
                raise ActionError("these controls are shared by keys; send 'keys' such as \"left+up\".")
        return keymap.action(names)
    whole = np.array(resolve(first, keymap), copy=True)
    theirs = np.asarray(resolve(second, keymap))
    if whole.shape != space.shape or theirs.shape != space.shape:
        raise ActionError(f"an action has the shape {whole.shape} or {theirs.shape}; allowed: {space.shape}.")
    whole.reshape(-1)[parts] = theirs.reshape(-1)[parts]
    return whole


def check_parts(parts: list[Any], space: spaces.Space, keymap: KeyMap) -> None:
    """Check how controls are to be split.

    Raises:
        ProtocolError: bad-field.
    """
    if all(isinstance(part, str) and keymap.knows(part) for part in parts):
        return
    size = int(np.prod(space.shape)) if isinstance(space, (spaces.Box, spaces.MultiDiscrete, spaces.MultiBinary)) else 0
    if not all(isinstance(part, int) and not isinstance(part, bool) and 0 <= part < size for part in parts):
        numbers = f"indices below {size}, or " if size else ""
        raise ProtocolError("bad-field", f"'parts' is {parts!r}; allowed: {numbers}keys of {', '.join(keymap.names)}.")


def _same(one: Any, other: Any) -> bool:
    return np.array_equal(np.asarray(one), np.asarray(other))
