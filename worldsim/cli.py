"""The command line: `worldsim VERB ...`.

A verb is a function that takes the words after its name; its docstring is its help. It imports what it needs when it
runs, so that one verb does not wait for, or break with, the packages of another. Its options are made from the config
dataclass of the function that it calls: what Python can set, the command line can.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence

from worldsim.commands.agents import agent_eval, agent_plan, agent_train
from worldsim.commands.cache import cache
from worldsim.commands.completion import SHELLS, completion
from worldsim.commands.data import (
    data_export_minari,
    data_import_lerobot,
    data_import_minari,
    data_import_video,
    data_sheet,
    record,
)
from worldsim.commands.hosting import keys, serve, top
from worldsim.commands.training import train_autoencoder, train_dynamics
from worldsim.commands.worlds import bench, bench_bridge, bench_engine, evaluate, info, play, tune
from worldsim.errors import ConfigError, WorldsimError, did_you_mean

COMPLETION = 'For bash: eval "$(worldsim --print-completion bash)"; for zsh the same with zsh.'
LONGEST_LINE = 4000  # characters of an error

VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "record": record,
    "data sheet": data_sheet,
    "data export-minari": data_export_minari,
    "data import-minari": data_import_minari,
    "data import-lerobot": data_import_lerobot,
    "data import-video": data_import_video,
    "play": play,
    "train autoencoder": train_autoencoder,
    "train dynamics": train_dynamics,
    "agent train": agent_train,
    "agent eval": agent_eval,
    "agent plan": agent_plan,
    "info": info,
    "eval": evaluate,
    "bench": bench,
    "bench engine": bench_engine,
    "bench bridge": bench_bridge,
    "tune": tune,
    "serve": serve,
    "top": top,
    "cache": cache,
    "keys": keys,
}


def usage() -> str:
    """What `worldsim --help` prints."""
    lines = [f"  {name:12} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    return "\n".join(
        ["usage: worldsim VERB ...", "", *lines, "", "worldsim VERB --help says what a verb takes.", COMPLETION]
    )


def find_verb(args: Sequence[str]) -> tuple[Callable[[Sequence[str]], None], Sequence[str]]:
    """The verb that `args` begin with, and the words after it.

    Raises:
        ConfigError: there is no such verb.
    """
    for words in (2, 1):
        if (name := " ".join(args[:words])) in VERBS:
            return VERBS[name], args[words:]
    raise ConfigError(f"unknown verb {args[0]!r}.{did_you_mean(args[0], VERBS)}")


def main(args: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status: 0, 2 for an error that was explained, 130 for Ctrl-C.

    With the environment variable WORLDSIM_TRACEBACK an error is raised as it is, with where it comes from.
    """
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--print-completion":
        if args[1:] not in [[shell] for shell in SHELLS]:
            print(f"worldsim: --print-completion takes one of: {', '.join(SHELLS)}", file=sys.stderr)
            return 2
        print(completion(args[1], VERBS), end="")
        return 0
    if args[0] == "--version":
        from importlib.metadata import version

        print(version("worldsim-engine"))
        return 0
    try:
        verb, rest = find_verb(args)
        verb(rest)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        if (explained := explain(error)) is None or os.environ.get("WORLDSIM_TRACEBACK"):
            raise
        line, status = explained
        with contextlib.suppress(OSError):
            print(f"worldsim: {line}", file=sys.stderr)
        if isinstance(error, BrokenPipeError):  # nobody reads what is still to be written
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return status
    return 0


def explain(error: BaseException) -> tuple[str, int] | None:
    """Say an error in words for a terminal, and the exit status; None for one that is a fault of the program.

    Words may be a stranger's, so that what is no printable character is escaped.
    """
    if isinstance(error, KeyboardInterrupt):
        return "stopped", 130
    if isinstance(error, WorldsimError):
        said = str(error)
    elif isinstance(error, BrokenPipeError):
        said = "what reads the output has gone away."
    elif isinstance(error, OSError):
        from worldsim.files import explain as of_system

        said = of_system(error)
    elif isinstance(error, MemoryError) or "can't allocate memory" in str(error) or "out of memory" in str(error):
        said = "there is not enough memory. Do less at once (smaller batches or frames, fewer workers), or free some."
    elif isinstance(error, RuntimeError) and "home directory" in str(error):  # of pathlib
        said = "this user has no home folder; set HOME, and WORLDSIM_CACHE to a folder that can be written."
    else:
        return None
    from worldsim.errors import printable

    return "\n".join(printable(line, LONGEST_LINE) for line in said.split("\n")), 2


if __name__ == "__main__":
    sys.exit(main())
