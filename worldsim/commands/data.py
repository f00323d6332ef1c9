"""Verbs of recordings: record, and data ..."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from worldsim.commands.parsing import parse

ENOUGH_FRAMES = 12  # in a row: what training takes by default

if TYPE_CHECKING:
    from worldsim.data.episodes import Dataset


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


def data_import_lerobot(args: Sequence[str]) -> None:
    """Make a dataset of a LeRobot dataset (version 3), from the pictures of one of its cameras.

    Example: worldsim data import-lerobot ~/datasets/pusht --out data/pusht --frame-size 96 96
    """
    from worldsim.data.lerobot import LeRobotImport, import_lerobot

    print(_counts(import_lerobot(parse(LeRobotImport, "data import-lerobot", args, data_import_lerobot.__doc__))))


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
    return "\n".join([f"{dataset.path}: {counts} episodes", *_notes(dataset)])


def _notes(dataset: Dataset) -> list[str]:
    """Say what training will miss, while recording more is at hand."""
    from worldsim.data.episodes import count_steps

    notes, train = [], dataset.episodes("train")
    if not dataset.episodes("heldout"):
        notes.append("note: no episode is held out yet, and training needs one; every tenth is: record at least ten.")
    longest = 1 + max((count_steps(path) for path in train), default=0)
    if longest < ENOUGH_FRAMES:
        notes.append(
            f"note: the longest episode has {longest} frames; training takes {ENOUGH_FRAMES} in a row, or fewer with "
            "--frames and --history."
        )
    return notes
