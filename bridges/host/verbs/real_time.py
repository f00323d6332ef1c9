"""The verbs of real time and of several people: watch and unwatch, run and pause, input, share."""

from __future__ import annotations

import time

from worldsim.bridges import protocol
from worldsim.bridges.host.controls import check_parts, from_request, resolve
from worldsim.bridges.host.hosted import Share, Watch
from worldsim.bridges.host.records import Answer, Call
from worldsim.bridges.host.service import Service
from worldsim.bridges.host.verbs.common import STEERING, encoding_of, state, steered
from worldsim.errors import ProtocolError


def watch(service: Service, call: Call) -> Answer:
    """Push frames to this connection from now on."""
    hosted, role = service.found(call.header["session"], "owner", "player", "watcher")
    encoding, quality = encoding_of(service, call, hosted)
    known = hosted.watchers.get(call.peer)
    watching = Watch(call.header["id"], call.header["session"], encoding, quality, call.header["credits"])
    if known is not None:
        watching.dropped, watching.waiting = known.dropped, known.waiting
        again = known.id == watching.id  # the very same request: its credits were added already
        watching.credits = min(known.credits + (0 if again else watching.credits), protocol.MAX_CREDITS)
    hosted.watchers[call.peer] = watching
    if watching.waiting and watching.credits:
        service.push(hosted, call.peer)
    return {**state(service, hosted), "role": role, "world": hosted.world, "fps": hosted.fps}, {}


def unwatch(service: Service, call: Call) -> Answer:
    """Push no more frames."""
    hosted, _ = service.found(call.header["session"], "owner", "player", "watcher")
    hosted.watchers.pop(call.peer, None)
    return {}, {}


def run(service: Service, call: Call) -> Answer:
    """Start the clock, or change its pace."""
    hosted, _ = steered(service, call, call.header["session"], "owner")
    if hosted.pending and not hosted.fps:
        raise ProtocolError("wrong-mode", "a step of this session is being drawn; start the clock when it is done.")
    fps = float(call.get("fps", service.worlds[hosted.world].about["fps"]))
    with service.noted(hosted, {"fps": fps}):
        hosted.fps, hosted.due = fps, time.monotonic() + 1 / fps
    return {**state(service, hosted), "fps": hosted.fps}, {}


def pause(service: Service, call: Call) -> Answer:
    """Stop the clock; a frame that is pending is still drawn."""
    hosted, _ = steered(service, call, call.header["session"], "owner")
    if hosted.fps:
        with service.noted(hosted, {"fps": 0.0}):
            hosted.fps = 0.0
        if hosted.pending:  # drawn now, so that the number of frames in this reply stays true
            service.draw_now(hosted)
    return state(service, hosted), {}


def input_(service: Service, call: Call) -> Answer:
    """Set the action or the keys that the clock draws under."""
    hosted, role = steered(service, call, call.header["session"], *STEERING)
    served = service.worlds[hosted.world]
    control = from_request(served.engine.world.action_space, served.keymap, call.header, call.buffers)
    served.engine.check(hosted.number, resolve(control, served.keymap))
    now = service.record(hosted).step
    hosted.set_control(role, now, control, lockstep=False)
    return {"step": now}, {}


def share(service: Service, call: Call) -> Answer:
    """Make a token for a second player, in place of any from before."""
    hosted, _ = steered(service, call, call.header["session"], "owner")
    if hosted.share is not None and hosted.share_request == call.request_key:
        return {"player": hosted.share.token}, {}
    served = service.worlds[hosted.world]
    mode, every, parts = call.header["mode"], call.get("every", 1), call.get("parts", [])
    if mode == "turns" and (every < 1 or parts):
        raise ProtocolError("bad-field", f"turns: 'every' is {every}; allowed: from 1, and no 'parts'.")
    if mode == "split":
        if not parts:
            raise ProtocolError("bad-field", "split needs 'parts'.")
        check_parts(parts, served.engine.world.action_space, served.keymap)
    share = Share(mode, protocol.new_token(), every, service.record(hosted).step, parts)
    service.change([(hosted, {"share": share, "controls": {}, "share_request": call.request_key}, None)])
    service.list_tokens(hosted)
    return {"player": share.token}, {}
