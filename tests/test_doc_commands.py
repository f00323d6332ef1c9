"""Commands of the docs: the real parser takes each of them, and every option that a page names exists.

docs/log.md is left out: it tells what was run at the time, under the names of the time.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tyro

from worldsim import cli
from worldsim.errors import ConfigError

TOP = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for path in [TOP / "README.md", *TOP.glob("docs/*.md"), *TOP.glob("bridges/addons/*/README.md")]
    if path.name != "log.md"
)
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
OPTION = re.compile(r"(?<![\w-])--[a-z][\w.-]*")
MODULE = ("python", "-m")


class Parsed(BaseException):
    """The words were taken; what would run stops here."""


def commands(text: str) -> Iterator[list[str]]:
    """The commands of ours in some lines of shell, as words."""
    for line in text.replace("\\\n", " ").splitlines():
        if "worldsim" not in line:
            continue
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word and set(word) <= set("();<>|&"):
                while words and re.fullmatch(r"\w+=\S*", words[0]):  # VARIABLE=value before a command
                    words.pop(0)
                if words[:1] == ["worldsim"] or (tuple(words[:2]) == MODULE and words[2].startswith("worldsim.")):
                    yield words
                words = []
            else:
                words.append(word)


def fenced(page: Path) -> list[list[str]]:
    blocks = FENCE.findall(page.read_text())
    return [words for kind, text in blocks if kind in ("bash", "sh") for words in commands(text)]


def inline(page: Path) -> list[str]:
    return INLINE.findall(FENCE.sub("", page.read_text()))


@pytest.fixture
def no_running(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real parsers that stop once they have taken the words."""
    real, real_args = tyro.cli, argparse.ArgumentParser.parse_args

    def parse(*args: Any, **kwargs: Any) -> Any:
        real(*args, **kwargs)
        raise Parsed

    def parse_args(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        found = real_args(self, *args, **kwargs)
        if self.prog.startswith("python -m worldsim"):
            raise Parsed
        return found

    monkeypatch.setattr(tyro, "cli", parse)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)


def run(words: list[str]) -> None:
    """Run a command up to where its words are taken.

    Raises:
        ConfigError: an unknown verb, or a value that is not allowed.
        SystemExit: words that the parser does not take.
    """
    try:
        if words[0] == "worldsim":
            verb, rest = cli.find_verb(words[1:])
            verb(rest)
        else:
            run_module(*words[2:])
    except Parsed:
        pass


def run_module(name: str, *words: str) -> None:
    """What `python -m name words` does."""
    module, before = importlib.import_module(name), sys.argv
    if not hasattr(module, "main"):
        assert not words, f"{name} takes no words"
        return
    sys.argv = [name, *words]
    try:
        module.main()
    finally:
        sys.argv = before


def options(words: list[str], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """What the --help of a verb, or of a module, lists."""
    capsys.readouterr()
    with contextlib.suppress(SystemExit):
        if words[0] == "worldsim":
            verb, _ = cli.find_verb(words[1:])
            verb(["--help"])
        else:
            run_module(words[2], "--help")
    return set(OPTION.findall(capsys.readouterr().out)) | {"--help"}


def missing(words: list[str]) -> str:
    """The package that a command needs and that is not installed."""
    needed = {"agent": "stable_baselines3", "worldsim.bridges.web": "aiohttp"}
    package = needed.get(words[2] if words[0] == "python" else words[1], "torch")
    return "" if find_spec(package) else package


CASES = [pytest.param(words, id=f"{page.name}: {shlex.join(words)[:90]}") for page in PAGES for words in fenced(page)]


def test_commands_are_found() -> None:
    text = "X=1 worldsim play a --out b | tee log && worldsim info a # worldsim no\ncd x; python -m worldsim.a b > c"
    found = [["worldsim", "play", "a", "--out", "b"], ["worldsim", "info", "a"], ["python", "-m", "worldsim.a", "b"]]
    assert list(commands(text)) == found
    assert list(commands("worldsim record a \\\n  --frames 3")) == [["worldsim", "record", "a", "--frames", "3"]]
    assert len(CASES) > 40


@pytest.mark.parametrize("words", CASES)
def test_a_command_is_taken(
    words: list[str], no_running: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package := missing(words):
        pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    for word in words:
        if word.startswith("runs/agent"):  # which a command before it has made
            (tmp_path / word).mkdir(parents=True)
            (tmp_path / word / "agent.json").write_text("{}")
    run(words)


@pytest.mark.parametrize(
    "words", ["recrod a", "serve --loud", "bench --steps many", "eval doom --own 3", "train dynamics a --windows 3"]
)
def test_a_wrong_command_is_found(words: str, no_running: None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises((ConfigError, SystemExit)) as caught:
        run(["worldsim", *words.split()])
    assert not isinstance(caught.value, SystemExit) or caught.value.code == 2


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(TOP)) for page in PAGES])
def test_what_is_said_in_passing_exists(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Commands inside a sentence may be cut short: their verb exists, and so do the options that they name."""
    for text in inline(page):
        if text.startswith(("worldsim ", "python -m worldsim.")):
            words = text.split()
            if words[0] == "python" and not hasattr(importlib.import_module(words[2]), "main"):
                continue
            if not missing(words):
                unknown = set(OPTION.findall(text)) - options(words, capsys)
                assert not unknown, f"{page.name}: `{text}` names {sorted(unknown)}"


@pytest.fixture(scope="module")
def every_option() -> set[str]:
    """The options of all verbs, of the modules that pages run, and of scripts/lab."""
    found: set[str] = set()
    runs = [["worldsim", *verb.split()] for verb in cli.VERBS]
    runs += {words[2]: words for page in PAGES for words in fenced(page) if words[0] == "python"}.values()
    for words in runs:
        said = io.StringIO()
        if not missing(words):
            with contextlib.suppress(SystemExit), contextlib.redirect_stdout(said):
                if words[0] == "worldsim":
                    cli.find_verb(words[1:])[0](["--help"])
                else:
                    run_module(words[2], "--help")
        found |= set(OPTION.findall(said.getvalue()))
    lab = subprocess.run(
        [sys.executable, TOP / "scripts" / "lab", "--help"], capture_output=True, text=True, check=True
    )
    return found | set(OPTION.findall(lab.stdout))


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(TOP)) for page in PAGES])
def test_an_option_by_itself_is_one_of_ours(page: Path, every_option: set[str]) -> None:
    """`--frames 3` in a sentence, without the verb that it belongs to."""
    for package in ("stable_baselines3", "aiohttp"):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    named = {option for text in inline(page) if text.startswith("--") for option in OPTION.findall(text)}
    assert named - every_option == set()
