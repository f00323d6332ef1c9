"""Resume the sessions that an earlier host left on disk, up to the frame that their clients know."""

from __future__ import annotations

import logging
import time
from typing import Any

from worldsim.bridges.actions import from_json
from worldsim.bridges.host.checkpoints import Record
from worldsim.bridges.host.hosted import Hosted, RequestKey, Share
from worldsim.bridges.host.records import Client, StoredSnapshot
from worldsim.bridges.host.service import Service
from worldsim.engine.records import SessionSpec
from worldsim.errors import BridgeError, WorldsimError

log = logging.getLogger("worldsim.host")


def resume(service: Service) -> int:
    """Resume all sessions that can be read; the others stay on disk, and the log says why.

    The engine draws all frames since each session's checkpoint again, the same bits, in passes that sessions share.

    Returns:
        The number of sessions.
    """
    checkpoints = service.checkpoints
    if checkpoints is None:
        return 0
    for token, path, about in checkpoints.load_snapshots():
        service.snapshots[token] = StoredSnapshot(about["owner"], about["world"], about["episode"], path)
        service.clients.setdefault(f"resumed/{about['owner']}", Client(about["owner"], seen=time.monotonic()))
    waiting: dict[str, tuple[Hosted, list[dict[str, Any]]]] = {}
    for place, record in checkpoints.load():
        try:
            if isinstance(record, BridgeError):
                raise record
            hosted = _restored(service, record)
            waiting[hosted.token] = hosted, record.events[1:] if _begins(record) else record.events
        except (WorldsimError, ValueError, KeyError, TypeError) as error:
            log.error("not resumed", extra={"fields": {"folder": str(place), "error": str(error)}})
    count = len(waiting)
    while waiting:
        _replay_round(service, waiting)
    for hosted in service.sessions.values():
        service.save(hosted)
        hosted.due = time.monotonic() + 1 / hosted.fps if hosted.fps else 0.0
    return count


def _begins(record: Record) -> bool:
    return record.state is None and bool(record.events) and "begin" in record.events[0]


def _restored(service: Service, record: Record) -> Hosted:
    """Restore a session from its checkpoint."""
    meta, served = record.meta, service.served(record.meta["world"])
    if record.state is not None:
        number = served.engine.restore(record.state)
    elif _begins(record):
        number = served.engine.open_all([SessionSpec(**record.events[0]["begin"])])[0]
    else:
        raise BridgeError("it has neither a state nor a beginning.")
    hosted = Hosted(
        world=meta["world"],
        number=number,
        owner=meta["owner"],
        born=_request_key(meta["born"]) or ("", 0),
        last_request=_request_key(meta["mark"]),
        lease_end=time.monotonic() + service.config.lease,
        token=meta["token"],
        watch=meta["watch"],
        encoding=meta["encoding"],
        quality=meta["quality"],
        episode=meta["episode"],
        fps=meta["fps"],
        share=Share(**meta["share"]) if meta["share"] else None,
    )
    service.add(hosted)
    return hosted


def _replay_round(service: Service, waiting: dict[str, tuple[Hosted, list[dict[str, Any]]]]) -> None:
    """Replay the events of every session up to its next frame, and draw those frames in shared passes."""
    wanted: dict[str, dict[int, Any]] = {}
    for token, (hosted, events) in list(waiting.items()):
        engine = service.worlds[hosted.world].engine
        while events:
            event = events.pop(0)
            if "prompt" in event:
                engine.set_prompt(hosted.number, event["prompt"])
            elif "fps" in event:
                hosted.fps = event["fps"]
            elif "step" in event:
                action = from_json(engine.world.action_space, event["step"])
                wanted.setdefault(hosted.world, {})[hosted.number] = action
                hosted.last_request, hosted.episode = _request_key(event["by"]), hosted.episode + 1
                break
        else:
            del waiting[token]
    for world, actions in wanted.items():
        service.worlds[world].engine.step(actions)


def _request_key(pair: Any) -> RequestKey | None:
    return (pair[0], pair[1]) if pair else None
