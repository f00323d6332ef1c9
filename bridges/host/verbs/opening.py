"""The verbs that begin a session: open, fork, reset, and their batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from worldsim.bridges.host.hosted import Hosted, RequestKey
from worldsim.bridges.host.records import Answer, Call, Served
from worldsim.bridges.host.service import Service
from worldsim.bridges.host.verbs.common import (
    check_length,
    encoding_of,
    last_frame,
    one_world,
    replaceable,
    state,
    states,
)
from worldsim.engine.records import SessionSpec
from worldsim.engine.starts import complete
from worldsim.errors import EngineFull, ProtocolError


def open_(service: Service, call: Call) -> Answer:
    """Begin a session; a repeated request gets the session that it has begun before."""
    hosted = _begun_before(service, call.request_key)
    if hosted is None:
        served = service.served(call.get("world"))
        spec, token = _spec(call, call.header), call.get("snapshot")
        _admit(service, call, 1)
        encoding, quality = encoding_of(service, call)
        if token is None:
            number, episode = served.engine.open_all([spec])[0], 0
        else:
            snapshot, episode = service.stored(token, served.name)
            number = served.engine.restore(snapshot)
        hosted = _new(service, call, served, number, call.request_key)
        hosted.encoding, hosted.quality, hosted.episode = encoding, quality, episode
        service.add(hosted)
        _write_beginning(service, hosted, None if token else spec)
    return _opened(service, hosted)


def fork(service: Service, call: Call) -> Answer:
    """Begin a session that goes on from another one's state."""
    hosted = _begun_before(service, call.request_key)
    if hosted is None:
        parent, _ = service.found(call.header["session"], "owner")
        served = service.worlds[parent.world]
        _admit(service, call, 1)
        encoding, quality = encoding_of(service, call, parent)
        hosted = _new(service, call, served, served.engine.fork(parent.number, call.get("seed")), call.request_key)
        hosted.encoding, hosted.quality, hosted.episode = encoding, quality, parent.episode
        service.add(hosted)
        service.save(hosted)
    return _opened(service, hosted)


def reset(service: Service, call: Call) -> Answer:
    """Begin anew in the same session."""
    hosted = replaceable(service, call, call.header["session"])
    if hosted.last_request != call.request_key:
        spec = _spec(call, call.header)
        _begin_anew(service, [hosted], [spec])
        _restarted(service, hosted, spec, call)
    return state(service, hosted), last_frame(service, hosted)


def open_batch(service: Service, call: Call) -> Answer:
    """Begin several sessions, all or none."""
    keys = [(call.client.token, f"{call.header['id']}.{i}") for i in range(len(call.header["openings"]))]
    sessions = [hosted for key in keys if (hosted := _begun_before(service, key))]
    if len(sessions) < len(keys):
        for hosted in sessions:  # the host was killed before it had written all of them to disk
            service.remove(hosted, "incomplete")
            service.over.pop(hosted.born, None)
        served = service.served(call.get("world"))
        specs = [_spec(call, one) for one in call.header["openings"]]
        _admit(service, call, len(specs))
        numbers = served.engine.open_all(specs)
        sessions = [_new(service, call, served, number, key) for number, key in zip(numbers, keys, strict=True)]
        for hosted, spec in zip(sessions, specs, strict=True):
            service.add(hosted)
            _write_beginning(service, hosted, spec)
    tokens = [hosted.token for hosted in sessions]
    return {"sessions": tokens, "world": sessions[0].world, **states(service, sessions)}, service.frames(sessions)


def reset_batch(service: Service, call: Call) -> Answer:
    """Begin several sessions anew, all or none."""
    sessions = [replaceable(service, call, token) for token in call.header["sessions"]]
    one_world(service, sessions)
    specs = [_spec(call, one) for one in call.header["openings"]]
    check_length("openings", specs, sessions)
    todo = [pair for pair in zip(sessions, specs, strict=True) if pair[0].last_request != call.request_key]
    if todo:
        _begin_anew(service, [hosted for hosted, _ in todo], [spec for _, spec in todo])
        for hosted, spec in todo:
            _restarted(service, hosted, spec, call)
    return states(service, sessions), service.frames(sessions)


