"""The connections and clients of a host: who is who, who must make room, who is too fast."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any

from worldsim.bridges import protocol
from worldsim.bridges.host.accounts import Rates, account_of
from worldsim.bridges.host.records import Client, ServiceConfig
from worldsim.errors import ProtocolError

Busy = Callable[[], Collection[str]]
MOST_PEERS = 4096  # connections, clients and ended sessions that are remembered


class ClientTable:
    """Clients by name and by connection.

    Args:
        config: limits.
        leave: forgets all else about a connection.

    Attributes:
        peers: clients by connection, the one that was silent for longest first.
        clients: by name.
    """

    def __init__(self, config: ServiceConfig, leave: Callable[[bytes], None]) -> None:
        """Begin without clients."""
        self.peers: OrderedDict[bytes, Client] = OrderedDict()
        self.clients: OrderedDict[str, Client] = OrderedDict()
        self._rates = Rates(config.rate, config.per_address)
        self._config, self._leave = config, leave

    def sender(self, peer: bytes, header: Mapping[str, Any], key: str, address: str, now: float, busy: Busy) -> Client:
        """Find the client that sent a message; `hello` registers it.

        Args:
            peer: the connection.
            header: of the message.
            key: CURVE public key of the connection, if there is one.
            address: of the connection.
            now: when the message came.
            busy: lists the owners of snapshots, who are not forgotten.

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
            client = self._introduce(peer, client, token, key, account, busy)
        if client is None:
            raise ProtocolError("hello-first", "this connection is not known; say hello, then send the request again.")
        self.peers.move_to_end(peer)
        client.seen = now
        return client

    def _introduce(self, peer: bytes, before: Client | None, token: str, key: str, account: str, busy: Busy) -> Client:
        name = f"{account}/{token}"
        counted = account if key else name if before is None else before.counted
        client = self.peers[peer] = self.clients.setdefault(name, Client(token, key, account, counted))
        self.clients.move_to_end(name)
        if len(self.peers) > MOST_PEERS:
            largest = _largest(self.peers.values())
            self._leave(next(peer for peer, other in self.peers.items() if other.account == largest))
        if len(self.clients) > MOST_PEERS:
            largest = _largest(self.clients.values())
            here = set(map(id, self.peers.values()))
            mine = [name for name, other in self.clients.items() if other.account == largest and other is not client]
            owners = busy()
            silent = [name for name in mine if self.clients[name].owner not in owners]
            gone = [name for name in silent if id(self.clients[name]) not in here]
            for name in (gone or silent)[:1]:
                del self.clients[name]
        return client


def _largest(clients: Collection[Client]) -> str:
    """Find the account that has the most of them: it must make room, and no other."""
    return Counter(client.account for client in clients).most_common(1)[0][0]
