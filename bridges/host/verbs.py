"""What each verb does.

A handler takes the service and a call, and gives fields and buffers; or None, where the answer comes when a frame has
been drawn. Whatever can be wrong is found out before anything changes.
Past 400 lines, because every verb of the protocol is here, a few lines each.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import worldsim
from worldsim.bridges import protocol
from worldsim.bridges.actions import from_buffer, from_json, from_request
from worldsim.bridges.frames import can_jpeg
from worldsim.bridges.host.hosted import Hosted, RequestKey, Role, Share, Watch, check_parts, new_token, resolve
from worldsim.bridges.host.records import Answer, Call, PendingStep, Served
from worldsim.bridges.host.service import Service
from worldsim.engine.records import SessionSpec
from worldsim.engine.starts import complete
from worldsim.errors import EngineFull, ProtocolError

Handler = Callable[[Service, Call], Answer | None]
STEERING: tuple[Role, ...] = ("owner", "player")


def hello(service: Service, call: Call) -> Answer:
    """Say what there is."""
    call.client.name = call.get("name", "")
    config = service.config
    fields = {
        "host": service.name,
        "software": f"worldsim {worldsim_version()}",
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


def open_(service: Service, call: Call) -> Answer:
    """Begin a session; the one that this very request has begun before, if it has."""
    hosted = _begun_before(service, call.mark)
    if hosted is None:
        served = service.served(call.get("world"))
        opening, kept = _opening(call, call.header), call.get("snapshot")
        _admit(service, call, 1)
        encoding, quality = _encoding(service, call)
        if kept is None:
            number, episode = served.engine.open_all([opening])[0], 0
        else:
            snapshot, episode = service.kept(kept, served.name)
            number = served.engine.restore(snapshot)
        hosted = _new(service, call, served, number, call.mark)
        hosted.encoding, hosted.quality, hosted.episode = encoding, quality, episode
        _begun(service, hosted, None if kept else opening)
    return _opened(service, hosted)


def fork(service: Service, call: Call) -> Answer:
    """Open a twin."""
    hosted = _begun_before(service, call.mark)
    if hosted is None:
        parent, _ = service.found(call.header["session"], "owner")
        served = service.worlds[parent.world]
        _admit(service, call, 1)
        encoding, quality = _encoding(service, call, parent)
        hosted = _new(service, call, served, served.engine.fork(parent.number, call.get("seed")), call.mark)
        hosted.encoding, hosted.quality, hosted.episode = encoding, quality, parent.episode
        service.add(hosted)
        service.save(hosted)
    return _opened(service, hosted)


def reset(service: Service, call: Call) -> Answer:
    """Begin anew."""
    hosted = _free(service, call, call.header["session"])
    if hosted.mark != call.mark:
        opening = _opening(call, call.header)
        _begin_anew(service, [hosted], [opening])
        _restarted(service, hosted, opening, call)
    return _state(service, hosted), {"frame": service.picture(hosted, hosted.encoding, hosted.quality)}


def step(service: Service, call: Call) -> Answer | None:
    """Wish for the next frame."""
    hosted, role = _steered(service, call, call.header["session"], *STEERING)
    served = service.worlds[hosted.world]
    space = served.engine.world.action_space
    given = from_request(space, served.keymap, call.header, call.buffers)
    now = service.record(hosted).step
    todo = _expected(service, call, [hosted], [call.header["step"]])
    if todo is None:
        return None
    if not todo:
        return service.drawn_reply(call, [hosted])
    before = hosted.held.get(role)
    hosted.hold(role, now, given, lockstep=True)
    try:
        action = hosted.action(now, space, served.keymap)
        served.engine.check(hosted.number, action)
    except Exception:
        hosted.held[role] = before if before is not None else served.keymap.entries[frozenset()]
        raise
    hosted.pending = call.mark
    service.wish(PendingStep([hosted], {hosted.number: action}, call.came, call))
    return None


def prompt(service: Service, call: Call) -> Answer:
    """Condition the frames from now on."""
    hosted, _ = _steered(service, call, call.header["session"], *STEERING)
    words = call.header["prompt"]
    service.worlds[hosted.world].engine.set_prompt(hosted.number, words)
    service.note(hosted, {"prompt": words})
    return _state(service, hosted), {}


def snapshot(service: Service, call: Call) -> Answer:
    """Keep the session as it is."""
    hosted, _ = _steered(service, call, call.header["session"], "owner")
    if hosted.kept is None or hosted.kept[0] != call.mark:
        hosted.kept = call.mark, service.keep(call.client, hosted)
    return {"snapshot": hosted.kept[1], "step": service.record(hosted).step}, {}


def restore(service: Service, call: Call) -> Answer:
    """Go back to a snapshot."""
    hosted = _free(service, call, call.header["session"])
    token = call.header["snapshot"]
    if hosted.mark != call.mark:
        kept, episode = service.kept(token, hosted.world)
        service.worlds[hosted.world].engine.restore(kept, hosted.number)
        hosted.mark, hosted.episode = call.mark, episode
        service.save(hosted)
        service.push_all(hosted)
    return _state(service, hosted), {"frame": service.picture(hosted, hosted.encoding, hosted.quality)}


def drop(service: Service, call: Call) -> Answer:
    """Forget a snapshot; one that is not there is forgotten already."""
    kept = service.snapshots.get(call.header["snapshot"])
    if kept is not None and kept.owner != call.client.owner:
        raise ProtocolError("not-allowed", "the snapshot is another client's.")
    service.drop(call.header["snapshot"])
    return {}, {}


def render(service: Service, call: Call) -> Answer:
    """The last frame again."""
    hosted, role = service.found(call.header["session"], "owner", "player", "watcher")
    encoding, quality = _encoding(service, call, hosted)
    fields = {**_state(service, hosted), "role": role, "world": hosted.world}
    fields |= {"watch": hosted.watch} if role == "owner" else {}
    return fields, {"frame": service.picture(hosted, encoding, quality)}


def close(service: Service, call: Call) -> Answer:
    """End a session; one that is not there has ended already."""
    token = call.header["session"]
    if token in service.tokens:
        service.remove(service.found(token, "owner")[0], "asked")
    return {}, {}


def close_batch(service: Service, call: Call) -> Answer:
    """End several."""
    there = [token for token in call.header["sessions"] if token in service.tokens]
    for hosted in [service.found(token, "owner")[0] for token in there]:
        service.remove(hosted, "asked")
    return {}, {}


def keep(service: Service, call: Call) -> Answer:
    """Renew leases."""
    for token in call.header["sessions"]:
        service.found(token, *STEERING)
    return {}, {}


def stats(service: Service, call: Call) -> Answer:
    """Counts and latencies."""
    return {"stats": service.stats()}, {}


def open_batch(service: Service, call: Call) -> Answer:
    """Begin several sessions, all or none."""
    marks = [(call.client.token, f"{call.header['id']}.{i}") for i in range(len(call.header["openings"]))]
    known = [hosted for mark in marks if (hosted := _begun_before(service, mark))]
    if len(known) < len(marks):
        for hosted in known:  # the host was killed while it wrote them down
            service.remove(hosted, "incomplete")
            service.over.pop(hosted.born, None)
        served = service.served(call.get("world"))
        openings = [_opening(call, one) for one in call.header["openings"]]
        _admit(service, call, len(openings))
        numbers = served.engine.open_all(openings)
        known = [_new(service, call, served, number, mark) for number, mark in zip(numbers, marks, strict=True)]
        for hosted, opening in zip(known, openings, strict=True):
            _begun(service, hosted, opening)
    fields = {"sessions": [hosted.token for hosted in known], "world": known[0].world, **_states(service, known)}
    return fields, service.frames(known)


def reset_batch(service: Service, call: Call) -> Answer:
    """Begin several sessions anew, all or none."""
    sessions = [_free(service, call, token) for token in call.header["sessions"]]
    _one_world(service, sessions)
    openings = [_opening(call, one) for one in call.header["openings"]]
    _same_length("openings", openings, sessions)
    todo = [pair for pair in zip(sessions, openings, strict=True) if pair[0].mark != call.mark]
    if todo:
        _begin_anew(service, [hosted for hosted, _ in todo], [opening for _, opening in todo])
        for hosted, opening in todo:
            _restarted(service, hosted, opening, call)
    return _states(service, sessions), service.frames(sessions)


def step_batch(service: Service, call: Call) -> Answer | None:
    """Wish for the next frame of several sessions."""
    sessions = [_steered(service, call, token, "owner")[0] for token in call.header["sessions"]]
    served = _one_world(service, sessions)
    _same_length("steps", call.header["steps"], sessions)
    if any(hosted.share for hosted in sessions):
        raise ProtocolError("not-allowed", "a session of two players is stepped by itself.")
    space = served.engine.world.action_space
    if "actions" in call.buffers:
        given = call.buffers["actions"]
        _same_length("buffer actions", given if isinstance(given, np.ndarray) and given.ndim else [], sessions)
        actions = [from_buffer(space, np.asarray(one)) for one in given]
    else:
        _same_length("actions", call.get("actions", []), sessions)
        actions = [from_json(space, one) for one in call.header["actions"]]
    todo = _expected(service, call, sessions, call.header["steps"])
    if todo is None:
        return None
    if not todo:
        return service.drawn_reply(call, sessions)
    wanted = {hosted.number: action for hosted, action in zip(sessions, actions, strict=True) if hosted in todo}
    for number, action in wanted.items():
        served.engine.check(number, action)
    for hosted in sessions:
        hosted.pending = call.mark
    service.wish(PendingStep(sessions, wanted, call.came, call))
    return None


def watch(service: Service, call: Call) -> Answer:
    """Have frames pushed to this connection."""
    hosted, role = service.found(call.header["session"], "owner", "player", "watcher")
    encoding, quality = _encoding(service, call, hosted)
    known = hosted.watchers.get(call.peer)
    watching = Watch(call.header["id"], call.header["session"], encoding, quality, call.header["credits"])
    if known is not None:
        watching.dropped, watching.waiting = known.dropped, known.waiting
        again = known.id == watching.id  # the very same request: its credits were added already
        watching.credits = min(known.credits + (0 if again else watching.credits), protocol.MAX_CREDITS)
    hosted.watchers[call.peer] = watching
    if watching.waiting and watching.credits:
        service.push(hosted, call.peer)
    return {**_state(service, hosted), "role": role, "world": hosted.world, "fps": hosted.fps}, {}


def unwatch(service: Service, call: Call) -> Answer:
    """No more frames."""
    hosted, _ = service.found(call.header["session"], "owner", "player", "watcher")
    hosted.watchers.pop(call.peer, None)
    return {}, {}


def run(service: Service, call: Call) -> Answer:
    """Start the clock, or give it another pace."""
    hosted, _ = _steered(service, call, call.header["session"], "owner")
    if hosted.pending and not hosted.fps:
        raise ProtocolError("wrong-mode", "a step of this session is being drawn; start the clock when it is done.")
    hosted.fps = float(call.get("fps", service.worlds[hosted.world].about["fps"]))
    hosted.due = time.monotonic() + 1 / hosted.fps
    service.note(hosted, {"fps": hosted.fps})
    return {**_state(service, hosted), "fps": hosted.fps}, {}


def pause(service: Service, call: Call) -> Answer:
    """Stop the clock. A frame that it has wished for already is still drawn."""
    hosted, _ = _steered(service, call, call.header["session"], "owner")
    if hosted.fps:
        hosted.fps = 0.0
        service.note(hosted, {"fps": 0.0})
        if hosted.pending:  # let it be drawn now, so that the number of frames that is told here stays true
            service.draw_all(hosted.world)
    return _state(service, hosted), {}


def input_(service: Service, call: Call) -> Answer:
    """Hold an action."""
    hosted, role = _steered(service, call, call.header["session"], *STEERING)
    served = service.worlds[hosted.world]
    given = from_request(served.engine.world.action_space, served.keymap, call.header, call.buffers)
    served.engine.check(hosted.number, resolve(given, served.keymap))
    now = service.record(hosted).step
    hosted.hold(role, now, given, lockstep=False)
    return {"step": now}, {}


def share(service: Service, call: Call) -> Answer:
    """Let a second player in; a player from before is out."""
    hosted, _ = _steered(service, call, call.header["session"], "owner")
    if hosted.share is not None and hosted.shared == call.mark:
        return {"player": hosted.share.token}, {}
    served = service.worlds[hosted.world]
    mode, every, parts = call.header["mode"], call.get("every", 1), call.get("parts", [])
    if mode == "turns" and (every < 1 or parts):
        raise ProtocolError("bad-field", f"turns: 'every' is {every}; allowed: from 1, and no 'parts'.")
    if mode == "split":
        if not parts:
            raise ProtocolError("bad-field", "split needs 'parts'.")
        check_parts(parts, served.engine.world.action_space, served.keymap)
    hosted.share = Share(mode, new_token(), every, service.record(hosted).step, parts)
    hosted.held, hosted.shared = {}, call.mark
    service.list_tokens(hosted)
    service.save(hosted)
    return {"player": hosted.share.token}, {}


HANDLERS: dict[str, Handler] = {
    "hello": hello,
    "open": open_,
    "reset": reset,
    "step": step,
    "prompt": prompt,
    "snapshot": snapshot,
    "restore": restore,
    "drop": drop,
    "fork": fork,
    "render": render,
    "close": close,
    "keep": keep,
    "stats": stats,
    "open_batch": open_batch,
    "reset_batch": reset_batch,
    "step_batch": step_batch,
    "close_batch": close_batch,
    "watch": watch,
    "unwatch": unwatch,
    "run": run,
    "pause": pause,
    "input": input_,
    "share": share,
}


def worldsim_version() -> str:
    """The version that is installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("worldsim-engine")
    except PackageNotFoundError:
        return worldsim.__name__


