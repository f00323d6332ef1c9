"""Games by name.

A game is a folder that Python can import as a package:

    catch/
      recipe.py     RECIPES, a tuple of `Recipe`: how the game is recorded, each under a name of its own; and, where it
                    imports without them, check_installed(), which raises MissingDependency for packages it needs
      probes.py     PROBES, the name of a recipe -> the class of its `Probe`: what evaluation knows of it (optional)
      env.py, policy.py, prompts.py and so on: what these two are made of, as the game likes
      __init__.py   of games that come with worldsim: ENVS, their Gymnasium ids

Games are found in three places: the folders of `worldsim/games`; packages that an entry point of the group
`worldsim.games` names; and, without any packaging, a folder on the Python path, written PACKAGE:RECIPE.
The recipes of a game called `my_game` are called "my-game" or "my-game-something", so that a game whose packages are
not installed, and which nobody can look into, is still known by name.
"""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worldsim.data.recipe import Recipe
from worldsim.errors import DataError, MissingDependency

if TYPE_CHECKING:
    from worldsim.evaluation.probe import Probe

GROUP = "worldsim.games"  # of entry points; and the package whose folders are games
FOLDERS = Path(__file__).resolve().parent / "games"


@dataclass(frozen=True, kw_only=True)
class GameEnv:
    """A Gymnasium id, worldsim/NAME-v0, of a game that comes with worldsim."""

    name: str
    entry_point: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    untimed: Mapping[str, Any] = field(default_factory=dict)  # arguments that take away its time limit


@dataclass(frozen=True)
class Game:
    """One game's folder.

    Attributes:
        package: its name for imports.
    """

    package: str

    @property
    def name(self) -> str:
        """What its recipes are called, or begin with."""
        return self.package.rpartition(".")[2].replace("_", "-")

    def owns(self, recipe: str) -> bool:
        """Say whether a recipe of that name would be this game's."""
        return recipe == self.name or recipe.startswith(self.name + "-")

    def recipes(self) -> dict[str, Recipe]:
        """Import the recipes, by name.

        Raises:
            MissingDependency: a package that the game needs is not installed.
            DataError: its recipe.py has no RECIPES.
        """
        module = importlib.import_module(f"{self.package}.recipe")
        getattr(module, "check_installed", lambda: None)()
        try:
            return {recipe.name: dataclasses.replace(recipe, package=self.package) for recipe in module.RECIPES}
        except (AttributeError, TypeError) as error:
            raise DataError(
                f"the game {self.package!r} cannot be used: its recipe.py needs RECIPES, a tuple of Recipe ({error})."
            ) from error

    def probe(self, recipe: Recipe) -> Probe | None:
        """Make the probe of a recipe; None where the game has none.

        Raises:
            MissingDependency: a package that the probe needs is not installed.
        """
        name = f"{self.package}.probes"
        if importlib.util.find_spec(name) is None:
            return None
        found = getattr(importlib.import_module(name), "PROBES", {}).get(recipe.name)
        return None if found is None else found(recipe)

    def envs(self) -> tuple[GameEnv, ...]:
        """List its Gymnasium ids; nothing of the game itself is imported."""
        return tuple(getattr(importlib.import_module(self.package), "ENVS", ()))


def built_in() -> list[Game]:
    """List the games that come with worldsim."""
    return [Game(f"{GROUP}.{file.parent.name}") for file in sorted(FOLDERS.glob("*/recipe.py"))]


def games() -> list[Game]:
    """List the games that come with worldsim, and those that entry points of other packages name."""
    points = importlib.metadata.entry_points(group=GROUP)
    foreign = sorted({point.module for point in points})
    return [*built_in(), *map(Game, foreign)]


def folder_game(package: str) -> Game | None:
    """Find the game whose folder can be imported as `package`; None for any other package, which is not imported."""
    top, *inner = package.split(".")
    try:
        spec = importlib.util.find_spec(top)  # of an inner package it would import the outer ones
    except (ImportError, ValueError):  # a name that is none; a module that no file has
        return None
    places = spec.submodule_search_locations if spec is not None else None
    return Game(package) if any(Path(place, *inner, "recipe.py").is_file() for place in places or ()) else None


def recipes() -> dict[str, Recipe]:
    """Load every recipe by name; games whose packages are not installed are left out."""
    return _load(games())[0]


def hidden() -> dict[str, Exception]:
    """List games that cannot be loaded, by name, and why: mostly a package that is not installed."""
    return {game.name: error for game, error in _load(games())[1].items()}


def find_recipe(name: str) -> Recipe | None:
    """Find a recipe by its name or, of a folder on the Python path, as PACKAGE:NAME; None where there is none.

    Raises:
        MissingDependency: the game is known, but a package that it needs is not installed.
        DataError: the game is known, but its folder is broken.
    """
    package, colon, inner = name.partition(":")
    if colon:
        game = folder_game(package)
        known, missing = _load([] if game is None else [game])
        recipe = next((recipe for recipe in known.values() if inner in (recipe.name, recipe.env_id)), None)
        if recipe is not None:
            return dataclasses.replace(recipe, env_id=name)  # so that a recording leads back to the folder
    else:
        known, missing = _load(games())
        if name in known:
            return known[name]
    for game, error in missing.items():
        if colon or game.owns(name):
            raise _explained(name, game, error) from error
    return None


def recipe_recorded(env_id: str) -> Recipe | None:
    """Find the recipe that was recorded as `env_id`; None where it is not known or its packages are not installed."""
    try:
        if ":" in env_id:
            return find_recipe(env_id)
    except (MissingDependency, DataError):
        return None
    return next((recipe for recipe in recipes().values() if recipe.env_id == env_id), None)


def game_envs() -> list[GameEnv]:
    """List the Gymnasium ids of the games that come with worldsim."""
    return [env for game in built_in() for env in game.envs()]


def _load(found: Iterable[Game]) -> tuple[dict[str, Recipe], dict[Game, Exception]]:
    """The recipes of games by name, the first of a name wins; and why games cannot be loaded: it hides only them."""
    known: dict[str, Recipe] = {}
    missing: dict[Game, Exception] = {}
    for game in found:
        try:
            for recipe in game.recipes().values():
                known.setdefault(recipe.name, recipe)
        except Exception as error:  # whatever somebody's folder does when it is imported
            missing[game] = error
    return known, missing


def _explained(name: str, game: Game, error: Exception) -> MissingDependency | DataError:
    """The error of somebody who asks for a game that cannot be loaded."""
    if isinstance(error, MissingDependency | DataError):
        return error
    if isinstance(error, ImportError):
        package = error.name or game.package
        return MissingDependency(package, f"the game {name!r}", f"pip install {package}")
    return DataError(
        f"the game {name!r} cannot be loaded: {type(error).__name__} in the folder of {game.package!r}: {error}. "
        "Mend the folder."
    )
