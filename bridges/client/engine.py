"""An engine whose sessions a host keeps: the calls and the errors of a local engine, without torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.bridges import protocol
from worldsim.bridges.actions import to_json
from worldsim.bridges.client.connection import Connection, ConnectionConfig
from worldsim.bridges.messages import Message
from worldsim.engine.records import SessionSpec, StepResult
from worldsim.errors import ActionError, BridgeError, ConfigError, InputError, SessionError
from worldsim.spaces import space_from_json

# What a session's last frame gave, where a host of an earlier version does not say; and the names of these in batches.
LAST: dict[str, Any] = {"reward": 0.0, "ended": 0.0, "terminated": False}
MANY = ("rewards", "ended", "terminated")
LEAVING = 8  # closed sessions that are collected before one request closes them at the host
LOCAL = f"tcp://127.0.0.1:{protocol.PORT}"


@dataclass(frozen=True)
class RemoteWorld:
    """A world as a host describes it.

    Attributes:
        card: name, frame_size, fps, keys, prompts, episode_steps.
        action_space: the Gymnasium action space.
        starts: the numbers of its clips to begin from.
        fingerprint: a hash of its weights.
    """

    card: SimpleNamespace
    action_space: spaces.Space
    starts: range
    fingerprint: str


@dataclass(frozen=True)
class RemoteSession:
    """A session's last frame, and the prompt of the next; see `engine.session.Session`."""

    token: str
    watch: str
    frame: np.ndarray
    prompt: str
    step: int
    reward: float = 0.0
    ended: float = 0.0
    terminated: bool = False


@dataclass(frozen=True)
class RemoteSnapshot:
    """A snapshot that the host stores, until this client was silent for a lease or has too many."""

    token: str
    prompt: str