def _opening(call: Call, fields: dict[str, Any]) -> SessionSpec:
    """What a request, or one entry of its openings, says of a beginning."""
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


def _encoding(service: Service, call: Call, like: Hosted | None = None) -> tuple[str, int]:
    encoding = call.get("encoding", like.encoding if like else "raw")
    if (encoding == "jpeg" and not can_jpeg()) or (encoding == "shm" and service.shared is None):
        raise ProtocolError("unsupported", f"this host cannot send {encoding} frames; see 'encodings' in hello.")
    return encoding, call.get("quality", like.quality if like else 90)


def _admit(service: Service, call: Call, count: int) -> None:
    """Check a client's share; the engine checks its own room."""
    mine = sum(hosted.owner == call.client.owner for hosted in service.sessions.values())
    if mine + count > service.config.sessions:
        raise ProtocolError(
            "full", f"you have {mine} sessions open and ask for {count} more; allowed: {service.config.sessions}."
        )


def _new(service: Service, call: Call, served: Served, number: int, born: Any) -> Hosted:
    lease_end = call.came + service.config.lease
    return Hosted(served.name, number, call.client.owner, born, lease_end)


def _begun(service: Service, hosted: Hosted, opening: SessionSpec | None) -> None:
    """Take a new session in, on disk too."""
    service.add(hosted)
    _write_beginning(service, hosted, opening)


