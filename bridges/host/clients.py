"""The connections and clients of a host: who is who, who must make room, who is too fast."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from worldsim.bridges import protocol
from worldsim.bridges.host.accounts import Rates, account_of
from worldsim.bridges.host.records import Client, ServiceConfig
from worldsim.errors import ProtocolError

MOST_PEERS = 4096  # ended sessions that are remembered, and connections and clients of an account
MOST_CLIENTS = 4 * MOST_PEERS  # of all accounts


class ClientTable:
    """Clients by name and by connection. An account that brings too many makes room, and no other.

    Args:
        config: limits.
        leave: forgets all else about a connection.

    Attributes:
        peers: clients by connection.
        clients: by name.
    """

    def __init__(self, config: ServiceConfig, leave: Callable[[bytes], None]) -> None:
        """Begin without clients."""
        self.peers: dict[bytes, Client] = {}
        self.clients: dict[str, Client] = {}
        self._peers = _ByAccount()
        self._clients = _ByAccount()
        self._rates = Rates(config.rate, config.per_address)
        self._config, self._leave = config, leave

    def sender(self, peer: bytes, header: Mapping[str, Any], key: str, address: str, now: float) -> Client:
        """Find the client that sent a message; `hello` registers it.

        Args:
            peer: the connection.
            header: of the message.
            key: CURVE public key of the connection, if there is one.
            address: of the connection.
            now: when the message came.

        Raises:
            ProtocolError: hello-first, too-fast.
        """
        account = account_of(key, address)
        wait = self._rates.spend(account, peer, now)
        if wait:
            raise ProtocolError(
                "too-fast", f"more than {self._config.rate:g} requests a second; wait {wait:.4f} s.", {"wait": wait}
            )
        client = self.peers.get(peer)
        if client is not None and client.account != account:  # another connection that has taken its identity
            self._leave(peer)
            client = None
        token = header.get("client")
        if header.get("verb") == "hello":
            if not (isinstance(token, str) and protocol.TOKEN.fullmatch(token)):
                return client or Client("")  # `check_request` says what is wrong with it
            client = self._introduce(peer, client, token, key, account)
        if client is None:
            raise ProtocolError("hello-first", "this connection is not known; say hello, then send the request again.")
        self._peers.touch(account, peer)
        return client

    def forget(self, peer: bytes) -> None:
        """Forget a connection."""
        client = self.peers.pop(peer, None)
        if client is not None:
            self._peers.remove(client.account, peer)

    def _introduce(self, peer: bytes, before: Client | None, token: str, key: str, account: str) -> Client:
        name = f"{account}/{token}"
        counted = account if key else name if before is None else before.counted
        client = self.peers[peer] = self.clients.setdefault(name, Client(token, key, account, counted))
        for gone in self._peers.touch(account, peer):
            self._leave(gone)
        for gone in self._clients.touch(account, name):
            self.clients.pop(gone, None)
        return client


class _ByAccount:
    """What accounts have, in the order in which it was last used."""

    def __init__(self) -> None:
        self._of: OrderedDict[str, OrderedDict[Any, None]] = OrderedDict()
        self._count = 0

    def touch(self, account: str, item: Any) -> list[Any]:
        """Add something of an account or note that it was used; return what must go, which is taken out."""
        mine = self._of.setdefault(account, OrderedDict())
        self._of.move_to_end(account)
        self._count += item not in mine
        mine[item] = None
        mine.move_to_end(item)
        if len(mine) <= MOST_PEERS and self._count <= MOST_CLIENTS:
            return []
        if len(mine) <= MOST_PEERS:
            account = max(self._of, key=lambda name: len(self._of[name]))
        item = next(iter(self._of[account]))
        self.remove(account, item)
        return [item]

    def remove(self, account: str, item: Any) -> None:
        """Take out something."""
        mine = self._of.get(account, OrderedDict())
        if item in mine:
            del mine[item]
            self._count -= 1
        if not mine:
            self._of.pop(account, None)
