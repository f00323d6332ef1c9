"""Dispatch a message: find its client, check it, and call the handler of its verb."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from typing import Any

from worldsim.bridges import messages
from worldsim.bridges.host.records import Call
from worldsim.bridges.host.service import Service
from worldsim.bridges.host.verbs import HANDLERS
from worldsim.errors import ProtocolError


def receive(
    service: Service,
    peer: bytes,
    parts: Sequence[Any],
    key: str = "",
    address: str = "",
    read: dict[str, Any] | None = None,
) -> None:
    """Handle a message, and reply to it; the reply of a step or of long work comes with a later `Service.draw`.

    Never raises: an error is sent to the peer.

    Args:
        service: of the host.
        peer: the connection.
        parts: of the message.
        key: CURVE public key of the connection, if there is one.
        address: of the connection.
        read: its header, if it was read already.
    """
    now, header = time.monotonic(), read or {}
    try:
        header = header or messages.read_header(parts)
        size = sum(map(len, parts))
        if size > service.message_bytes:
            raise ProtocolError("too-large", f"the message has {size} bytes; allowed: {service.message_bytes}.")
        client = service.table.sender(peer, header, key, address, now)
        if client.owner in service.keepers:
            service.keepers[client.owner] = now
        message = messages.unpack(parts, header)
        verb = messages.check_request(message)
        service.counts[verb] += 1
        if service.stopping:
            raise ProtocolError("stopping", "the host is about to stop; try again in a while.")
        call = Call(peer, client, header, message.buffers, now)
        if service.joins_job(call):
            return
        answer = HANDLERS[verb](service, call)
        if isinstance(answer, Generator):
            service.begin_job(call, answer)
        elif answer is not None:
            fields, buffers = answer
            service.send_to(peer, messages.pack(messages.reply_to(header, **fields), buffers))
    except Exception as error:
        service.refuse(peer, header, error)
