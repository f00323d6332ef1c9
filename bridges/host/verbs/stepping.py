"""The verbs that draw: step and step_batch. Their replies come when the frames have been drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from worldsim.bridges.actions import from_buffer, from_json
from worldsim.bridges.host.controls import from_request
from worldsim.bridges.host.hosted import Hosted
from worldsim.bridges.host.records import Answer, Call, PendingStep
from worldsim.bridges.host.service import Service
from worldsim.bridges.host.verbs.common import STEERING, check_length, one_world, steered
from worldsim.errors import ProtocolError


def step(service: Service, call: Call) -> Answer | None:
    """Ask for the next frame."""
    hosted, role = steered(service, call, call.header["session"], *STEERING)
    served = service.worlds[hosted.world]
    space = served.engine.world.action_space
    control = from_request(space, served.keymap, call.header, call.buffers)
    now = service.record(hosted).step
    todo = _to_draw(service, call, [hosted], [call.header["step"]])
    if todo is None:
        return None
    if not todo:
        return service.drawn_reply(call, [hosted])
    before = hosted.controls.get(role)
    hosted.set_control(role, now, control, lockstep=True)
    try:
        action = hosted.action(now, space, served.keymap)
        served.engine.check(hosted.number, action)
    except Exception:
        hosted.controls[role] = before if before is not None else served.keymap.entries[frozenset()]
        raise
    hosted.pending = call.request_key
    service.add_pending(PendingStep([hosted], {hosted.number: action}, call.came, call))
    return None


def step_batch(service: Service, call: Call) -> Answer | None:
    """Ask for the next frame of several sessions."""
    sessions = [steered(service, call, token, "owner")[0] for token in call.header["sessions"]]
    served = one_world(service, sessions)
    check_length("steps", call.header["steps"], sessions)
    if any(hosted.share for hosted in sessions):
        raise ProtocolError("not-allowed", "a session of two players is stepped by itself.")
    space = served.engine.world.action_space
    if "actions" in call.buffers:
        rows = call.buffers["actions"]
        check_length("buffer actions", rows if isinstance(rows, np.ndarray) and rows.ndim else [], sessions)
        actions = [from_buffer(space, np.asarray(row)) for row in rows]
    else:
        check_length("actions", call.get("actions", []), sessions)
        actions = [from_json(space, one) for one in call.header["actions"]]
    todo = _to_draw(service, call, sessions, call.header["steps"])
    if todo is None:
        return None
    if not todo:
        return service.drawn_reply(call, sessions)
    wanted = {hosted.number: action for hosted, action in zip(sessions, actions, strict=True) if hosted in todo}
    for number, action in wanted.items():
        served.engine.check(number, action)
    for hosted in sessions:
        hosted.pending = call.request_key
    service.add_pending(PendingStep(sessions, wanted, call.came, call))
    return None


def _to_draw(service: Service, call: Call, sessions: Sequence[Hosted], steps: Sequence[int]) -> list[Hosted] | None:
    """Find the sessions that are to be stepped: none if this very request was done before, None if it is pending.

    Raises:
        ProtocolError: wrong-mode, out-of-order.
    """
    todo = []
    if all(hosted.pending == call.request_key for hosted in sessions):
        for pending in service.worlds[sessions[0].world].pending:
            if pending.call is not None and pending.call.request_key == call.request_key:
                pending.peers.add(call.peer)  # the same request over another connection: either of the two may be dead
        return None
    for hosted, step in zip(sessions, steps, strict=True):
        now = service.record(hosted).step
        if hosted.fps:
            raise ProtocolError("wrong-mode", "the clock draws this session's frames; pause it, or send input.")
        if hosted.last_request == call.request_key and step == now - 1:
            continue
        if hosted.pending or step != now:
            why = "a frame of it is being drawn" if hosted.pending else f"it has {now}"
            raise ProtocolError("out-of-order", f"step is {step}, but {why}.", {"step": now})
        todo.append(hosted)
    return todo
