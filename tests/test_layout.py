"""The layout of the source: short modules, parts of the bridge that keep apart, all files in wheels."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from sources import imports

TOP = Path(__file__).resolve().parent.parent
FOLDERS = ("worldsim", "envs", "bridges", "demos", "tests", "scripts")
LINES = 400
LONGER: set[str] = set()
"""Modules over the limit. The list may only shrink: split a module, then take it out."""


def sources() -> dict[str, Path]:
    """Our Python modules by path, those of the linked folders once."""
    paths = {path.resolve() for folder in FOLDERS for path in (TOP / folder).rglob("*.py")}
    return {path.relative_to(TOP).as_posix(): path for path in paths}


def test_modules_are_short() -> None:
    lines = {name: len(path.read_text().splitlines()) for name, path in sources().items()}
    assert len(lines) > 200
    assert {name: count for name, count in lines.items() if count > LINES and name not in LONGER} == {}
    assert {name for name in LONGER if lines.get(name, 0) <= LINES} == set(), "take these out of LONGER"


@pytest.mark.parametrize(
    ("part", "never"),
    [
        ("protocol.py", ("worldsim.bridges",)),
        ("messages.py", ("worldsim.bridges.client", "worldsim.bridges.host", "worldsim.bridges.conformance")),
        ("actions.py", ("worldsim.bridges.client", "worldsim.bridges.host", "worldsim.bridges.conformance")),
        ("frames.py", ("worldsim.bridges.client", "worldsim.bridges.host", "worldsim.bridges.conformance")),
        ("web.py", ("worldsim.bridges.client", "worldsim.bridges.host", "worldsim.bridges.conformance")),
        ("client", ("worldsim.bridges.host", "worldsim.bridges.conformance")),
        ("host", ("worldsim.bridges.client", "worldsim.bridges.conformance")),
        ("conformance", ("worldsim.bridges.client", "worldsim.bridges.host")),
    ],
)
def test_the_parts_of_the_bridge_keep_apart(part: str, never: tuple[str, ...]) -> None:
    """Host and client share the protocol and nothing else; the conformance checks belong to neither."""
    place = TOP / "bridges" / part
    paths = [place] if place.suffix else list(place.rglob("*.py"))
    assert paths
    for path in paths:
        found = {name for name in imports(path) if any(name == one or name.startswith(f"{one}.") for one in never)}
        assert not found, f"{path.relative_to(TOP)} imports {sorted(found)}"


def test_wheels_have_the_files_that_are_no_modules() -> None:
    settings = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = settings["package-dir"]
    for package, patterns in settings["package-data"].items():
        for pattern in patterns:
            assert list((TOP / folders[package]).glob(pattern)), f"{package}: nothing is called {pattern}"
    page = {
        path for pattern in settings["package-data"]["worldsim.bridges"] for path in (TOP / "bridges").glob(pattern)
    }
    assert page == set((TOP / "bridges" / "addons" / "page").iterdir())


ARCHITECTURE = (TOP / "docs" / "architecture.md").read_text()
COMPLETE = ("bridges/", "demos/", "envs/", "worldsim/")
"""Folders whose modules all have a row on the page."""


def test_the_page_names_every_module() -> None:
    rows = re.findall(r"^\| `([^`]+\.py)` \| .+ \|$", ARCHITECTURE, re.MULTILINE)
    assert len(rows) == len(set(rows))
    there = {name for name in sources() if name.startswith(COMPLETE)}
    assert len(there) > 60
    assert there - set(rows) == set(), "docs/architecture.md has no row for these"


def test_the_page_names_nothing_else() -> None:
    named = {word for word in re.findall(r"`([^`\s]+)`", ARCHITECTURE) if "/" in word}
    assert len(named) > 80
    assert {word for word in named if not (TOP / word).exists()} == set()


README = (TOP / "README.md").read_text()


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150, "move the rest to docs/"


def test_each_result_of_the_readme_has_its_command() -> None:
    section = README.split("\n## Results\n")[1].split("\n## ")[0]
    _, _, *rows = [line for line in section.splitlines() if line.startswith("|")]  # without the head and its rule
    assert 0 < len(rows) <= 12, "move rows to docs/results.md"
    for row in rows:
        command = row.strip("| ").split(" | ")[-1]
        assert re.fullmatch(r"`(worldsim|python -m worldsim\.)[^`]+`", command), row
