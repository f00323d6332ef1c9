"""Imports only go down, the public surface is what it says, and nothing is left out of a wheel."""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from sources import imports

import worldsim

TOP = Path(__file__).resolve().parent.parent

# Longest prefix wins. A module may import from its own floor and from those below.
FLOORS = {
    "worldsim.errors": 0,
    "worldsim.files": 0,
    "worldsim.plots": 1,
    "worldsim.model_card": 3,
    "worldsim.renamed": 0,
    "worldsim.types": 0,
    "worldsim.untrusted": 0,
    "worldsim.threads": 0,
    "worldsim.spaces": 0,
    "worldsim.models": 1,
    "worldsim.diffusion": 1,
    "worldsim.world": 2,
    "worldsim.engine": 3,
    "worldsim.video": 4,
    "worldsim.data": 4,
    "worldsim.training": 4,
    "worldsim.evaluation": 4,
    "worldsim.registry": 4,
    "worldsim.baselines": 5,
    "worldsim.games": 5,
    "worldsim.envs": 5,
    "worldsim.envs.keymap": 1,  # which needs nothing but spaces: recordings store the keys of games
    "worldsim.agents": 6,
    "worldsim.bridges": 6,
    "worldsim.demos": 7,
    "worldsim.commands": 8,
    "worldsim.cli": 8,
    "worldsim.__main__": 8,
}


def floor(module: str) -> int | None:
    found = [name for name in FLOORS if module == name or module.startswith(name + ".")]
    return FLOORS[max(found, key=len)] if found else None


def modules() -> dict[str, Path]:
    """Every module of the package by name, those of the linked folders once."""
    found = {}
    for folder, name in (("worldsim", "worldsim"), ("envs", "worldsim.envs"), ("bridges", "worldsim.bridges"),
                         ("demos", "worldsim.demos")):  # fmt: skip
        for path in (TOP / folder).rglob("*.py"):
            parts = path.relative_to(TOP / folder).with_suffix("").parts
            if folder == "worldsim" and parts[0] in ("envs", "bridges", "demos"):
                continue
            found[".".join([name, *(part for part in parts if part != "__init__")])] = path
    return found


def test_every_module_has_a_floor() -> None:
    assert [name for name in modules() if name != "worldsim" and floor(name) is None] == []


@pytest.mark.parametrize("name", sorted(set(modules()) - {"worldsim"}))
def test_imports_go_down(name: str) -> None:
    here = floor(name)
    assert here is not None
    too_high = {other for other in imports(modules()[name]) if (level := floor(other)) is not None and level > here}
    assert too_high == set()


def test_nothing_depends_on_a_baseline() -> None:
    """Only the command line (and tests, benchmarks and scripts) may import `worldsim.baselines`."""
    above = ("worldsim.baselines", "worldsim.commands", "worldsim.cli")
    others = {name: path for name, path in modules().items() if not name.startswith(above)}
    assert len(others) > 200
    wrong = {
        name
        for name, path in others.items()
        if any(f"{other}.".startswith("worldsim.baselines.") for other in imports(path))
    }
    assert wrong == set()


def test_public_names() -> None:
    assert worldsim.__all__ == [
        "AutoencoderTraining", "Dataset", "DynamicsTraining", "Episode", "RecordConfig", "SamplerConfig", "Simulator",
        "World", "WorldsimError", "record", "train_autoencoder", "train_dynamics",
    ]  # fmt: skip
    assert all(getattr(worldsim, name).__name__ == name for name in worldsim.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        worldsim.nothing  # noqa: B018 -- the access is the test


def test_import_is_cheap() -> None:
    code = (
        "import sys, worldsim, worldsim.cli; sys.exit(any(m in sys.modules for m in ('torch', 'pygame', 'diffusers')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_all_packages_are_listed() -> None:
    settings = tomllib.loads((TOP / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {name for name, path in modules().items() if path.name == "__init__.py"}
    assert packages == set(settings["packages"])


def test_nobody_reaches_into_the_model() -> None:
    """Of a DiT others use `encode_context` and `forward`: its parts are the business of `models` alone."""
    parts = "patch noise sigma actions history camera image blocks modulation final gate heads".split()
    wrong = {}
    for name, path in modules().items():
        if name.startswith("worldsim.models"):
            continue
        reached = [
            f"{node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id}.{node.attr}"  # type: ignore
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
            and node.attr in parts
            and (
                (isinstance(node.value, ast.Attribute) and node.value.attr in ("dynamics", "module"))
                or (isinstance(node.value, ast.Name) and node.value.id in ("dynamics", "module", "dit"))
            )
        ]
        if reached:
            wrong[name] = reached
    assert wrong == {}


def test_the_model_has_two_public_methods() -> None:
    from worldsim.models.dit import DiT

    own = {name for name, value in vars(DiT).items() if callable(value) and not name.startswith("_")}
    assert own == {"encode_context", "forward"}
