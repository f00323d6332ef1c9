"""The verbs that begin a session: open, fork, reset, and their batches, which are worked on in pieces."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from worldsim.bridges.host.hosted import Hosted, RequestKey
from worldsim.bridges.host.records import Answer, Call, Served
from worldsim.bridges.host.service import Service, Work
from worldsim.bridges.host.verbs.common import (
    check_length,
    encoding_of,
    last_frame,
    one_world,
    replaceable,
    states,
    whole_state,
)
from worldsim.engine.records import SessionSpec
from worldsim.engine.starts import check_start, complete
from worldsim.errors import EngineFull, ProtocolError

LONG = 0.01  # seconds that a piece of work may take, or as long as a pass


def open_(service: Service, call: Call) -> Answer | Work:
    """Begin a session; a repeated request gets the session that it has begun before."""
    hosted = _begun_before(service, call.request_key)
    if hosted is None:
        served = service.served(call.get("world"))
        spec, token = _spec(served, call, call.header), call.get("snapshot")
        service.admit(call.client, 1)
        encoding, quality = encoding_of(service, call)
        if token is None:
            return _open_in_pieces(service, call, served, spec, encoding, quality)
        snapshot, episode = service.stored(token, served.name)
        hosted = _new(service, call, served, served.engine.restore(snapshot), call.request_key)
        hosted.encoding, hosted.quality, hosted.episode = encoding, quality, episode
        _take_in(service, hosted, None)
    return _opened(service, hosted)


def fork(service: Service, call: Call) -> Answer:
    """Begin a session that goes on from another one's state."""
    hosted = _begun_before(service, call.request_key)
    if hosted is None:
        parent, _ = service.found(call.header["session"], "owner")
        served = service.worlds[parent.world]
        service.admit(call.client, 1)
        encoding, quality = encoding_of(service, call, parent)
        hosted = _new(service, call, served, served.engine.fork(parent.number, call.get("seed")), call.request_key)
        hosted.encoding, hosted.quality, hosted.episode = encoding, quality, parent.episode
        _take_in(service, hosted, None)
    return _opened(service, hosted)


def reset(service: Service, call: Call) -> Answer | Work:
    """Begin anew in the same session."""
    hosted = replaceable(service, call, call.header["session"])
    if hosted.last_request == call.request_key:
        return whole_state(service, hosted), last_frame(service, hosted)
    served = service.worlds[hosted.world]
    return _reset_one(service, call, served, hosted, _spec(served, call, call.header))


def open_batch(service: Service, call: Call) -> Answer | Work:
    """Begin several sessions, all or none."""
    keys = [(call.client.identity, f"{call.header['id']}.{i}") for i in range(len(call.header["openings"]))]
    sessions = [hosted for key in keys if (hosted := _begun_before(service, key))]
    if len(sessions) == len(keys):
        return _opened_batch(service, sessions)
    for hosted in sessions:  # the host was killed before it had written all of them to disk
        service.remove(hosted, "incomplete")
        service.over.pop(hosted.born, None)
    served = service.served(call.get("world"))
    specs = [_spec(served, call, one) for one in call.header["openings"]]
    service.admit(call.client, len(specs))
    return _open_all_in_pieces(service, call, served, specs, keys)


def reset_batch(service: Service, call: Call) -> Answer | Work:
    """Begin several sessions anew, all or none."""
    sessions = [replaceable(service, call, token) for token in call.header["sessions"]]
    served = one_world(service, sessions)
    specs = [_spec(served, call, one) for one in call.header["openings"]]
    check_length("openings", specs, sessions)
    todo = [pair for pair in zip(sessions, specs, strict=True) if pair[0].last_request != call.request_key]
    if todo:
        return _reset_all(service, call, served, sessions, todo)
    return states(service, sessions), service.frames(sessions)


def _open_in_pieces(
    service: Service, call: Call, served: Served, spec: SessionSpec, encoding: str, quality: int
) -> Work:
    with service.coming(call, 1):
        (number,) = yield from _begin(service, served, [spec])
    hosted = _new(service, call, served, number, call.request_key)
    hosted.encoding, hosted.quality = encoding, quality
    _take_in(service, hosted, spec)
    return _opened(service, hosted)


