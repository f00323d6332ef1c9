"""Verbs of one world: info, play, eval, bench, tune."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from worldsim.commands.parsing import parse

LONGEST_LINE = 20_000  # characters that are printed of what a world says


def info(args: Sequence[str]) -> None:
    """Say what a world is: size, actions, prompts, quality, licences.

    Example: worldsim info car-racing
    """
    import json

    from worldsim.envs.shipped import world_path
    from worldsim.errors import printable
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

    def say(line: str) -> None:
        print(printable(line, LONGEST_LINE))  # a stranger's words may carry escape codes

    say(f"{card.name}: {card.frame_size[0]} x {card.frame_size[1]} at {card.fps:.3g} frames/s, {megabytes:.1f} MB")
    if game := _recorded_by(card.provenance):
        say(f"game: {game}")
    say(f"actions: {json.dumps(card.action_space)}")
    say(f"prompts: {'; '.join(card.prompts[:8]) or 'none'}")
    for title, lines in (("quality", card.quality), ("sampler", card.sampler)):
        say(f"{title}: {json.dumps(lines)}")
    for notice in card.notices:
        say(f"notice: {''.join(notice.splitlines()[:1])}")


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
    Writes report.json, report.png and contact sheets to --out.
    """
    from worldsim.evaluation.report import EvalConfig, table
    from worldsim.evaluation.report import evaluate as run

    _measure(parse(EvalConfig, "eval", args, evaluate.__doc__), run, table)


def bench(args: Sequence[str]) -> None:
    """Time a world on this machine.

    Example: worldsim bench doom --steps 1000
    """
    from worldsim.evaluation.bench import BenchConfig, table
    from worldsim.evaluation.bench import bench as run

    _measure(parse(BenchConfig, "bench", args, bench.__doc__), run, table)


def bench_engine(args: Sequence[str]) -> None:
    """Time an engine of a world: many sessions, forks and snapshots, a long run, a soak.

    Example: worldsim bench engine car-racing --threads 2 --soak-minutes 10
    """
    from worldsim.evaluation.bench_engine import EngineBenchConfig, table
    from worldsim.evaluation.bench_engine import bench_engine as run

    _measure(parse(EngineBenchConfig, "bench engine", args, bench_engine.__doc__), run, table)


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


def _recorded_by(provenance: dict[str, Any]) -> str:
    """Say which game a world is of, and how it is recorded, where that is known."""
    from worldsim.errors import printable
    from worldsim.registry import recipe_recorded

    recording = provenance.get("recording")
    env_id = recording.get("env_id") if isinstance(recording, dict) else None
    if not isinstance(env_id, str):
        return ""
    recipe = recipe_recorded(env_id)
    return printable(env_id) + (f" (worldsim record {recipe.name})" if recipe is not None else "")


def _measure(config: Any, run: Callable[[Any], Any], table: Callable[[Any], str]) -> None:
    """Run a measurement of the world that its config names, and print the report."""
    import dataclasses
    import json
    from pathlib import Path

    from worldsim.envs.shipped import world_path

    report = run(dataclasses.replace(config, world=Path(world_path(str(config.world)))))
    print(json.dumps(report, indent=2) if config.json else table(report))
