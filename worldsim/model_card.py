"""The README.md of a world's folder: what it is, for people, made of its card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from worldsim.errors import printable
from worldsim.files import replacing
from worldsim.world import WorldCard

MOST_PROMPTS, MOST_NUMBERS = 12, 60


def write_model_card(card: WorldCard, folder: Path) -> None:
    """Write README.md into the folder of a world.

    Raises:
        OSError: the system refuses.
    """
    with replacing(folder / "README.md") as partial:
        partial.write_text(model_card(card, folder), encoding="utf-8")


def model_card(card: WorldCard, folder: Path) -> str:
    """Say what a world is, in Markdown."""
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.name != "README.md") / 1e6
    recording = card.provenance.get("recording", {})
    recording = recording if isinstance(recording, dict) else {}
    trained = card.provenance.get("training", {})
    lines = [
        "---",
        "library_name: worldsim",
        "tags: [world-model, gymnasium]",
        "---",
        f"# {_line(card.name)}",
        "",
        f"A world model of {_line(recording.get('env_id', 'recorded gameplay'))}, to play and to step: "
        f"{card.frame_size[0]} x {card.frame_size[1]} pixels at {card.fps:.3g} frames per second, {size:.1f} MB.",
        "",
        "```bash",
        "pip install worldsim-engine",
        "worldsim play FOLDER   # the folder of this file",
        "```",
        "",
        "```python",
        "import gymnasium as gym, worldsim.envs",
        'env = gym.make("worldsim/World-v0", world="FOLDER")',
        "```",
        "",
        "## Actions",
        "",
        f"`{_line(json.dumps(card.action_space), 1000)}`",
        "",
    ]
    if named := [key for key in card.keys if key]:
        lines += [f"Keys: {', '.join(f'`{_line(key)}`' for key in named[:40])}.", ""]
    lines += ["## Prompts", ""]
    lines += [f"- {_line(text)}" for text in card.prompts[:MOST_PROMPTS]] or ["None: it was recorded without words."]
    lines += ["", "## How it was made", ""]
    lines += _table({name: value for name, value in recording.items() if name != "packages"})
    if isinstance(trained, dict) and isinstance(trained.get("trainer"), dict):
        lines += [f"Trained for {card.provenance.get('steps', '?')} steps with worldsim.", ""]
    lines += ["## Quality", ""]
    lines += _table(_quality(card.quality)) or ["Not measured; `worldsim eval` does.", ""]
    if card.notices:
        lines += [
            "## Notices",
            "",
            *(f"> {_line(row, 2000)}" for text in card.notices for row in [*text.splitlines(), ""]),
        ]
    return "\n".join(lines).rstrip() + "\n"


def _quality(quality: dict[str, Any]) -> dict[str, Any]:
    """The measured numbers, each with the name of its stage before it; not their intervals."""
    stages = ((stage, found if isinstance(found, dict) else {"": found}) for stage, found in quality.items())
    numbers = {
        f"{stage} {name}".strip(): f"{value:.4g}"
        for stage, found in stages
        for name, value in found.items()
        if stage not in ("sampler", "seed")  # how it was measured
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    return dict(list(numbers.items())[:MOST_NUMBERS])


def _table(values: dict[str, Any]) -> list[str]:
    rows = [f"| {_line(name)} | {_line(value)} |" for name, value in values.items() if value not in ("", None)]
    return ["| | |", "| --- | --- |", *rows, ""] if rows else []


def _line(value: Any, most: int = 200) -> str:
    """A stranger's words within a line of Markdown."""
    return printable(str(value), most).replace("|", "\\|").replace("<", "&lt;").replace("`", "'")