def _open_all_in_pieces(
    service: Service, call: Call, served: Served, specs: list[SessionSpec], keys: Sequence[RequestKey]
) -> Work:
    begun: list[Hosted] = []
    try:
        with service.coming(call, len(specs)):
            for piece in _pieces(service, served, specs):
                first = len(begun)
                numbers = yield from _begin(service, served, piece, batch=len(specs) > 1)
                begun += [
                    _new(service, call, served, number, key) for number, key in zip(numbers, keys[first:], strict=False)
                ]
                for hosted, spec in zip(begun[first:], piece, strict=True):
                    service.write(hosted, spec)
                yield
    except BaseException:
        for hosted in begun:
            service.delete(hosted)
            service.over.pop(hosted.born, None)
        raise
    for hosted in begun:
        hosted.lease_end = time.monotonic() + service.config.lease
        service.add(hosted)
    return _opened_batch(service, begun)


def _reset_one(service: Service, call: Call, served: Served, hosted: Hosted, spec: SessionSpec) -> Work:
    yield from _reset_in_pieces(service, call, served, [hosted], [(hosted, spec)])
    return whole_state(service, hosted), last_frame(service, hosted)


def _reset_all(
    service: Service, call: Call, served: Served, sessions: list[Hosted], todo: list[tuple[Hosted, SessionSpec]]
) -> Work:
    yield from _reset_in_pieces(service, call, served, sessions, todo)
    return states(service, sessions), service.frames(sessions)


def _reset_in_pieces(
    service: Service, call: Call, served: Served, sessions: list[Hosted], todo: list[tuple[Hosted, SessionSpec]]
) -> Generator[None, None, None]:
    changed, specs = [hosted for hosted, _ in todo], [spec for _, spec in todo]
    numbers: list[int] = []
    try:
        try:
            for piece in _pieces(service, served, specs):
                numbers += yield from _begin(service, served, piece, batch=len(specs) > 1)
                yield
        except EngineFull:  # memory cannot hold the old and the new ones at once
            _close(served, numbers)
            numbers = []
        for hosted in sessions:
            service.found(hosted.token, "owner")  # it may have ended meanwhile
            newer = hosted.seen.get(call.client.identity, -1)
            if newer > call.header["id"]:
                now = service.record(hosted).step
                error = f"request {newer} came before this one was done; it is too late."
                raise ProtocolError("out-of-order", error, {"step": now})
        for hosted in changed:
            service.draw_now(hosted)
    except BaseException:
        _close(served, numbers)
        raise
    if numbers:
        _replace(service, changed, numbers, specs, call)
    else:
        _begin_in_place(service, changed, specs, call)
    for hosted in changed:
        service.push_all(hosted)


def _pieces(service: Service, served: Served, specs: Sequence[SessionSpec]) -> Iterator[list[SessionSpec]]:
    """Divide sessions that begin: so many at once that a pass of theirs takes about `LONG`, and one clip at most."""
    begun = 0
    while begun < len(specs):
        piece = list(specs[begun : begun + served.piece])
        slow = [_is_slow(service, served, spec) for spec in piece]
        if any(slow):
            piece = piece[: slow.index(True) or 1]
        yield piece
        begun += len(piece)


def _begin(
    service: Service, served: Served, specs: list[SessionSpec], batch: bool = False
) -> Generator[None, None, list[int]]:
    """Begin sessions in the engine, and pause about every `LONG` seconds; of a batch find a good size of its pieces.

    Raises:
        EngineFull, InputError, PromptError: as `Engine.open_all`.
    """
    batch = batch and not any(_is_slow(service, served, spec) for spec in specs)
    work, longest = served.engine.open_in_pieces(specs), 0.0
    with contextlib.closing(work):
        while True:
            begun = now = time.monotonic()
            try:
                while now - begun < LONG:
                    before = now
                    next(work)
                    now = time.monotonic()
                    longest = max(longest, now - before)
            except StopIteration as done:
                numbers = done.value
                break
            yield
    for spec in specs:
        service.learned(served.name, spec.prompt)
    longest = max(longest, 1e-6)
    if batch and (len(specs) == served.piece or longest > LONG):
        served.piece = max(1, min(2 * len(specs), int(len(specs) * max(LONG, served.took) / longest)))
    return numbers


