"""Records of a host: its limits, clients, requests, pending steps, snapshots and worlds."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gymnasium import spaces

from worldsim.bridges.host.hosted import Hosted, RequestKey
from worldsim.engine.engine import Engine
from worldsim.engine.session import Snapshot
from worldsim.envs.keymap import KeyMap, derive_keys, read_keys, rest_action
from worldsim.errors import ConfigError

Answer = tuple[dict[str, Any], dict[str, Any]]  # fields and buffers of a reply


@dataclass(frozen=True, kw_only=True)
class ServiceConfig:
    """Limits of each client, and how long the host waits to fill a batch."""

    lease: float = 300.0
    """Seconds that a session lives without a request from those who may steer it."""
    sessions: int = 512
    """Sessions of one client at most."""
    snapshots: int = 256
    """Snapshots of one client at most; the oldest goes."""
    rate: float = 10_000
    """Requests a second of one client at most, with bursts of as many."""
    per_address: int = 8
    """Without keys: all clients of an address have so many times the sessions, snapshots and requests of one."""
    wait_ms: float = 2.0
    """How long a pass waits for the sessions that have just got a frame, so that it draws them too; longer where a pass
    takes long."""

    def __post_init__(self) -> None:
        """Check."""
        least = min(self.sessions, self.snapshots, self.rate, self.per_address)
        if not (least >= 1 and self.lease > 0 and self.wait_ms >= 0):
            raise ConfigError(f"{self}: sessions, snapshots, rate, per_address from 1; lease over 0; wait_ms from 0.")


@dataclass
class Client:
    """A client, to which several connections may belong.

    Attributes:
        token: that it made up.
        key: CURVE public key.
        account: see `accounts`.
        counted: the client whose limits count for it: itself, or the first that its connection brought.
        name: of the program.
    """

    token: str
    key: str = ""
    account: str = ""
    counted: str = ""
    name: str = ""

    @property
    def owner(self) -> str:
        """The name that its snapshots belong to."""
        return self.key or self.token

    @property
    def identity(self) -> str:
        """The name that it is known by: another key cannot repeat its requests."""
        return f"{self.key}/{self.token}" if self.key else self.token


@dataclass
class Call:
    """A request whose form was checked."""

    peer: bytes
    client: Client
    header: dict[str, Any]
    buffers: dict[str, Any]
    came: float

    @property
    def request_key(self) -> RequestKey:
        """Identifies the request if it comes again."""
        return self.client.identity, self.header["id"]

    def get(self, name: str, default: Any = None) -> Any:
        """Get a field that may be missing."""
        value = self.header.get(name)
        return default if value is None else value


@dataclass
class PendingStep:
    """A request for frames that waits for the next pass; without a call if a clock asks."""

    sessions: list[Hosted]
    actions: dict[int, Any]  # by the engine's number, of those sessions that are to be stepped
    came: float
    call: Call | None = None
    peers: set[bytes] = field(default_factory=set)  # connections over which the request came
    drawn: set[int] = field(default_factory=set)  # the sessions whose part was drawn; see `division`
    undo: ExitStack = field(default_factory=ExitStack)  # undoes that, if it is left with an exception

    def __post_init__(self) -> None:
        """Add the connection of the request."""
        if self.call is not None:
            self.peers.add(self.call.peer)


@dataclass
class StoredSnapshot:
    """A snapshot that a host stores for a client."""

    owner: str
    world: str
    episode: int  # frames of the session's episode
    snapshot: Snapshot | Path  # a path where it still lies on disk, since the host was started anew
    counted: str = ""
    account: str = ""


@dataclass
class Served:
    """A world that is served."""

    name: str
    engine: Engine
    keymap: KeyMap
    about: dict[str, Any]
    pending: list[PendingStep] = field(default_factory=list)
    took: float = 0.0  # seconds of the last pass
    answered: dict[str, float] = field(default_factory=dict)  # when each got its last frame, until it asks again
    piece: int = 1  # sessions that are begun at once, where others wait
    most: int = 4  # sessions of one client in a pass, where others play too; see `division`
    one: float = 0.0  # seconds of a pass of few sessions
    each: float = 0.0  # seconds of a session in a pass of many
    senders: dict[str, float] = field(default_factory=dict)  # when each client asked for its last frame
    turns: dict[str, float] = field(default_factory=dict)  # when each that asks for many had its turn


def serve_world(name: str, engine: Engine) -> Served:
    """Describe a world as `hello` does, and choose its keys.

    Raises:
        ConfigError: keys that do not fit its actions.
    """
    world, card = engine.world, engine.world.card
    space = world.action_space
    if card.keys or not isinstance(space, spaces.Dict):
        keymap = KeyMap(read_keys(card.keys, space) if card.keys else derive_keys(space))
    else:
        keymap = KeyMap({frozenset(): rest_action(space)})
    about = {
        "name": name,
        "frame_size": list(card.frame_size),
        "fps": card.fps,
        "action_space": card.action_space,
        "keys": {} if isinstance(space, spaces.Dict) else keymap.named(),
        "prompts": card.prompts,
        "starts": len(world.starts),
        "episode_steps": card.episode_steps,
        "fingerprint": world.fingerprint(),
    }
    return Served(name, engine, keymap, about)


def clip_bytes(engine: Engine) -> int:
    """Compute how large a request may be: room for a clip as long as the context, and for more."""
    height, width = engine.world.card.frame_size
    return 2**20 + 4 * engine.context_frames * height * width * 3
