"""The description of a recording: reads and writes `dataset.json`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gymnasium import spaces

from worldsim.errors import ConfigError, DataError
from worldsim.files import replacing
from worldsim.renamed import recording_of_today
from worldsim.spaces import space_from_json
from worldsim.untrusted import NAME, Untrusted, read_json

FILE = "dataset.json"
FORMAT = "worldsim-episodes"
FORMAT_VERSION = 1
LARGEST_SIDE, FPS = 4096, (1e-3, 1e4)  # pixels; frames a second
MOST_KEYS = 10_000


@dataclass(frozen=True, kw_only=True)
class DatasetCard:
    """The description of a recording.

    Raises:
        DataError: a field that no recording can have, such as a frame size of one number.
    """

    name: str
    frame_size: tuple[int, int]  # (height, width)
    fps: float  # frames per second of game time
    action_space: dict[str, Any]  # see worldsim.spaces
    keys: dict[str, Any] = field(default_factory=dict)  # "left+up" -> action; "" is no key
    notices: tuple[str, ...] = ()  # licences of what the frames show
    recipe: str | None = None  # what was recorded, as `worldsim record` takes it; None for what was imported
    provenance: dict[str, Any] = field(default_factory=dict)  # with which settings, by which versions

    def __post_init__(self) -> None:
        """Check the fields: a card may come from anywhere."""
        size, fps = self.frame_size, self.fps
        if not (len(size) == 2 and all(type(length) is int and 0 < length <= LARGEST_SIDE for length in size)):
            raise DataError(
                f"frame_size is {size!r:.60}; allowed: a height and a width of at least 1, and at most {LARGEST_SIDE}."
            )
        if isinstance(fps, bool) or not isinstance(fps, int | float) or not fps > 0:
            raise DataError(f"fps is {fps!r:.60}; it must be a number above 0.")
        if not FPS[0] <= fps <= FPS[1]:
            raise DataError(f"fps is {fps!r}; allowed: {FPS[0]:g} to {FPS[1]:g} frames per second.")
        kinds = {"name": str, "action_space": dict, "keys": dict, "provenance": dict}
        for name, kind in kinds.items():
            if not isinstance(getattr(self, name), kind):
                raise DataError(f"{name} is {getattr(self, name)!r:.200}; it must be a {kind.__name__}.")
        if not NAME.fullmatch(self.name):
            raise DataError(
                f"name is {self.name!r:.160}; allowed: up to 128 characters without '/', which do not begin with '.'."
            )
        if len(self.keys) > MOST_KEYS or not all(isinstance(text, str) for text in self.notices):
            raise DataError(f"there are {len(self.keys)} keys; allowed: {MOST_KEYS}, and notices of text.")
        if not isinstance(self.recipe, str | None):
            raise DataError(f"recipe is {self.recipe!r:.100}; it must be text.")
        try:
            space_from_json(self.action_space)
        except (ConfigError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"action_space is {self.action_space!r:.300}, which is none ({error}).") from error

    def space(self) -> spaces.Space:
        """Make the Gymnasium action space."""
        return space_from_json(self.action_space)

    def __getitem__(self, name: str) -> Any:
        """A field as JSON has it."""
        return self.to_json()[name]

    def get(self, name: str, default: Any = None) -> Any:
        """Get a field as JSON has it, or `default`: recordings are compared field by field."""
        return self.to_json().get(name, default)

    def to_json(self) -> dict[str, Any]:
        """Get the content of the file, in its order."""
        fields = {name: getattr(self, name) for name in (part.name for part in dataclasses.fields(self))}
        fields |= {"frame_size": list(self.frame_size), "notices": list(self.notices)}
        if self.recipe is None:
            del fields["recipe"]
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **fields}

    @staticmethod
    def of(data: Any, source: str) -> DatasetCard:
        """Make a card of the content of a file.

        Args:
            data: what JSON says.
            source: where from, for errors.

        Raises:
            DataError: it is not ours, of another format version, or damaged.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            raise DataError(f"{source} does not describe a worldsim dataset (no format: {FORMAT!r}).")
        if data.get("format_version") != FORMAT_VERSION:
            raise DataError(
                f"{source} has format_version {data.get('format_version')!r}; this worldsim reads {FORMAT_VERSION}. "
                "Record it again, or use the worldsim version that wrote it."
            )
        names = [part.name for part in dataclasses.fields(DatasetCard)]
        fields = {name: data[name] for name in names if name in data}
        try:
            fields["frame_size"], fields["notices"] = tuple(fields["frame_size"]), tuple(fields.get("notices", ()))
            fields["provenance"] = recording_of_today(fields.get("provenance", {}))
            return DatasetCard(**fields)
        except (DataError, AttributeError, KeyError, TypeError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{source} is damaged: {reason}. Restore it or record again.") from error

    @staticmethod
    def read(folder: Path) -> DatasetCard:
        """Read the card of the dataset in `folder`.

        Raises:
            DataError: no dataset there, not one of ours, of another format version, or damaged.
        """
        path = folder / FILE
        if not path.is_file():
            raise DataError(f"no dataset at {folder}: {FILE} is missing. Make one with: worldsim record")
        try:
            data = read_json(path)
        except (OSError, Untrusted) as error:
            raise DataError(f"{path} is not JSON ({error}); restore it or record again.") from error
        return DatasetCard.of(data, str(path))

    def write(self, folder: Path) -> None:
        """Write the card into `folder`, so that a reader finds the old one or the new one."""
        with replacing(folder / FILE) as partial:
            partial.write_text(json.dumps(self.to_json(), indent=2) + "\n")
