"""Dispatch a message: find its client, check it, and call the handler of its verb."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from worldsim.bridges import messages, protocol
from worldsim.bridges.host.records import Call, Client
from worldsim.bridges.host.registry import MOST_PEERS
from worldsim.bridges.host.service import Service
from worldsim.bridges.host.verbs import HANDLERS
from worldsim.errors import ProtocolError


def receive(service: Service, peer: bytes, parts: Sequence[Any], key: str = "") -> None:
    """Handle a message, and reply to it; the reply of a step comes with a later `Service.draw`.

    Never raises: an error is sent to the peer.

    Args:
        service: of the host.
        peer: the connection.
        parts: of the message.
        key: CURVE public key of the connection, if there is one.
    """
    now, header = time.monotonic(), {}
    try:
        header = messages.read_header(parts)
        size = sum(map(len, parts))
        if size > service.message_bytes:
            raise ProtocolError("too-large", f"the message has {size} bytes; allowed: {service.message_bytes}.")
        client = _client(service, peer, header, key, now)
        message = messages.unpack(parts, header)
        verb = messages.check_request(message)
        service.counts[verb] += 1
        if service.stopping:
            raise ProtocolError("stopping", "the host is about to stop; try again in a while.")
        answer = HANDLERS[verb](service, Call(peer, client, header, message.buffers, now))
        if answer is not None:
            fields, buffers = answer
            service.send_to(peer, messages.pack(messages.reply_to(header, **fields), buffers))
    except Exception as error:
        service.refuse(peer, header, error)


def _client(service: Service, peer: bytes, header: Mapping[str, Any], key: str, now: float) -> Client:
    """Find the client that sent a message; `hello` registers it.

    Raises:
        ProtocolError: hello-first, too-fast.
    """
    client = service.peers.get(peer)
    token = header.get("client")
    if header.get("verb") == "hello" and isinstance(token, str) and protocol.TOKEN.fullmatch(token):
        name = f"{key}/{token}"
        client = service.peers[peer] = service.clients.setdefault(name, Client(token, key))
        service.clients.move_to_end(name)
        if len(service.peers) > MOST_PEERS:
            service.leave(next(iter(service.peers)))
        if len(service.clients) > MOST_PEERS:
            service.clients.popitem(last=False)
    elif client is None and header.get("verb") == "hello":
        return Client("")  # `check_request` says what is wrong with it
    if client is None:
        raise ProtocolError("hello-first", "this connection is not known; say hello, then send the request again.")
    service.peers.move_to_end(peer)
    wait = client.spend(service.config.rate, now)
    if wait:
        raise ProtocolError(
            "too-fast", f"more than {service.config.rate:g} requests a second; wait {wait:.4f} s.", {"wait": wait}
        )
    return client
