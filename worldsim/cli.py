"""The command line: `worldsim VERB ...`.

A verb is a function that takes the words after its name. It imports what it needs when it runs, so that one verb
does not wait for, or break with, the packages of another. Its options are made from the config dataclass of the
function it calls: what Python can set, the command line can. Past 400 lines, because all verbs stand here, a few lines
and the words of their help each: one place to see what there is.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from worldsim.errors import ConfigError, MissingDependency, WorldsimError, did_you_mean
from worldsim.renamed import refuse_old_options

if TYPE_CHECKING:
    from worldsim.data.episodes import Dataset

Config = TypeVar("Config")


def parse(
    config: Callable[..., Config], verb: str, args: Sequence[str], description: str | None = None, flat: bool = False
) -> Config:
    """Call `config` (a dataclass, or a function) with what `args` say; what has no default needs no --name.

    `flat` drops the names of nested configs: --minutes, not --trainer.minutes.

    Raises:
        ConfigError: an option that has another name now.
        SystemExit: wrong words (2), or --help (0).
    """
    import tyro

    refuse_old_options(verb, args)
    return tyro.cli(
        config,
        prog=f"worldsim {verb}",
        description=description and inspect.cleandoc(description),
        args=list(args),
        config=(tyro.conf.PositionalRequiredArgs, *((tyro.conf.OmitArgPrefixes,) if flat else ())),
    )


def record(args: Sequence[str]) -> None:
    """Record a game into a dataset (--list names the games).

    Example: worldsim record car-racing --frames 20000 --out data/car-racing
    A recording that was stopped goes on when the same command is run again.
    """
    if "--list" in args:
        from worldsim.registry import hidden, recipes

        for recipe in recipes().values():
            print(f"{recipe.name:24} {recipe.summary}")
        for name, error in hidden().items():
            print(f"{name:24} cannot be played: {error}")
        print(f"{'PACKAGE:RECIPE':24} a game of yours: a folder with a recipe.py, see docs/your-own-game.md")
        print(f"{'any Gymnasium id':24} such as CartPole-v1, or package:Name-v0 for one that a package registers")
        return
    from worldsim.data.record import RecordConfig
    from worldsim.data.record import record as run

    config, policy = parse(RecordConfig, "record", args, record.__doc__), None
    if config.by_agent:
        from worldsim.agents.recording import policy_for

        policy = policy_for(config)
    dataset = run(config, policy)
    print(_counts(dataset))


def data_sheet(args: Sequence[str]) -> None:
    """Draw a contact sheet of a dataset.

    Example: worldsim data sheet data/car-racing --out sheet.png
    """
    from worldsim.data.contact_sheet import ContactSheet, dataset_contact_sheet

    config = parse(ContactSheet, "data sheet", args, data_sheet.__doc__)
    print(dataset_contact_sheet(config.dataset, config.out, config.episodes, config.columns, config.scale))


def data_export_minari(args: Sequence[str]) -> None:
    """Write a dataset in Minari's format, lossless.

    Example: worldsim data export-minari data/car-racing --id worldsim/car-racing-v0
    """
    from worldsim.data.minari import MinariExport, export_minari

    config = parse(MinariExport, "data export-minari", args, data_export_minari.__doc__)
    print(f"{config.name()} is in {export_minari(config)}")


def data_import_minari(args: Sequence[str]) -> None:
    """Make a dataset of a Minari dataset with image observations.

    Example: worldsim data import-minari worldsim/car-racing-v0 --out data/car-racing-again
    """
    from worldsim.data.minari import MinariImport, import_minari

    print(_counts(import_minari(parse(MinariImport, "data import-minari", args, data_import_minari.__doc__))))


def data_import_video(args: Sequence[str]) -> None:
    """Make a dataset of videos, or folders of PNGs, and a log of the actions at each frame.

    Example: worldsim data import-video clips/one.mp4 clips/two.mp4 --out data/my-game
    The log lies beside its video: clips/one.csv, a row for each frame, with a column `keys` ("left+space"), `action` (a
    number), action_0 and so on (numbers within a range), or one column for each key; also reward, terminated, prompt.
    """
    from worldsim.data.video import VideoImport, import_video

    print(_counts(import_video(parse(VideoImport, "data import-video", args, data_import_video.__doc__))))


def _counts(dataset: Dataset) -> str:
    from worldsim.data.recipe import SPLITS

    counts = ", ".join(f"{len(dataset.episodes(split))} {split}" for split in SPLITS)
    return f"{dataset.path}: {counts} episodes"


def train_autoencoder(args: Sequence[str]) -> None:
    """Train an autoencoder on a dataset, the first half of a world.

    Example: worldsim train autoencoder data/car-racing --minutes 10
    A run that was stopped goes on when the same command is run again.
    """
    from worldsim.training.autoencoder import AutoencoderTraining
    from worldsim.training.autoencoder import train_autoencoder as run

    config = parse(AutoencoderTraining, "train autoencoder", args, train_autoencoder.__doc__, flat=True)
    run(config)
    print(f"the autoencoder is in {config.folder()}")


def train_dynamics(args: Sequence[str]) -> None:
    """Train the dynamics on a dataset and its autoencoder, and export the world.

    Example: worldsim train dynamics data/car-racing --minutes 60
    A run that was stopped goes on when the same command is run again.
    """
    from worldsim.training.configs import DynamicsTraining
    from worldsim.training.run import train_dynamics as run

    config = parse(DynamicsTraining, "train dynamics", args, train_dynamics.__doc__, flat=True)
    run(config)
    print(f"the world is in {config.folder() / 'world'}; play it with: worldsim play {config.folder() / 'world'}")


def info(args: Sequence[str]) -> None:
    """Say what a world is: size, actions, prompts, quality, licences.

    Example: worldsim info car-racing
    """
    import json

    from worldsim.envs.shipped import world_path
    from worldsim.world import find_world, read_card

    def about(world: str, json: bool = False) -> tuple[str, bool]:
        return world, json

    import tyro

    name, as_json = parse(tyro.conf.configure(tyro.conf.FlagCreatePairsOff)(about), "info", args, info.__doc__)
    path = find_world(world_path(name))
    card = read_card(path)
    if as_json:
        print((path / "world.json").read_text())
        return
    megabytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6
    print(f"{card.name}: {card.frame_size[0]} x {card.frame_size[1]} at {card.fps:.3g} frames/s, {megabytes:.1f} MB")
    print(f"actions: {json.dumps(card.action_space)}")
    print(f"prompts: {'; '.join(card.prompts[:8]) or 'none'}")
    for title, lines in (("quality", card.quality), ("sampler", card.sampler)):
        print(f"{title}: {json.dumps(lines)}")
    for notice in card.notices:
        print(f"notice: {notice.splitlines()[0]}")


def play(args: Sequence[str]) -> None:
    """Play a world, or any Gymnasium game, in a window.

    Example: worldsim play doom --beside real-doom

    Arrows or WASD play, Tab opens the prompt line, Backspace rewinds while it is held, H shows the other keys.
    Without a screen this writes a clip.
    """
    from worldsim.demos.player import PlayConfig
    from worldsim.demos.player import play as run

    run(parse(PlayConfig, "play", args, play.__doc__))


def evaluate(args: Sequence[str]) -> None:
    """Measure how good a world is on recorded episodes that it was not trained on.

    Example: worldsim eval doom --data data/doom --out runs/eval-doom
    Writes report.json and contact sheets to --out.
    """
    import dataclasses
    import json
    from pathlib import Path

    from worldsim.envs.shipped import world_path
    from worldsim.evaluation.report import EvalConfig, table
    from worldsim.evaluation.report import evaluate as run

    config = parse(EvalConfig, "eval", args, evaluate.__doc__)
    report = run(dataclasses.replace(config, world=Path(world_path(str(config.world)))))
    print(json.dumps(report, indent=2) if config.json else table(report))


def bench(args: Sequence[str]) -> None:
    """Time a world on this machine.

    Example: worldsim bench doom --steps 1000
    """
    import dataclasses
    import json
    from pathlib import Path

    from worldsim.envs.shipped import world_path
    from worldsim.evaluation.bench import BenchConfig, table
    from worldsim.evaluation.bench import bench as run

    config = parse(BenchConfig, "bench", args, bench.__doc__)
    report = run(dataclasses.replace(config, world=Path(world_path(str(config.world)))))
    print(json.dumps(report, indent=2) if config.json else table(report))


def bench_engine(args: Sequence[str]) -> None:
    """Time an engine of a world: many sessions, forks and snapshots, a long run, a soak.

    Example: worldsim bench engine car-racing --threads 2 --soak-minutes 10
    """
    import dataclasses
    import json
    from pathlib import Path

    from worldsim.envs.shipped import world_path
    from worldsim.evaluation.bench_engine import EngineBenchConfig, table
    from worldsim.evaluation.bench_engine import bench_engine as run

    config = parse(EngineBenchConfig, "bench engine", args, bench_engine.__doc__)
    report = run(dataclasses.replace(config, world=Path(world_path(str(config.world)))))
    print(json.dumps(report, indent=2) if config.json else table(report))


def bench_bridge(args: Sequence[str]) -> None:
    """Time the bridge: steps through a host against steps in this process, and against bare ZeroMQ.

    Example: worldsim bench bridge --clients 32
    """
    import json

    from worldsim.bridges.bench import BridgeBenchConfig, table
    from worldsim.bridges.bench import bench_bridge as run

    config = parse(BridgeBenchConfig, "bench bridge", args, bench_bridge.__doc__)
    report = run(config)
    print(json.dumps(report, indent=2) if config.json else table(report))


def tune(args: Sequence[str]) -> None:
    """Build and time all runtimes of a world on this machine; from then on it runs on the fastest.

    Example: worldsim tune car-racing
    """
    from worldsim.engine.tuning import TuneConfig
    from worldsim.engine.tuning import tune as run
    from worldsim.envs.shipped import world_path
    from worldsim.world import World

    config = parse(TuneConfig, "tune", args, tune.__doc__)
    found = run(World.from_pretrained(world_path(str(config.world))), report=lambda line: print(line, flush=True))
    print(f"{config.world} now runs on: {found['fastest']}")


def serve(args: Sequence[str]) -> None:
    """Host worlds for game engines, browsers and agents elsewhere.

    Example: worldsim serve --worlds car-racing doom --web
    Clients come by ZeroMQ (docs/protocol.md). --resume goes on with the sessions of a host that was stopped or killed.
    """
    from worldsim.bridges.serve import ServeConfig
    from worldsim.bridges.serve import serve as run

    run(parse(ServeConfig, "serve", args, serve.__doc__, flat=True))


def top(args: Sequence[str]) -> None:
    """Watch a host: its sessions, requests and latencies.

    Example: worldsim top --address tcp://127.0.0.1:5570
    """
    from worldsim.bridges.top import TopConfig
    from worldsim.bridges.top import top as run

    run(parse(TopConfig, "top", args, top.__doc__))


def keys(args: Sequence[str]) -> None:
    """Make a pair of keys for a host or a client, for connections over a network.

    Example: worldsim keys alice --folder keys
    """
    from worldsim.bridges.keys import KeysConfig
    from worldsim.bridges.keys import make_keys as run

    for path in run(parse(KeysConfig, "keys", args, keys.__doc__)):
        print(path)


def agent_train(args: Sequence[str]) -> None:
    """Let an agent learn a game by PPO, inside a world or in the game itself.

    Example: worldsim agent train car-racing --world car-racing-wild --starts-from data/car-racing --where ground=grass
    A run that was stopped goes on when the same command is run again.
    """
    agents()
    from worldsim.agents.training import AgentConfig
    from worldsim.agents.training import train_agent as run

    config = parse(AgentConfig, "agent train", args, agent_train.__doc__)
    run(config)
    print(f"the agent is in {config.folder()}; let it play with: worldsim agent eval {config.folder()}")


def agent_eval(args: Sequence[str]) -> None:
    """Let an agent play whole episodes, in the real game or in a world, and say how well it does.

    Example: worldsim agent eval runs/agent-car-racing-dream --episodes 100
    """
    agents()
    from worldsim.agents.evaluation import AgentEvalConfig, line
    from worldsim.agents.evaluation import evaluate_agent as run

    print(line(run(parse(AgentEvalConfig, "agent eval", args, agent_eval.__doc__))))


def agent_plan(args: Sequence[str]) -> None:
    """Play by looking ahead in a world, without learning or with an agent in the futures.

    Example: worldsim agent plan runs/doom-take-cover/world --game doom-take-cover --episodes 10
    """
    agents()
    from worldsim.agents.evaluation import line
    from worldsim.agents.planner import PlanConfig
    from worldsim.agents.planner import plan as run

    print(line(run(parse(PlanConfig, "agent plan", args, agent_plan.__doc__))))


def agents() -> None:
    """Make sure that the learner is installed.

    Raises:
        MissingDependency: it is not.
    """
    from importlib.util import find_spec

    if find_spec("stable_baselines3") is None:
        raise MissingDependency("stable-baselines3", "an agent", "pip install 'worldsim-engine[agents]'")


VERBS: dict[str, Callable[[Sequence[str]], None]] = {
    "record": record,
    "data sheet": data_sheet,
    "data export-minari": data_export_minari,
    "data import-minari": data_import_minari,
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
    "keys": keys,
}


def usage() -> str:
    """What `worldsim --help` prints."""
    lines = [f"  {name:12} {(verb.__doc__ or '').splitlines()[0]}" for name, verb in VERBS.items()]
    return "\n".join(["usage: worldsim VERB ...", "", *lines, "", "worldsim VERB --help says what a verb takes."])


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
    """Run one verb; return the exit status: 0, 2 for an error that was explained, 130 for Ctrl-C."""
    args = list(sys.argv[1:] if args is None else args)
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        from importlib.metadata import version

        print(version("worldsim-engine"))
        return 0
    try:
        verb, rest = find_verb(args)
        verb(rest)
    except WorldsimError as error:
        print("\n".join([f"worldsim: {error}", *getattr(error, "__notes__", [])]), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("worldsim: stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