def _restarted(service: Service, hosted: Hosted, opening: SessionSpec, call: Call) -> None:
    hosted.episode, hosted.mark = 0, call.mark
    if hosted.share is not None:
        hosted.share.since = service.record(hosted).step
    _write_beginning(service, hosted, opening)
    service.push_all(hosted)


def _write_beginning(service: Service, hosted: Hosted, opening: SessionSpec | None) -> None:
    """On disk, how a session began is enough to begin it again; one from a clip of the client's is written whole."""
    if opening is None or isinstance(opening.start, dict):
        service.save(hosted)
    elif service.checkpoints is not None:
        service.checkpoints.begin(hosted, vars(opening), time.monotonic())


def _begin_anew(service: Service, sessions: Sequence[Hosted], openings: list[SessionSpec]) -> None:
    """Begin sessions anew, all or none; also where there is no room for the old and the new at once."""
    engine = service.worlds[sessions[0].world].engine
    numbers = [hosted.number for hosted in sessions]
    try:
        fresh = engine.open_all(openings)
    except EngineFull:
        for opening in openings:  # what could fail below fails here
            complete(opening, engine.world, engine.reach)
        kept = [engine.snapshot(number, share=False) for number in numbers]
        for number in numbers:
            engine.close(number)
        try:
            fresh = engine.open_all(openings)
        except Exception:
            for hosted, snapshot in zip(sessions, kept, strict=True):
                hosted.number = engine.restore(snapshot)
            raise
    else:
        for number in numbers:
            engine.close(number)
    for hosted, number in zip(sessions, fresh, strict=True):
        hosted.number = number


