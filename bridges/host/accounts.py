"""Whom limits count: clients and, above them, accounts, so that new names and new connections make no new limits.

An account is a CURVE key; without keys an address (of IPv6 its first 64 bits); or all that come by ipc. A connection is
one client, whatever it calls itself.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, field

ACTIVE = 1.0  # seconds after its last request that a connection counts among those that share an account's rate
MOST_ACCOUNTS = 4096  # that are remembered
LOCAL = "local"


def account_of(key: str, address: str) -> str:
    """Name the account of a connection.

    Args:
        key: CURVE public key, if there is one.
        address: of the peer as ZeroMQ has it; that of an ipc connection is none.
    """
    if key:
        return f"key {key}"
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return LOCAL
    if isinstance(found, ipaddress.IPv6Address):
        if found.ipv4_mapped is None:
            return f"address {ipaddress.ip_network((found, 64), strict=False)}"
        found = found.ipv4_mapped
    return f"address {found}"


@dataclass
class Allowance:
    """What a connection may still send."""

    left: float
    when: float


@dataclass
class Account:
    """The connections of an account that were heard of lately, oldest first."""

    active: OrderedDict[bytes, Allowance] = field(default_factory=OrderedDict)


class Rates:
    """The allowances of all connections: each has a client's rate, and all of an account share a few times as much.

    Args:
        rate: requests a second of a client, with bursts of as many.
        clients: how many times as much an address may send; a key sends as much as one client.
    """

    def __init__(self, rate: float, clients: int) -> None:
        """Begin without accounts."""
        self.rate, self.clients = rate, clients
        self._accounts: OrderedDict[str, Account] = OrderedDict()

    def spend(self, account: str, peer: bytes, now: float) -> float:
        """Take a request from the allowance of a connection, and return the seconds to wait if there is none left."""
        known = self._accounts.setdefault(account, Account())
        self._accounts.move_to_end(account)
        if len(self._accounts) > MOST_ACCOUNTS:
            self._accounts.popitem(last=False)
        while known.active and next(iter(known.active.values())).when < now - ACTIVE:
            known.active.popitem(last=False)
        mine = known.active.get(peer)
        share = self.share(account, len(known.active) + (mine is None))
        if mine is None:
            mine = known.active[peer] = Allowance(max(1.0, share), now)
        known.active.move_to_end(peer)
        mine.left = min(max(1.0, share), mine.left + (now - mine.when) * share)
        mine.when = now
        if mine.left < 1:
            return (1 - mine.left) / share
        mine.left -= 1
        return 0.0

    def share(self, account: str, connections: int) -> float:
        """Compute the requests a second of each of an account's connections."""
        return min(self.rate, self.rate * self.times(account) / connections)

    def times(self, account: str) -> int:
        """Say how many clients' limits an account has."""
        return 1 if account.startswith("key ") else self.clients