class RemoteEngine:
    """An engine that a host runs: the calls of `engine.Engine`, over a connection. For one thread.

    Args:
        address: of the host.
        world: which, where it serves several.
        config: of the connection.

    Attributes:
        world: the world of the sessions.
        sessions: the open ones, by number; a number is never used again.

    Raises:
        BridgeError: there is no host.
        ConfigError: it does not serve the world.
    """

    def __init__(self, address: str = LOCAL, world: str | None = None, config: ConnectionConfig | None = None) -> None:
        """Connect."""
        self.connection = Connection(address, config)
        worlds = {about["name"]: about for about in self.connection.hello["worlds"]}
        if world is None and len(worlds) == 1:
            world = next(iter(worlds))
        if world is None or world not in worlds:
            self.connection.close()
            raise ConfigError(f"world is {world!r}; the host at {address} serves: {', '.join(worlds)}.")
        self.world = _world(worlds[world])
        self.sessions: dict[int, RemoteSession] = {}
        self._last = 0
        self._leaving: list[str] = []  # tokens of sessions that were closed here and not yet at the host

    def open_all(self, specs: Sequence[SessionSpec]) -> list[int]:
        """Begin several sessions, all or none.

        Raises:
            EngineFull: there is no room for them, or this client has too many.
            InputError: a start that does not fit the world.
            PromptError: the world cannot take a prompt.
        """
        self._leave()
        if not specs:
            return []
        self.connection.level()
        buffers: dict[str, Any] = {}
        fields = [self._fields(spec, i, buffers) for i, spec in enumerate(specs)]
        name = self.world.card.name
        if len(fields) == 1:
            return [self._call("open", buffers, self._opened, world=name, **fields[0], **self._encoding())]
        return self._call("open_batch", buffers, self._opened_batch, world=name, openings=fields)

    def close(self, session: int | None = None) -> None:
        """End a session, or all of them and the connection.

        Raises:
            SessionError: there is no such session.
        """
        if session is not None:
            self._leaving.append(self._get(session).token)
            del self.sessions[session]
            if len(self._leaving) >= LEAVING or not self.sessions:
                self._leave()
            return
        self._leaving += [known.token for known in self.sessions.values()]
        self.sessions.clear()
        try:
            self._leave()
        except BridgeError:
            pass  # the host is gone; it ends them with their leases
        self.connection.close()

    def step(self, actions: Mapping[int, Any]) -> dict[int, StepResult]:
        """Draw the next frame of some sessions, each under its action.

        Raises:
            SessionError: there is no such session.
            ActionError: an action is outside the world's action space.
        """
        self.connection.level()
        if len(actions) == 1:
            return self._step_one(*next(iter(actions.items())))
        drawn: dict[int, StepResult] = {}
        numbers = list(actions)
        for number in numbers:
            self._get(number)
        for begin in range(0, len(numbers), protocol.MAX_BATCH):
            drawn |= self._step_batch(
                {number: actions[number] for number in numbers[begin : begin + protocol.MAX_BATCH]}
            )
        return drawn

    def fork(self, session: int, seed: int | None = None) -> int:
        """Open a fork of a session; see `Engine.fork`."""
        token = self._get(session).token
        return self._call("fork", None, self._opened, session=token, seed=seed, **self._encoding())

    def snapshot(self, session: int) -> RemoteSnapshot:
        """Take a snapshot of a session, which the host stores."""
        known = self._get(session)
        return RemoteSnapshot(self._call("snapshot", session=known.token).header["snapshot"], known.prompt)

    def drop(self, snapshot: RemoteSnapshot) -> None:
        """Drop a snapshot."""
        self._call("drop", snapshot=snapshot.token)

    def restore(self, snapshot: RemoteSnapshot, session: int | None = None) -> int:
        """Go back to a snapshot, or open a session from it; see `Engine.restore`."""
        if not isinstance(snapshot, RemoteSnapshot):
            raise InputError(f"the snapshot is a {type(snapshot).__name__}; allowed: what `snapshot()` returns.")
        if session is None:
            name = self.world.card.name
            return self._call("open", None, self._opened, world=name, snapshot=snapshot.token, **self._encoding())

        def restored(message: Message, late: bool) -> None:
            frame = np.array(self.connection.frame(message.buffers["frame"]))
            about = {name: message.header[name] for name in ("prompt", "step")}
            self._change(session, frame=frame, **about, **_last(message))

        self._call("restore", None, restored, session=self._get(session).token, snapshot=snapshot.token)
        return session

    def set_prompt(self, session: int, prompt: str) -> None:
        """Condition a session's frames from now on on `prompt`; see `Engine.set_prompt`."""

        def changed(message: Message, late: bool) -> None:
            self._change(session, prompt=message.header["prompt"])

        self._call("prompt", None, changed, session=self._get(session).token, prompt=prompt)

    def _call(
        self,
        verb: str,
        buffers: Mapping[str, Any] | None = None,
        take_in: Callable[[Message, bool], Any] = lambda message, late: message,
        **fields: Any,
    ) -> Any:
        return self.connection.call(verb, buffers, take_in, **fields)

    def _change(self, number: int, **values: Any) -> None:
        """Change what is known of a session, if it was not closed since the request."""
        if number in self.sessions:
            self.sessions[number] = replace(self.sessions[number], **values)

    def _encoding(self) -> dict[str, Any]:
        quality = self.connection.config.quality if self.connection.encoding == "jpeg" else None
        return {"encoding": self.connection.encoding, "quality": quality}

    def _fields(self, spec: SessionSpec, index: int, buffers: dict[str, Any]) -> dict[str, Any]:
        fields = {k: v for k, v in vars(spec).items() if v is not None}
        if isinstance(spec.start, Mapping):
            if "frames" not in spec.start:
                raise InputError("start is a dict without 'frames'; allowed: 'frames' and 'actions'.")
            buffers[f"frames{index}"] = np.asarray(spec.start["frames"])
            fields["start"] = {"frames": f"frames{index}", "actions": []}
            actions = spec.start.get("actions", [])
            if isinstance(self.world.action_space, spaces.Dict):
                raise InputError("a clip with actions of a Dict space cannot be sent; begin from one of the world's.")
            if len(actions):
                buffers[f"actions{index}"] = np.asarray(actions)
                fields["start"]["actions"] = f"actions{index}"
        return fields

    def _opened(self, message: Message, late: bool) -> int:
        about = message.header
        if late:  # nobody has its number
            self._leaving.append(about["session"])
            return 0
        frame = np.array(self.connection.frame(message.buffers["frame"]))
        named = {name: about[name] for name in ("watch", "prompt", "step")}
        return self._add(RemoteSession(about["session"], frame=frame, **named, **_last(message)))

    def _opened_batch(self, message: Message, late: bool) -> list[int]:
        about = message.header
        if late:
            self._leaving += about["sessions"]
            return []
        frames = np.array(message.buffers["frames"])
        last = [about.get(many, [LAST[name]] * len(frames)) for many, name in zip(MANY, LAST, strict=True)]
        rows = zip(about["sessions"], frames, about["prompts"], about["steps"], *last, strict=True)
        return [self._add(RemoteSession(token, "", *row)) for token, *row in rows]

    def _add(self, session: RemoteSession) -> int:
        self._last += 1
        self.sessions[self._last] = session
        return self._last

    def _get(self, number: int) -> RemoteSession:
        if number not in self.sessions:
            raise SessionError(f"session {number!r} is not open; open ones: {sorted(self.sessions)[:20]}.")
        return self.sessions[number]

    def _leave(self) -> None:
        if self.connection.foreign:
            self._leaving.clear()  # the sessions are the other process's
        while self._leaving:
            leaving = self._leaving[: protocol.MAX_BATCH]
            self._call("close_batch", sessions=leaving)
            self._leaving = [token for token in self._leaving if token not in leaving]

    def _step_one(self, number: int, action: Any) -> dict[int, StepResult]:
        known, (plain, buffers) = self._get(number), self._action(action)

        def drawn(message: Message, late: bool) -> dict[int, StepResult]:
            about, frame = message.header, self.connection.frame(message.buffers["frame"])
            return self._advance_all(
                [(number, frame, about["reward"], about["ended"], about["step"], about["terminated"])]
            )

        return self._call("step", buffers, drawn, session=known.token, step=known.step, action=plain)

    def _action(self, action: Any) -> tuple[Any, dict[str, Any] | None]:
        """Encode an action as a field or as a buffer."""
        if isinstance(action, np.ndarray) and str(action.dtype) in protocol.DTYPES:
            return None, {"action": action}
        return self._plain(action), None

    def _plain(self, action: Any) -> Any:
        try:
            return to_json(self.world.action_space, action)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise ActionError(f"action {action!r} is outside the action space {self.world.action_space}.") from error

    def _step_batch(self, actions: Mapping[int, Any]) -> dict[int, StepResult]:
        known = {number: self.sessions[number] for number in actions}
        fields: dict[str, Any] = {}
        buffers = None
        try:
            if isinstance(self.world.action_space, spaces.Dict):
                raise ValueError
            array = np.asarray(list(actions.values()))
            if str(array.dtype) not in protocol.DTYPES:
                raise ValueError
            buffers = {"actions": array}
        except ValueError:
            fields["actions"] = [self._plain(action) for action in actions.values()]
        tokens, steps = [one.token for one in known.values()], [one.step for one in known.values()]

        def drawn(message: Message, late: bool) -> dict[int, StepResult]:
            about = message.header
            columns = (about[name] for name in ("rewards", "ended", "steps", "terminated"))
            return self._advance_all(list(zip(actions, message.buffers["frames"], *columns, strict=True)))

        return self._call("step_batch", buffers, drawn, sessions=tokens, steps=steps, **fields)

    def _advance_all(self, rows: Sequence[tuple[int, np.ndarray, float, float, int, bool]]) -> dict[int, StepResult]:
        """Take in new frames of sessions, of all that were not closed since."""
        results: dict[int, StepResult] = {}
        for number, frame, reward, ended, step, terminated in rows:
            self._change(number, frame=frame, reward=reward, ended=ended, step=step, terminated=terminated)
            copied = np.array(frame) if self.connection.config.copy else frame  # the session's own frame is only read
            results[number] = StepResult(copied, reward, ended, step, terminated)
        return results


def _last(message: Message) -> dict[str, Any]:
    """Read what a session's last frame gave."""
    return {name: message.header.get(name, usual) for name, usual in LAST.items()}


def _world(about: Mapping[str, Any]) -> RemoteWorld:
    names = ("name", "fps", "keys", "prompts", "episode_steps")
    card = SimpleNamespace(**{name: about[name] for name in names}, frame_size=tuple(about["frame_size"]))
    return RemoteWorld(card, space_from_json(about["action_space"]), range(about["starts"]), about["fingerprint"])