def _opened(service: Service, hosted: Hosted) -> Answer:
    fields = {"session": hosted.token, "watch": hosted.watch, "world": hosted.world, **_state(service, hosted)}
    return fields, {"frame": service.picture(hosted, hosted.encoding, hosted.quality)}


def _steered(service: Service, call: Call, token: str, *roles: Role) -> tuple[Hosted, Role]:
    """A session that a request is about to change: see `Service.found`.

    A request that was sent again over a new connection may come a second time over the old one, after newer ones.

    Raises:
        ProtocolError: no-session, not-allowed; out-of-order, it comes late.
    """
    hosted, role = service.found(token, *roles)
    number, last = call.header["id"], hosted.seen.get(call.client.token, -1)
    if number < last:
        now = service.record(hosted).step
        raise ProtocolError("out-of-order", f"request {number} comes after {last}; it is too late.", {"step": now})
    hosted.seen[call.client.token] = number
    return hosted, role


def _begun_before(service: Service, mark: RequestKey) -> Hosted | None:
    """The session that this very request has begun.

    Raises:
        ProtocolError: no-session, it has ended since.
    """
    if mark in service.over:
        raise ProtocolError("no-session", "the session that this request began has ended.")
    return service.born.get(mark)


def _state(service: Service, hosted: Hosted) -> dict[str, Any]:
    record = service.record(hosted)
    return {"step": record.step, "prompt": record.prompt}


