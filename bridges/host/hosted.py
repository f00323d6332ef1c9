"""One session of a host: its tokens and roles, the controls in force, its watchers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any, Literal

from gymnasium import spaces

from worldsim.bridges.frames import Ring
from worldsim.bridges.host.controls import resolve, split
from worldsim.bridges.protocol import new_token
from worldsim.envs.keymap import KeyMap
from worldsim.errors import ProtocolError

Role = Literal["owner", "player", "watcher"]
RequestKey = tuple[str, int | str]
"""Identifies a request when it comes again: the client and the request's id, with a number behind it in a batch."""


@dataclass
class Watch:
    """One connection that a session's frames are pushed to."""

    id: int
    token: str
    encoding: str
    quality: int
    credits: int
    dropped: int = 0
    waiting: bool = False  # whether the last frame was drawn when there were no credits
    asked: float = field(default_factory=time.monotonic)  # when it last gave credits

    def looks(self, now: float, patience: float) -> bool:
        """Say whether somebody still takes frames: a closed or hidden page gives no more credits."""
        return self.credits > 0 or now - self.asked < patience


@dataclass
class Share:
    """How two players share the controls of a session.

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
        """Say whose turn the frame after `step` is."""
        return "player" if (step - self.since) // self.every % 2 else "owner"


@dataclass
class Hosted:
    """One session of a host.

    Attributes:
        token: gives all rights.
        watch: a token that gives the right to watch.
        world: its name.
        number: the engine's.
        owner: the client that opened it, by key or token.
        counted: the client whose limit it counts against; see `accounts`.
        account: the account whose limit it counts against.
        born: the request that opened it.
        last_request: the last request that drew a frame or began anew.
        pending: the request that waits for its frame.
        divided: whether that is drawn in parts, and a part was drawn.
        seen: the highest id of each client's requests that change the session: an older one comes late.
        snapshot: the last request for a snapshot, and the token that it got.
        share_request: the request that made the second player's token.
        episode: frames since the last reset.
        controls: the action or the `Keys` in force, by role.
        fps: of the clock; 0 while it is paused.
        due: when the clock draws next.
    """

    world: str
    number: int
    owner: str
    born: RequestKey
    lease_end: float
    counted: str = ""
    account: str = ""
    token: str = field(default_factory=new_token)
    watch: str = field(default_factory=new_token)
    encoding: str = "raw"
    quality: int = 90
    last_request: RequestKey | None = None
    pending: RequestKey | None = None
    divided: bool = False
    seen: dict[str, int] = field(default_factory=dict)
    snapshot: tuple[RequestKey, str] | None = None
    share_request: RequestKey | None = None
    episode: int = 0
    share: Share | None = None
    controls: dict[str, Any] = field(default_factory=dict)
    fps: float = 0.0
    due: float = 0.0
    watchers: dict[bytes, Watch] = field(default_factory=dict)
    ring: Ring | None = None
    listed: tuple[str, ...] = ()  # the tokens that it is found by

    def tokens(self) -> dict[str, Role]:
        """List all tokens of the session, with the role that each gives."""
        player: dict[str, Role] = {self.share.token: "player"} if self.share else {}
        return {self.token: "owner", self.watch: "watcher", **player}

    def set_control(self, role: Role, step: int, control: Any, lockstep: bool) -> None:
        """Put a player's action or keys in force.

        Args:
            role: of the player.
            step: how many frames the session has.
            control: an action, or `Keys`.
            lockstep: whether the request asks for a frame, which must be the player's turn.

        Raises:
            ProtocolError: not-your-turn.
        """
        if lockstep and self.share and self.share.mode == "turns" and self.share.turn(step) != role:
            whose = self.share.turn(step)
            raise ProtocolError("not-your-turn", f"frame {step + 1} is the {whose}'s.", {"turn": whose})
        self.controls[role] = control

    def action(self, step: int, space: spaces.Space, keymap: KeyMap) -> Any:
        """Compute the action for the frame after `step` from the controls in force, combined as the share says.

        Raises:
            ActionError: the controls of two players do not combine.
        """
        rest = keymap.entries[frozenset()]
        if self.share is None:
            return resolve(self.controls.get("owner", rest), keymap)
        if self.share.mode == "turns":
            return resolve(self.controls.get(self.share.turn(step), rest), keymap)
        first, second = self.controls.get("owner", rest), self.controls.get("player", rest)
        return split(first, second, self.share.parts, space, keymap)
