"""Verbs about the host and about a session as it is: hello, render, prompt, snapshots, leases, close, stats."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version

import worldsim
from worldsim.bridges.frames import can_jpeg
from worldsim.bridges.host.hosted import Hosted
from worldsim.bridges.host.records import Answer, Call
from worldsim.bridges.host.service import Service, Work
from worldsim.bridges.host.stats import host_stats
from worldsim.bridges.host.verbs.common import (
    STEERING,
    encoding_of,
    last_frame,
    replaceable,
    state,
    steered,
    whole_state,
)
from worldsim.errors import ProtocolError

CLOSED_AT_ONCE = 16  # sessions of a batch that end before others have their turn


def hello(service: Service, call: Call) -> Answer:
    """Describe the host: worlds, limits, encodings."""
    call.client.name = call.get("name", "")
    config = service.config
    fields = {
        "host": service.name,
        "software": f"worldsim {_installed_version()}",
        "worlds": [served.about for served in service.worlds.values()],
        "lease": config.lease,
        "limits": {
            "sessions": config.sessions,
            "snapshots": config.snapshots,
            "rate": config.rate,
            "message_bytes": service.message_bytes,
        },
        "encodings": ["raw", *(["jpeg"] if can_jpeg() else []), *(["shm"] if service.shared else [])],
    }
    return (fields | {"shm": service.shared.offer()} if service.shared else fields), {}


def render(service: Service, call: Call) -> Answer:
    """Send the last frame again."""
    hosted, role = service.found(call.header["session"], "owner", "player", "watcher")
    encoding, quality = encoding_of(service, call, hosted)
    fields = {**state(service, hosted), "role": role, "world": hosted.world}
    fields |= {"watch": hosted.watch} if role == "owner" else {}
    return fields, {"frame": service.encoded_frame(hosted, encoding, quality)}


def prompt(service: Service, call: Call) -> Answer:
    """Condition the frames from now on."""
    hosted, _ = steered(service, call, call.header["session"], *STEERING)
    text = call.header["prompt"]
    with service.noted(hosted, {"prompt": text}):
        service.worlds[hosted.world].engine.set_prompt(hosted.number, text)
    service.learned(hosted.world, text)
    return state(service, hosted), {}


def snapshot(service: Service, call: Call) -> Answer:
    """Store a snapshot; the one that this very request has stored before, if it has."""
    hosted, _ = steered(service, call, call.header["session"], "owner")
    if hosted.snapshot is None or hosted.snapshot[0] != call.request_key:
        hosted.snapshot = call.request_key, service.store(call.client, hosted)
    return {"snapshot": hosted.snapshot[1], "step": service.record(hosted).step}, {}


def restore(service: Service, call: Call) -> Answer:
    """Go back to a snapshot."""
    hosted = replaceable(service, call, call.header["session"])
    token = call.header["snapshot"]
    if hosted.last_request != call.request_key:
        stored, episode = service.stored(token, hosted.world)
        engine = service.worlds[hosted.world].engine
        with contextlib.closing(engine.snapshot(hosted.number, share=False)) as before:
            engine.restore(stored, hosted.number)
            try:
                service.change([(hosted, {"last_request": call.request_key, "episode": episode}, None)])
            except BaseException:
                engine.restore(before, hosted.number)
                raise
        service.push_all(hosted)
    return whole_state(service, hosted), last_frame(service, hosted)


def drop(service: Service, call: Call) -> Answer:
    """Forget a snapshot; an unknown one counts as forgotten."""
    stored = service.snapshots.get(call.header["snapshot"])
    if stored is not None and stored.owner != call.client.owner:
        raise ProtocolError("not-allowed", "the snapshot is another client's.")
    service.drop(call.header["snapshot"])
    return {}, {}


def keep(service: Service, call: Call) -> Answer:
    """Renew leases."""
    for token in call.header["sessions"]:
        service.found(token, *STEERING)
    return {}, {}


def close(service: Service, call: Call) -> Answer:
    """End a session; an unknown one counts as ended."""
    token = call.header["session"]
    if token in service.tokens:
        service.remove(service.found(token, "owner")[0], "asked")
    return {}, {}


def close_batch(service: Service, call: Call) -> Answer | Work:
    """End several sessions."""
    known = [token for token in call.header["sessions"] if token in service.tokens]
    sessions = [service.found(token, "owner")[0] for token in known]
    return _close_in_pieces(service, sessions)


def _close_in_pieces(service: Service, sessions: list[Hosted]) -> Work:
    for number, hosted in enumerate(sessions):
        if number and number % CLOSED_AT_ONCE == 0:
            yield
        if hosted.token in service.sessions:  # it may have ended meanwhile
            service.remove(hosted, "asked")
    return {}, {}


def stats(service: Service, call: Call) -> Answer:
    """Count requests and measure latencies."""
    return {"stats": host_stats(service, call.client.account)}, {}


def _installed_version() -> str:
    try:
        return version("worldsim-engine")
    except PackageNotFoundError:
        return worldsim.__name__