def _states(service: Service, sessions: Sequence[Hosted]) -> dict[str, Any]:
    records = [service.record(hosted) for hosted in sessions]
    return {"steps": [record.step for record in records], "prompts": [record.prompt for record in records]}


def _free(service: Service, call: Call, token: str) -> Hosted:
    """A session that may begin anew or go back: it is one's own, and no frame of it is being drawn."""
    hosted, _ = _steered(service, call, token, "owner")
    if hosted.pending:
        if hosted.fps:
            service.draw_all(hosted.world)
        else:
            now = service.record(hosted).step
            error = "a step of this session is being drawn; wait for its reply."
            raise ProtocolError("out-of-order", error, {"step": now})
    return hosted


def _expected(service: Service, call: Call, sessions: Sequence[Hosted], steps: Sequence[int]) -> list[Hosted] | None:
    """Those that are to be stepped; none where this very request was done before, None where it is being done.

    Raises:
        ProtocolError: wrong-mode, out-of-order.
    """
    todo = []
    if all(hosted.pending == call.mark for hosted in sessions):
        for wish in service.worlds[sessions[0].world].wishes:
            if wish.call is not None and wish.call.mark == call.mark:
                wish.peers.add(call.peer)  # it comes over another connection, and which of them lives is not known
        return None
    for hosted, step in zip(sessions, steps, strict=True):
        now = service.record(hosted).step
        if hosted.fps:
            raise ProtocolError("wrong-mode", "the clock draws this session's frames; pause it, or send input.")
        if hosted.mark == call.mark and step == now - 1:
            continue
        if hosted.pending or step != now:
            why = "a frame of it is being drawn" if hosted.pending else f"it has {now}"
            raise ProtocolError("out-of-order", f"step is {step}, but {why}.", {"step": now})
        todo.append(hosted)
    return todo


def _one_world(service: Service, sessions: Sequence[Hosted]) -> Served:
    names = {hosted.world for hosted in sessions}
    if len(names) > 1:
        raise ProtocolError("bad-field", f"sessions are of the worlds {sorted(names)}; allowed: of one world.")
    return service.worlds[names.pop()]


def _same_length(name: str, values: Any, sessions: Sequence[Hosted]) -> None:
    if len(values) != len(sessions):
        raise ProtocolError("bad-field", f"{name}: {len(values)} for {len(sessions)} sessions; there must be one each.")
