"""The words people use for palettes, and back from words to palettes."""

from __future__ import annotations

import numpy as np

from worldsim.games.car_racing.palettes import THEMES, Palette

_ROAD_WORDS: dict[str, tuple[str, ...]] = {
    "grey": ("grey road", "gray road", "grey tarmac road"),
    "black": ("black road", "black asphalt road", "dark asphalt track"),
    "brick": ("red brick road", "brick road", "red bricked road"),
    "dirt": ("dirt road", "brown dirt track", "muddy brown road"),
    "white": ("white road", "icy white road", "pale white track"),
    "blue": ("blue road", "bright blue track", "road painted blue"),
    "yellow": ("yellow road", "bright yellow track", "road painted yellow"),
    "purple": ("purple road", "violet track", "road painted purple"),
}
_GROUND_WORDS: dict[str, tuple[str, ...]] = {
    "grass": ("green grass", "a green meadow", "bright green fields"),
    "snow": ("fresh snow", "white snow", "a snowy field"),
    "sand": ("desert sand", "yellow sand", "a sandy desert"),
    "night": ("the dark night", "night fields", "a dark blue night"),
    "mars": ("red rock", "red martian rocks", "a red martian desert"),
    "autumn": ("orange autumn leaves", "autumn fields", "orange leaves"),
    "sea": ("blue water", "the blue sea", "open water"),
    "ash": ("grey ash", "volcanic ash", "a field of ash"),
    "blossom": ("pink blossom", "fallen cherry blossom", "pink flowers"),
    "forest": ("a dark green forest", "deep green woods", "a dark forest"),
}
_TEMPLATES = (
    "a {road} through {ground}",
    "a {road} in {ground}",
    "a {road} across {ground}",
    "a {road} and {ground} around it",
    "{road}, {ground}",
    "{ground} with a {road}",
    "{ground} and a {road}",
    "{ground} beside a {road}",
    "driving on a {road} through {ground}",
    "a race on a {road} in {ground}",
    "a car on a {road}, {ground} around",
    "a {road} winding through {ground}",
    "the {road} runs through {ground}",
)
_THEME_WORDS: dict[str, tuple[str, ...]] = {
    "classic": ("classic", "the classic track", "classic colours"),
    "night": ("a race at night", "night"),
    "snow": ("a winter race", "winter"),
    "desert": ("a desert race", "desert"),
    "mars": ("a race on mars", "mars"),
    "autumn": ("an autumn race", "autumn"),
    "forest": ("a forest trail", "forest"),
    "sea": ("a causeway in the sea", "sea"),
    "volcano": ("a volcano race", "volcano"),
    "spring": ("a spring race", "spring"),
}
_THEME_PROMPTS = 0.2  # of the prompts of a themed palette name the theme only


def plain_prompt(palette: Palette) -> str:
    """Get the plainest words for a palette, always the same."""
    return f"a {_ROAD_WORDS[palette.road][0]} through {_GROUND_WORDS[palette.ground][0]}"


def prompt_for(palette: Palette, rng: np.random.Generator) -> str:
    """Draw words for a palette: a template with synonyms or, sometimes, the name of its theme."""
    theme = next((name for name, themed in THEMES.items() if themed == palette), None)
    if theme is not None and rng.random() < _THEME_PROMPTS:
        words = _THEME_WORDS[theme]
        return words[rng.integers(len(words))]
    road = _ROAD_WORDS[palette.road][rng.integers(len(_ROAD_WORDS[palette.road]))]
    ground = _GROUND_WORDS[palette.ground][rng.integers(len(_GROUND_WORDS[palette.ground]))]
    return _TEMPLATES[rng.integers(len(_TEMPLATES))].format(road=road, ground=ground)


def palette_of(prompt: str) -> Palette | None:
    """Get the palette that a prompt names, by its theme or by a road and a ground; None where it names none."""
    text = prompt.lower()
    for name, words in _THEME_WORDS.items():
        if text in words:
            return THEMES[name]
    found = []
    for table in (_ROAD_WORDS, _GROUND_WORDS):
        hits = [(len(word), name) for name, words in table.items() for word in words if word in text]
        if not hits:
            return None
        found.append(max(hits)[1])  # the longest: "a dark green forest", not "a dark forest"
    return Palette(*found)
