"""Games are folders: those that come with worldsim, those of other packages, and one beside the user's work."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from test_tutorial import blocks

from worldsim import cli, registry
from worldsim.data.episodes import Dataset
from worldsim.data.record import RecordConfig, recipe_for, record
from worldsim.demos.worlds import make_env
from worldsim.errors import DataError, MissingDependency
from worldsim.evaluation.played import find_starts, play_real
from worldsim.evaluation.probe import probe_of, recipe_of
from worldsim.evaluation.real import find_recipe

POINT = "[worldsim.games]\ncatch = catch\n"


def forget(package: str) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]
    gym.registry.pop("Catch-v0", None)
    importlib.invalidate_caches()


@pytest.fixture
def catch(tmp_path, monkeypatch):
    """The folder of docs/your-own-game.md, as the page has it, on the path."""
    folder = tmp_path / "games"
    (folder / "catch").mkdir(parents=True)
    for block in blocks():
        name = {"catch.py": "catch/env.py"}.get(block["file"] or "", block["file"] or "")
        if name.startswith("catch/"):
            (folder / name).write_text(block["text"])
    monkeypatch.syspath_prepend(folder)
    forget("catch")
    yield folder
    forget("catch")


@pytest.fixture
def packaged(catch):
    """The same, of a package that is installed."""
    about = catch / "catch_game-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: catch-game\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(POINT)
    importlib.invalidate_caches()
    return catch


def world_of(dataset: Dataset) -> Any:
    """What a world that was trained on a recording says of it."""
    card = SimpleNamespace(provenance={"recording": dataset.card.provenance})
    return SimpleNamespace(card=card, action_space=dataset.action_space)


def test_a_folder_is_recorded_by_its_policy_in_its_words(catch, tmp_path):
    config = RecordConfig(game="catch:catch", out=tmp_path / "d", frames=300, workers=2, no_op_fraction=0.1)
    dataset = record(config)
    from catch.prompts import WORDS  # pyright: ignore[reportMissingImports]  -- made above

    assert dataset.card.recipe == "catch:catch" and dataset.card.name == "catch" and dataset.card.fps == 10
    assert {text for episode in dataset.read() for text in episode.texts()} == set(WORDS.values())
    assert {"side"} < set(dataset.read()[0].prompts[0])
    rewards = {
        policy: np.concatenate([e.rewards for e in record(RecordConfig(
            game="catch:Catch-v0", policy=policy, out=tmp_path / policy, frames=600, workers=1)).read()])
        for policy in ("recipe", "random")
    }  # fmt: skip
    caught = {policy: (found > 0).sum() / (found != 0).sum() for policy, found in rewards.items()}
    assert caught["recipe"] > caught["random"] + 0.1  # so it is the folder's policy that plays


def test_evaluation_and_agents_find_the_folder_from_what_was_recorded(catch, tmp_path):
    dataset = record(RecordConfig(game="catch:catch", out=tmp_path / "d", frames=40, workers=1))
    world = world_of(dataset)
    recipe, probe = recipe_of(world), probe_of(world)
    assert recipe is not None and probe is not None and type(probe).__name__ == "CatchProbe"
    assert recipe.env_id == "catch:catch" and find_recipe(dataset.card.recipe or "") == recipe
    prompts = probe.prompts(["something else", "it falls on the left"])
    assert prompts == [("it falls on the left", {})]
    starts = find_starts(probe, 1, (32, 32), prompts, 0)
    from worldsim.evaluation.beginners import beginner

    space, starter = dataset.action_space, probe  # known not to be None inside the functions below
    played = {
        name: play_real(probe, starts, lambda i, n=name: beginner(n, starter, space, {}, [0]), 100,
                        [1], (32, 32))
        for name in ("steer", "hold")
    }  # fmt: skip
    assert played["steer"].ends[0] > 2 * played["hold"].ends[0]  # it catches, by the sight of its probe
    layout = probe.layout(torch.from_numpy(starts[0].frames), [{}] * len(starts[0].frames))
    assert layout.shape[1] == 2 and not layout.isnan().any()
    pytest.importorskip("stable_baselines3")
    from worldsim.agents.envs import find_game, game_keys

    assert find_game("catch:catch", (40, 40)).frame_size == (40, 40)
    assert game_keys(find_game("catch:catch"))[1] == {"": 0, "left": 1, "right": 2}
    env = make_env("catch:catch")
    assert env.reset(seed=1)[0].shape == (32, 32, 3)
    env.close()


def test_a_package_is_found_by_its_entry_point(packaged, tmp_path, capsys):
    recipe = recipe_for(RecordConfig(game="catch"))
    assert recipe.package == "catch" and recipe.env_id == "Catch-v0"
    assert registry.recipe_recorded("Catch-v0") == recipe
    assert cli.main(["record", "--list"]) == 0
    assert "catch                    move the paddle under what falls" in capsys.readouterr().out
    dataset = record(RecordConfig(game="catch", out=tmp_path / "d", frames=20, workers=1))
    assert type(probe_of(world_of(dataset))).__name__ == "CatchProbe"


def test_a_package_that_cannot_be_imported_hides_itself_alone(packaged, capsys):
    (packaged / "catch" / "recipe.py").write_text("import no_such_thing\n")
    assert "catch" not in registry.recipes() and {"car-racing", "doom"} & set(registry.recipes())
    with pytest.raises(MissingDependency, match="'catch' needs the package 'no_such_thing'.*pip install no_such_thing"):
        recipe_for(RecordConfig(game="catch"))
    assert cli.main(["record", "--list"]) == 0
    assert "cannot be played: No module named 'no_such_thing'" in capsys.readouterr().out
    with pytest.raises(MissingDependency, match="'catch:catch' needs the package 'no_such_thing'"):
        recipe_for(RecordConfig(game="catch:catch"))
    assert registry.recipe_recorded("catch:catch") is None
    (packaged / "catch" / "recipe.py").write_text("raise RuntimeError('the wheel came off')\n")
    forget("catch")
    assert {"car-racing", "doom"} & set(registry.recipes()) and set(registry.hidden()) >= {"catch"}
    for name in ("catch", "catch:catch"):
        with pytest.raises(DataError, match="cannot be loaded: RuntimeError in the folder of 'catch': the wheel came"):
            recipe_for(RecordConfig(game=name))


def test_a_folder_without_recipes_says_what_it_lacks(catch):
    (catch / "catch" / "recipe.py").write_text("RECIPE = 1\n")
    with pytest.raises(DataError, match=r"'catch' cannot be used: its recipe.py needs RECIPES"):
        recipe_for(RecordConfig(game="catch:catch"))


def test_unknown_names(catch):
    with pytest.raises(DataError, match="'catch:cathc'.*Did you mean 'catch'"):
        recipe_for(RecordConfig(game="catch:cathc"))
    with pytest.raises(DataError, match="Did you mean 'car-racing'"):
        recipe_for(RecordConfig(game="car-racng"))
    assert find_recipe("no such game") is None and find_recipe("no_such_package:x") is None
    assert registry.recipe_recorded("") is None and registry.recipe_recorded("no_such_package:x") is None


def test_a_package_that_is_no_game_is_not_imported(catch, monkeypatch):
    (catch / "rude").mkdir()
    (catch / "rude" / "__init__.py").write_text("raise SystemExit('imported')\n")
    (catch / "rude" / "inner").mkdir()
    for name in ("rude", "rude.inner"):
        assert registry.folder_game(name) is None and registry.recipe_recorded(f"{name}:x") is None
    assert registry.folder_game("") is None and registry.folder_game("a..b") is None


@pytest.mark.parametrize(
    ("module", "game", "install", "other"),
    [
        ("Box2D", "car-racing", "worldsim-engine\\[record\\]", "doom"),
        ("vizdoom", "doom-take-cover", "--no-deps vizdoom", "car-racing"),
    ],
)
def test_one_missing_package_hides_one_game(module, game, install, other):
    for needed in ("Box2D", "vizdoom"):
        pytest.importorskip(needed)
    code = f"""