def _is_slow(service: Service, served: Served, spec: SessionSpec) -> bool:
    return isinstance(spec.start, dict) or not service.knows(served.name, spec.prompt)


def _spec(served: Served, call: Call, fields: dict[str, Any]) -> SessionSpec:
    """Read the fields of a request, or of one entry of its openings.

    Raises:
        ProtocolError: bad-buffer, bad-field.
        InputError: a start that does not fit the world.
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
        check_start(start, served.engine.world, served.engine.context_frames)  # before anything of a batch is begun
    return SessionSpec(
        seed=fields.get("seed") or 0,
        prompt=fields.get("prompt"),
        start=start,
        guidance=fields.get("guidance"),
    )


def _take_in(service: Service, hosted: Hosted, spec: SessionSpec | None) -> None:
    """Write a new session and list it, or close it."""
    try:
        service.write(hosted, spec)
    except BaseException:
        service.worlds[hosted.world].engine.close(hosted.number)
        raise
    service.add(hosted)


def _new(service: Service, call: Call, served: Served, number: int, born: RequestKey) -> Hosted:
    lease_end = time.monotonic() + service.config.lease
    client = call.client
    return Hosted(served.name, number, client.owner, born, lease_end, client.counted, client.account)


def _replace(
    service: Service, sessions: Sequence[Hosted], numbers: Sequence[int], specs: Sequence[SessionSpec], call: Call
) -> None:
    """Let sessions go on as others that have begun, all or none."""
    served = service.worlds[sessions[0].world]
    before = [hosted.number for hosted in sessions]
    try:
        pairs = zip(sessions, numbers, strict=True)
        values = [{"number": number, **_begun_values(served, hosted, number, call)} for hosted, number in pairs]
        service.change(list(zip(sessions, values, specs, strict=True)))
    except BaseException:
        _close(served, numbers)
        raise
    _close(served, before)


def _begin_in_place(service: Service, sessions: Sequence[Hosted], specs: Sequence[SessionSpec], call: Call) -> None:
    """Begin sessions anew, all or none, where memory cannot hold the old and the new ones at once."""
    served = service.worlds[sessions[0].world]
    engine, before = served.engine, [hosted.number for hosted in sessions]
    for spec in specs:  # what could fail below fails here
        complete(spec, engine.world, engine.context_frames)
    snapshots = [engine.snapshot(number, share=False) for number in before]
    _close(served, before)
    numbers: list[int] = []
    try:
        numbers = engine.open_all(specs)
        pairs = zip(sessions, numbers, strict=True)
        values = [{"number": number, **_begun_values(served, hosted, number, call)} for hosted, number in pairs]
        service.change(list(zip(sessions, values, specs, strict=True)))
    except BaseException:
        _close(served, numbers)
        for hosted, snapshot in zip(sessions, snapshots, strict=True):
            hosted.number = engine.restore(snapshot)
        raise


def _begun_values(served: Served, hosted: Hosted, number: int, call: Call) -> dict[str, Any]:
    """List what changes in a session that begins anew, besides its number."""
    values: dict[str, Any] = {"episode": 0, "last_request": call.request_key}
    if hosted.share is not None:
        values["share"] = replace(hosted.share, since=served.engine.sessions[number].step)
    return values


def _close(served: Served, numbers: Sequence[int]) -> None:
    for number in numbers:
        served.engine.close(number)


def _opened_batch(service: Service, sessions: list[Hosted]) -> Answer:
    tokens = [hosted.token for hosted in sessions]
    return {"sessions": tokens, "world": sessions[0].world, **states(service, sessions)}, service.frames(sessions)


def _opened(service: Service, hosted: Hosted) -> Answer:
    fields = {"session": hosted.token, "watch": hosted.watch, "world": hosted.world, **whole_state(service, hosted)}
    return fields, last_frame(service, hosted)


def _begun_before(service: Service, key: RequestKey) -> Hosted | None:
    """Find the session that this very request has begun before.

    Raises:
        ProtocolError: no-session, it has ended since.
    """
    if key in service.over:
        raise ProtocolError("no-session", "the session that this request began has ended.")
    return service.born.get(key)
