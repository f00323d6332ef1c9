"""The handlers of all verbs, by subject: opening, sessions, stepping, real time."""

from __future__ import annotations

from worldsim.bridges.host.verbs.common import Handler
from worldsim.bridges.host.verbs.opening import fork, open_, open_batch, reset, reset_batch
from worldsim.bridges.host.verbs.real_time import input_, pause, run, share, unwatch, watch
from worldsim.bridges.host.verbs.sessions import (
    close,
    close_batch,
    drop,
    hello,
    keep,
    prompt,
    render,
    restore,
    snapshot,
    stats,
)
from worldsim.bridges.host.verbs.stepping import step, step_batch

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
