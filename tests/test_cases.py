"""The scripts of tests/cases, which run by hand: what they import from the package exists."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "cases"


def imported(tree: ast.AST) -> Iterator[tuple[str, str | None]]:
    """The modules of the package that a script imports, each with a name from it or None."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "worldsim":
            yield from ((str(node.module), alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "worldsim")


@pytest.mark.parametrize("path", sorted(CASES.rglob("*.py")), ids=lambda path: path.name)
def test_what_a_case_imports_exists(path: Path) -> None:
    for module, name in imported(ast.parse(path.read_text())):
        found = importlib.import_module(module)
        assert name is None or hasattr(found, name) or find_spec(f"{module}.{name}"), f"{module} has no {name}"


def test_cases_import_the_package() -> None:
    assert sum(any(True for _ in imported(ast.parse(path.read_text()))) for path in CASES.rglob("*.py")) > 15
