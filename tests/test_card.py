"""What a recording says of itself: written and read, damaged, and from before names changed."""

from __future__ import annotations

import dataclasses
import json

import pytest
from gymnasium import spaces

from worldsim.data.card import FILE, FORMAT, FORMAT_VERSION, DatasetCard
from worldsim.data.episodes import Dataset
from worldsim.data.record import RecordConfig, record
from worldsim.errors import ConfigError, DataError
from worldsim.spaces import space_to_json

CARD = DatasetCard(
    name="tiny",
    frame_size=(4, 5),
    fps=12.5,
    action_space=space_to_json(spaces.Discrete(3)),
    keys={"": 0, "left": 1},
    notices=("somebody's",),
    recipe="Tiny-v0",
    provenance={"policy": "recipe", "seed": 3},
)


def test_what_is_written_is_read(tmp_path):
    CARD.write(tmp_path / "d")
    assert DatasetCard.read(tmp_path / "d") == Dataset(tmp_path / "d").card == CARD
    assert [file.name for file in (tmp_path / "d").iterdir()] == [FILE]
    assert Dataset(tmp_path / "d").action_space == CARD.space() == spaces.Discrete(3)
    imported = dataclasses.replace(CARD, recipe=None)
    imported.write(tmp_path / "d")
    assert "recipe" not in json.loads((tmp_path / "d" / FILE).read_text())
    assert DatasetCard.read(tmp_path / "d") == imported


def test_the_file_has_the_fields_that_it_always_had():
    """Other versions read these: a change needs another FORMAT_VERSION."""
    assert list(CARD.to_json()) == [
        "format", "format_version", "name", "frame_size", "fps", "action_space", "keys", "notices", "recipe",
        "provenance",
    ]  # fmt: skip
    assert (CARD["format"], CARD["frame_size"], CARD["notices"]) == ("worldsim-episodes", [4, 5], ["somebody's"])
    assert CARD.get("keys") == {"": 0, "left": 1} and CARD.get("nothing", 7) == 7
    with pytest.raises(dataclasses.FrozenInstanceError):
        CARD.name = "other"  # pyright: ignore[reportAttributeAccessIssue]  -- the error is the test


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "lerobot"}, f"no format: '{FORMAT}'"),
        ({"format_version": 9}, f"format_version 9; this worldsim reads {FORMAT_VERSION}"),
        ({"frame_size": [4]}, r"damaged: frame_size is \(4,\); allowed: a height and a width of at least 1"),
        ({"frame_size": [4, 0]}, r"frame_size is \(4, 0\)"),
        ({"frame_size": "ab"}, "frame_size"),
        ({"fps": 0}, "fps is 0; it must be a number above 0"),
        ({"fps": "fast"}, "fps is 'fast'"),
        ({"keys": ["left"]}, r"keys is \['left'\]; it must be a dict"),
        ({"provenance": []}, "damaged"),
        ({"name": 3}, "name is 3; it must be a str"),
        ({"action_space": {"type": "tuple"}}, "action_space is {'type': 'tuple'}"),
        ({"fps": None, "name": None}, "damaged"),
    ],
)
def test_damaged_cards(tmp_path, changes, says):
    (tmp_path / FILE).write_text(json.dumps({**CARD.to_json(), **changes}))
    with pytest.raises(DataError, match=says) as error:
        DatasetCard.read(tmp_path)
    assert str(tmp_path / FILE) in str(error.value)


@pytest.mark.parametrize("name", ["name", "frame_size", "fps", "action_space"])
def test_a_missing_field_is_named(tmp_path, name):
    data = CARD.to_json()
    del data[name]
    (tmp_path / FILE).write_text(json.dumps(data))
    with pytest.raises(DataError, match=name):
        DatasetCard.read(tmp_path)


def test_a_recording_from_before_names_changed_goes_on(tmp_path):
    """Its settings are those of today under other names, so that it is the same recording."""
    pytest.importorskip("Box2D")
    config = RecordConfig(
        game="car-racing", out=tmp_path / "d", frames=1, workers=1, no_op_fraction=0.5, max_episode_steps=4
    )
    before = record(config).card
    path = tmp_path / "d" / FILE
    old = json.loads(path.read_text())
    assert old["provenance"]["policy"] == "recipe" and old["provenance"].pop("no_op_fraction") == 0.5
    old["provenance"] |= {"policy": "explorer", "idle": 0.5}
    path.write_text(json.dumps(old))
    assert Dataset(tmp_path / "d").card == before
    dataset = record(dataclasses.replace(config, frames=8))
    assert len(dataset.episodes()) == 2
    with pytest.raises(DataError, match="no_op_fraction was 0.5, is 0.25"):
        record(dataclasses.replace(config, no_op_fraction=0.25))


def test_an_old_value_is_refused_by_its_new_name():
    with pytest.raises(ConfigError, match="'explorer' is called 'recipe' now"):
        RecordConfig(game="car-racing", policy="explorer")
    with pytest.raises(ConfigError, match="the folder of an agent.$"):
        RecordConfig(game="car-racing", policy="nobody")
