"""What several verbs share: a session that a request may change, and what a reply says of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from worldsim.bridges.frames import can_jpeg
from worldsim.bridges.host.hosted import Hosted, Role
from worldsim.bridges.host.records import Answer, Call, Served
from worldsim.bridges.host.service import Service, Work
from worldsim.errors import ProtocolError

Handler = Callable[[Service, Call], Answer | Work | None]
"""Takes the service and a request; gives fields and buffers, None where the reply comes with a frame, later, or work
that takes long and is done in pieces.

Whatever it raises, the state is as before: what can be wrong with the request is found out before anything changes, and
what is changed is written to disk first, or undone.
"""
MOST_SENDERS = 64  # clients whose last request a session remembers
STEERING: tuple[Role, ...] = ("owner", "player")


def steered(service: Service, call: Call, token: str, *roles: Role) -> tuple[Hosted, Role]:
    """Find a session that a request is about to change: see `Service.found`.

    A request that was sent again over a new connection may come a second time over the old one, after newer ones.

    Raises:
        ProtocolError: no-session, not-allowed; out-of-order, it comes late.
    """
    hosted, role = service.found(token, *roles)
    number, last = call.header["id"], hosted.seen.pop(call.client.identity, -1)
    hosted.seen[call.client.identity] = max(number, last)
    if number < last:
        now = service.record(hosted).step
        raise ProtocolError("out-of-order", f"request {number} comes after {last}; it is too late.", {"step": now})
    if hosted.divided and hosted.pending != call.request_key:
        error = "a step of many sessions, which this is one of, is being drawn; wait for its reply."
        raise ProtocolError("out-of-order", error, {"step": service.record(hosted).step})
    if len(hosted.seen) > MOST_SENDERS:
        del hosted.seen[next(iter(hosted.seen))]
    return hosted, role


def replaceable(service: Service, call: Call, token: str) -> Hosted:
    """Find a session whose state a request is about to replace: the client owns it, and no frame of it is pending.

    Raises:
        ProtocolError: as `steered`; out-of-order, a frame is pending.
    """
    hosted, _ = steered(service, call, token, "owner")
    if hosted.pending:
        if hosted.fps:
            service.draw_now(hosted)
        else:
            now = service.record(hosted).step
            error = "a step of this session is being drawn; wait for its reply."
            raise ProtocolError("out-of-order", error, {"step": now})
    return hosted


def one_world(service: Service, sessions: Sequence[Hosted]) -> Served:
    """Get the world of all sessions of a batch.

    Raises:
        ProtocolError: bad-field, there are several.
    """
    names = {hosted.world for hosted in sessions}
    if len(names) > 1:
        raise ProtocolError("bad-field", f"sessions are of the worlds {sorted(names)}; allowed: of one world.")
    return service.worlds[names.pop()]


def check_length(name: str, values: Any, sessions: Sequence[Hosted]) -> None:
    """Check that a batch has one value for each session.

    Raises:
        ProtocolError: bad-field.
    """
    if len(values) != len(sessions):
        raise ProtocolError("bad-field", f"{name}: {len(values)} for {len(sessions)} sessions; there must be one each.")


def encoding_of(service: Service, call: Call, like: Hosted | None = None) -> tuple[str, int]:
    """Get the encoding and the JPEG quality that a request asks for; those of the session `like` by default.

    Raises:
        ProtocolError: unsupported.
    """
    encoding = call.get("encoding", like.encoding if like else "raw")
    if (encoding == "jpeg" and not can_jpeg()) or (encoding == "shm" and service.shared is None):
        raise ProtocolError("unsupported", f"this host cannot send {encoding} frames; see 'encodings' in hello.")
    return encoding, call.get("quality", like.quality if like else 90)


def state(service: Service, hosted: Hosted) -> dict[str, Any]:
    """Say how many frames a session has, and its prompt."""
    record = service.record(hosted)
    return {"step": record.step, "prompt": record.prompt}


def whole_state(service: Service, hosted: Hosted) -> dict[str, Any]:
    """Say besides what the last frame gave: a session may begin from one that had ended."""
    record = service.record(hosted)
    last = {"reward": record.reward, "ended": record.ended, "terminated": record.terminated}
    return state(service, hosted) | last


def states(service: Service, sessions: Sequence[Hosted]) -> dict[str, Any]:
    """Say the same of a batch."""
    records = [service.record(hosted) for hosted in sessions]
    names = {"steps": "step", "prompts": "prompt", "rewards": "reward", "ended": "ended", "terminated": "terminated"}
    return {many: [getattr(record, name) for record in records] for many, name in names.items()}


def last_frame(service: Service, hosted: Hosted) -> dict[str, Any]:
    """Give a session's last frame as a buffer, in the session's encoding."""
    return {"frame": service.encoded_frame(hosted, hosted.encoding, hosted.quality)}
