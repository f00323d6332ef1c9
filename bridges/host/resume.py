"""Resume the sessions that an earlier host left on disk, up to the frame that their clients know.

What lies there is data, perhaps a stranger's. A session that cannot be resumed stays on disk as it is, and the log says
why; the others go on.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

from worldsim.bridges.actions import from_json
from worldsim.bridges.host.controls import check_parts
from worldsim.bridges.host.hosted import Hosted
from worldsim.bridges.host.records import StoredSnapshot
from worldsim.bridges.host.service import Service
from worldsim.bridges.host.stored import Event, Record
from worldsim.engine.engine import Engine
from worldsim.engine.records import SessionSpec
from worldsim.errors import BridgeError, WorldsimError, printable

log = logging.getLogger("worldsim.host")
Waiting = dict[str, tuple[Hosted, list[Event]]]


def resume(service: Service) -> int:
    """Resume all sessions that can be read.

    The engine draws all frames since each session's checkpoint again, the same bits, in passes that sessions share.

    Returns:
        The number of sessions.
    """
    checkpoints = service.checkpoints
    if checkpoints is None:
        return 0
    _list_snapshots(service)
    waiting: Waiting = {}
    for place, record in checkpoints.load():
        try:
            if isinstance(record, BridgeError):
                raise record
            hosted = _restored(service, record)
            waiting[hosted.token] = hosted, record.events[1:] if record.begins else list(record.events)
        except Exception as error:
            _say(place, error)
    while waiting:
        _replay_round(service, waiting)
    for hosted in list(service.sessions.values()):
        try:
            service.save(hosted)
        except Exception as error:  # its checkpoint and journal from before go on
            log.warning("not saved", extra={"fields": {"session": hosted.token[:8], "error": str(error)}})
        hosted.due = time.monotonic() + 1 / hosted.fps if hosted.fps else 0.0
    return len(service.sessions)


def _list_snapshots(service: Service) -> None:
    assert service.checkpoints is not None
    for token, path, meta in service.checkpoints.load_snapshots():
        if isinstance(meta, BridgeError):
            _say(path, meta)
            continue
        service.snapshots[token] = StoredSnapshot(
            meta.owner, meta.world, meta.episode, path, meta.counted, meta.account
        )
        service.keepers[meta.owner] = time.monotonic()


def _restored(service: Service, record: Record) -> Hosted:
    """Restore a session from its checkpoint.

    Raises:
        BridgeError: it has a token of another session, or parts that its world does not have.
        WorldsimError: the engine does not take it.
    """
    meta, served = record.meta, service.served(record.meta.world)
    share, space = meta.share and meta.share.share(), served.engine.world.action_space
    if {meta.token, meta.watch, *([share.token] if share else [])} & set(service.tokens):
        raise BridgeError("another session has one of its tokens.")
    if share is not None and share.parts:
        check_parts(share.parts, space, served.keymap)
    if record.state is not None:
        number = served.engine.restore(record.state)
    else:
        begin = record.events[0].begin
        assert begin is not None
        number = served.engine.open_all([SessionSpec(**vars(begin))])[0]
    hosted = Hosted(
        world=meta.world,
        number=number,
        owner=meta.owner,
        born=meta.born,
        last_request=meta.last_request,
        lease_end=time.monotonic() + service.config.lease,
        counted=meta.counted,
        account=meta.account,
        token=meta.token,
        watch=meta.watch,
        encoding=meta.encoding,
        quality=meta.quality,
        episode=meta.episode,
        fps=meta.fps,
        share=share,
    )
    assert service.checkpoints is not None
    service.checkpoints.adopt(record)
    service.add(hosted)
    return hosted


def _replay_round(service: Service, waiting: Waiting) -> None:
    """Replay the events of every session up to its next frame, and draw those frames in shared passes."""
    wanted: dict[str, dict[int, tuple[Hosted, Event, Any]]] = {}
    for token, (hosted, events) in list(waiting.items()):
        try:
            found = _next_step(service, hosted, events)
        except Exception as error:
            _give_up(service, waiting, hosted, error)
            continue
        if found is None:
            del waiting[token]
        else:
            wanted.setdefault(hosted.world, {})[hosted.number] = (hosted, *found)
    for world, steps in wanted.items():
        engine = service.worlds[world].engine
        actions = {number: action for number, (_, _, action) in steps.items()}
        try:
            engine.step(actions)
            failed: dict[int, Exception] = {}
        except Exception:  # one of them is at fault
            failed = _step_each(engine, actions)
        for number, (hosted, event, _) in steps.items():
            if number in failed:
                _give_up(service, waiting, hosted, failed[number])
            else:
                hosted.last_request, hosted.episode = event.by, hosted.episode + 1


def _step_each(engine: Engine, actions: dict[int, Any]) -> dict[int, Exception]:
    """Step sessions one by one; return what went wrong with which."""
    failed: dict[int, Exception] = {}
    for number, action in actions.items():
        try:
            engine.step({number: action})
        except Exception as error:
            failed[number] = error
    return failed


def _next_step(service: Service, hosted: Hosted, events: list[Event]) -> tuple[Event, Any] | None:
    """Replay events up to a step; return it and its action, or None at the end of the journal."""
    engine = service.worlds[hosted.world].engine
    while events:
        event = events.pop(0)
        if event.prompt is not None:
            try:
                engine.set_prompt(hosted.number, event.prompt)
            except WorldsimError:
                if events:
                    raise
                return None  # the host was killed before it could refuse it
        elif event.fps is not None:
            hosted.fps = event.fps
        elif event.step is not None:
            action = from_json(engine.world.action_space, event.step)
            engine.check(hosted.number, action)
            return event, action
        else:
            raise BridgeError("its journal has a second beginning.")
    return None


def _give_up(service: Service, waiting: Waiting, hosted: Hosted, error: Exception) -> None:
    """Leave a session on disk that cannot be replayed."""
    waiting.pop(hosted.token, None)
    service.remove(hosted, "not resumed", forget=False)
    service.over.pop(hosted.born, None)
    _say(Path(hosted.token), error)


def _say(place: Path, error: Exception) -> None:
    fields = {"folder": printable(place.name, 80), "error": printable(f"{type(error).__name__}: {error}")}
    log.error("not resumed", extra={"fields": fields})