def _spec(call: Call, fields: dict[str, Any]) -> SessionSpec:
    """Read the fields of a request, or of one entry of its openings.

    Raises:
        ProtocolError: bad-buffer, bad-field.
    """
    start = fields.get("start")
    if isinstance(start, dict):
        frames, actions = start["frames"], start.get("actions", [])
        for name in (frames, *([actions] if isinstance(actions, str) else [])):
            if not isinstance(call.buffers.get(name), np.ndarray):
                raise ProtocolError("bad-buffer", f"'start' names the buffer {name[:64]!r}; there is no raw one.")
        if not isinstance(actions, (str, list)):
            raise ProtocolError("bad-field", "'actions' of 'start' must be the name of a buffer, or a list.")
        between = call.buffers[actions] if isinstance(actions, str) else actions
        start = {"frames": call.buffers[frames], "actions": between}
    return SessionSpec(
        seed=fields.get("seed") or 0, prompt=fields.get("prompt"), start=start, guidance=fields.get("guidance")
    )


def _admit(service: Service, call: Call, count: int) -> None:
    """Check a client's share of sessions; the engine checks its memory by itself.

    Raises:
        ProtocolError: full.
    """
    mine = sum(hosted.owner == call.client.owner for hosted in service.sessions.values())
    if mine + count > service.config.sessions:
        raise ProtocolError(
            "full", f"you have {mine} sessions open and ask for {count} more; allowed: {service.config.sessions}."
        )


def _new(service: Service, call: Call, served: Served, number: int, born: RequestKey) -> Hosted:
    lease_end = call.came + service.config.lease
    return Hosted(served.name, number, call.client.owner, born, lease_end)


def _restarted(service: Service, hosted: Hosted, spec: SessionSpec, call: Call) -> None:
    hosted.episode, hosted.last_request = 0, call.request_key
    if hosted.share is not None:
        hosted.share.since = service.record(hosted).step
    _write_beginning(service, hosted, spec)
    service.push_all(hosted)


def _write_beginning(service: Service, hosted: Hosted, spec: SessionSpec | None) -> None:
    """Write to disk how a session began, which is enough to begin it again.

    A session from a snapshot, or from a clip that the client sent, is written whole.
    """
    if spec is None or isinstance(spec.start, dict):
        service.save(hosted)
    elif service.checkpoints is not None:
        service.checkpoints.begin(hosted, vars(spec), time.monotonic())


def _begin_anew(service: Service, sessions: Sequence[Hosted], specs: list[SessionSpec]) -> None:
    """Begin sessions anew, all or none, even where memory cannot hold the old and the new ones at once."""
    engine = service.worlds[sessions[0].world].engine
    before = [hosted.number for hosted in sessions]
    try:
        numbers = engine.open_all(specs)
    except EngineFull:
        for spec in specs:  # what could fail below fails here
            complete(spec, engine.world, engine.context_frames)
        snapshots = [engine.snapshot(number, share=False) for number in before]
        for number in before:
            engine.close(number)
        try:
            numbers = engine.open_all(specs)
        except Exception:
            for hosted, snapshot in zip(sessions, snapshots, strict=True):
                hosted.number = engine.restore(snapshot)
            raise
    else:
        for number in before:
            engine.close(number)
    for hosted, number in zip(sessions, numbers, strict=True):
        hosted.number = number


def _opened(service: Service, hosted: Hosted) -> Answer:
    fields = {"session": hosted.token, "watch": hosted.watch, "world": hosted.world, **state(service, hosted)}
    return fields, last_frame(service, hosted)


def _begun_before(service: Service, key: RequestKey) -> Hosted | None:
    """Find the session that this very request has begun before.

    Raises:
        ProtocolError: no-session, it has ended since.
    """
    if key in service.over:
        raise ProtocolError("no-session", "the session that this request began has ended.")
    return service.born.get(key)
