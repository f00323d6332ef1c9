"""The games that worldsim knows how to record."""

from __future__ import annotations

from worldsim.data.recipe import Recipe


def recipes() -> dict[str, Recipe]:
    """Every built-in recipe by name."""
    from worldsim.data.games import car_racing, doom

    return {recipe.name: recipe for recipe in (car_racing.RECIPE, *doom.RECIPES)}