import sys
sys.modules[{module!r}] = None
from worldsim import registry
from worldsim.data.record import RecordConfig, recipe_for
print(sorted(registry.recipes()), sorted(registry.hidden()))
print(recipe_for(RecordConfig(game={other!r})).name)
try:
    recipe_for(RecordConfig(game={game.replace("g", "gg", 1)!r}))
except Exception as error:
    print(type(error).__name__, error)
recipe_for(RecordConfig(game={game!r}))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 1, run.stderr
    listed, found, unknown = run.stdout.splitlines()
    known, hidden = listed.split("] [")
    assert game not in known and other in known and f"'{game.partition('-take')[0]}'" in hidden
    assert found == other
    if module == "Box2D":
        assert unknown.startswith("DataError") and "Did you mean 'car-racing'" in unknown
    import re

    assert re.search(f"MissingDependency: .*{install}", run.stderr.splitlines()[-1])


def test_games_of_worldsim_are_folders():
    names = [game.name for game in registry.built_in()]
    assert names == ["car-racing", "doom"]
    for game in registry.built_in():
        folder = Path(registry.FOLDERS) / game.package.rpartition(".")[2]
        assert {"env.py", "policy.py", "prompts.py", "recipe.py", "probes.py"} <= {
            file.name for file in folder.iterdir()
        }


def test_every_recipe_has_a_probe_and_a_name_of_its_game():
    pytest.importorskip("Box2D")
    pytest.importorskip("vizdoom")
    for game in registry.built_in():
        for name, recipe in game.recipes().items():
            assert game.owns(name) and recipe.package == game.package
            probe = game.probe(recipe)
            assert probe is not None and probe.recipe == recipe
    assert set(registry.recipes()) == {
        "car-racing", "doom", "doom-health-gathering", "doom-my-way-home", "doom-take-cover", "doom-defend-the-center",
    }  # fmt: skip
    assert registry.recipe_recorded("CarRacing-v3") == registry.find_recipe("car-racing")  # as world.json names it
    assert registry.recipe_recorded("ViZDoom take_cover") == registry.find_recipe("doom-take-cover")
