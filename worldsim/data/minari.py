"""Export datasets to Minari, the Farama Foundation's format for offline reinforcement learning, and import them.

An exported dataset is bitwise equal after import: frames are stored raw (arrow, no JPEG), prompts and labels in the
infos and the metadata, and the dataset's card in the metadata of the whole. Other Minari datasets can be imported if
they have image observations.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.data.card import DatasetCard
from worldsim.data.episodes import Dataset, Episode, read_episode
from worldsim.data.foreign import FRAMES_PER_SECOND
from worldsim.data.frames import SMALLEST_PICTURE, resize_frame
from worldsim.data.importing import check_free, ended, importing, make_card
from worldsim.data.recipe import SPLITS
from worldsim.errors import ConfigError, DataError, MissingDependency, did_you_mean

CARD, EPISODE = "worldsim", "worldsim"  # our entries in the metadata of a dataset and of an episode


@dataclass(frozen=True, kw_only=True)
class MinariExport:
    """Which dataset to write for Minari, and where."""

    dataset: Path
    """The folder of a worldsim dataset."""
    id: str | None = None
    """Minari's name for it (default: worldsim/NAME-v0)."""
    root: Path | None = None
    """The folder of all Minari datasets (default: as Minari has it, MINARI_DATASETS_PATH or ~/.minari/datasets)."""
    author: str = ""
    email: str = ""

    def folder(self) -> Path:
        """Folder of the exported dataset; Minari finds it there by its id if MINARI_DATASETS_PATH is the root."""
        return minari_root(self.root) / self.name()

    def name(self) -> str:
        """Minari's name for the dataset."""
        return self.id or f"worldsim/{''.join(c if c.isalnum() else '-' for c in Dataset(self.dataset).card.name)}-v0"


@dataclass(frozen=True, kw_only=True)
class MinariImport:
    """Which Minari dataset to read, and where to."""

    source: str
    """The id of a dataset that lies in Minari's folder, or the path of a dataset's folder."""
    out: Path | None = None
    """The folder of the new dataset (default: data/NAME)."""
    root: Path | None = None
    """The folder of all Minari datasets (default: as Minari has it)."""
    observation: str | None = None
    """The entry of a Dict or Tuple observation that has the frames, as in obs.pixels or 0 (default: the only one with
    images)."""
    frame_size: tuple[int, int] | None = None
    """Height and width (default: as they are)."""
    fps: float | None = None
    """Frames per second of game time (default: what the dataset says, or 30)."""
    prompt: str = ""
    """The words for every frame, where the dataset has none."""


def minari_root(root: Path | None) -> Path:
    """Return the folder where Minari stores its datasets, unless `root` gives another.

    Raises:
        ConfigError: there is no home folder, and no other is named.
    """
    try:
        found = root or Path(os.environ.get("MINARI_DATASETS_PATH") or Path.home() / ".minari" / "datasets")
    except RuntimeError as error:
        raise ConfigError(
            "this user has no home folder, where Minari has its datasets; name one with --root."
        ) from error
    return found.absolute()  # Minari's storage looks for its files in the wrong place under a relative path


def export_minari(config: MinariExport) -> Path:
    """Write a dataset in Minari's format; all episodes, the split of each in its metadata.

    Returns:
        The folder, which `minari.MinariDataset(folder / "data")` opens.

    Raises:
        DataError: no such dataset, a bad id, or something is there already.
        MissingDependency: minari or pyarrow is not installed.
    """
    minari = _minari()
    from minari.data_collector import EpisodeBuffer
    from minari.dataset.minari_dataset import parse_dataset_id

    dataset, name = Dataset(config.dataset), config.name()
    try:
        parse_dataset_id(name)
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{name!r} is no Minari id; allowed: NAME-v0 or SPACE/NAME-v0, of letters, digits, - and _."
        ) from error
    paths = [path for split in SPLITS for path in dataset.episodes(split)]
    if not paths:
        raise DataError(f"{dataset.path} has no episodes yet; record some first.")
    folder = config.folder()
    check_free(folder)
    unfinished = folder.with_name(f".{folder.name}.partial")  # with a dot, so that Minari does not list it
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / "data").mkdir(parents=True)
    try:
        storage = _new_storage(
            unfinished / "data",
            observation_space=spaces.Box(0, 255, (*dataset.frame_size, 3), np.uint8),
            action_space=dataset.action_space,
            data_format="arrow",
            jpeg_encoding=False,
        )
        about = {"dataset_id": name, "minari_version": minari.__version__, CARD: json.dumps(dataset.card.to_json())}
        about |= {"description": f"{dataset.card.name}, recorded with worldsim: frames, actions and prompts."}
        about |= {"author": {config.author}} if config.author else {}
        about |= {"author_email": {config.email}} if config.email else {}
        storage.update_metadata(about)
        for number, path in enumerate(paths):
            episode = read_episode(path)
            buffer = EpisodeBuffer(
                id=number,
                seed=episode.meta.get("seed"),
                observations=episode.frames,  # pyright: ignore[reportArgumentType] -- arrays do as well as lists
                actions=episode.actions,
                rewards=episode.rewards,  # pyright: ignore[reportArgumentType]
                terminations=episode.terminated,  # pyright: ignore[reportArgumentType]
                truncations=episode.truncated,  # pyright: ignore[reportArgumentType]
                infos={"prompt": episode.texts(), "prompt_index": episode.prompt_index.tolist()},
            )
            storage.update_episodes([buffer])
            own = {"prompts": episode.prompts, "meta": episode.meta, "split": path.parent.name, "index": int(path.stem)}
            storage.update_episode_metadata([{EPISODE: own}], [number])
        unfinished.replace(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def import_minari(config: MinariImport) -> Dataset:
    """Make a dataset of a Minari dataset with image observations.

    Grey frames become RGB, channels may come first. One episode in ten is held out, except where the dataset came from
    worldsim.

    Raises:
        DataError: no such dataset, no images in it, an episode that does not fit, or something is at `out` already.
        ConfigError: its action space is of a kind that cannot be recorded.
        MissingDependency: minari or pyarrow is not installed.
    """
    _minari()
    from minari.dataset.minari_dataset import MinariDataset

    path = _find(config)
    try:
        source = MinariDataset(path)
    except ImportError as error:
        raise _not_installed() from error
    except (ValueError, KeyError, AssertionError, OSError) as error:
        raise DataError(f"{path} is no Minari dataset that this version reads: {error}") from error
    about = source.storage.metadata
    find, size = _image(source.observation_space, config)
    size = config.frame_size or size
    name = str(about.get("dataset_id", path.parent.name)).split("/")[-1]
    out = config.out or Path("data") / name
    check_free(out)
    if CARD in about:
        try:
            written = json.loads(about[CARD])
        except (ValueError, TypeError) as error:
            raise DataError(f"the card of the worldsim dataset in {path} is not JSON ({error}).") from error
        card = DatasetCard.of(written, f"the card of the worldsim dataset in {path}")
        card, space = replace(card, frame_size=size, fps=config.fps or card.fps), card.space()
    else:
        space = source.action_space
        fps = config.fps or FRAMES_PER_SECOND
        provenance = {"minari": about.get("dataset_id"), "jpeg": bool(about.get("jpeg_encoding", True))}
        card = make_card(name=name, frame_size=size, fps=fps, space=space, keys={}, provenance=provenance)
    with importing(out, card) as importer:
        for number in source.episode_indices:
            (data,) = source.storage.get_episodes([int(number)])
            (more,) = source.storage.get_episode_metadata([int(number)])
            if not len(data["rewards"]):
                continue
            own = more.get(EPISODE) if CARD in about else None
            try:
                own = own if isinstance(own, dict) else {}
                episode = _episode(data, own, find, size, space, config.prompt)
            except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
                if isinstance(error, DataError):
                    raise
                reason = f"{type(error).__name__}: {error}"
                raise DataError(f"episode {number} of {path} cannot be read: {reason}.") from error
            importer.add(episode, own.get("index"), own.get("split"))
    return Dataset(out)


def _episode(
    data: dict[str, Any],
    own: dict[str, Any],
    find: Callable[[Any], np.ndarray],
    size: tuple[int, int],
    space: spaces.Space,
    prompt: str,
) -> Episode:
    steps, frames = len(data["rewards"]), find(data["observations"])
    if len(frames) != steps + 1:
        raise DataError(
            f"episode {data['id']} has {len(frames)} observations for {steps} steps; it must have one more."
        )
    if frames.shape[1:3] != size:
        frames = np.stack([resize_frame(frame, size) for frame in frames])
    terminated, truncated = (np.asarray(data[name], bool) for name in ("terminations", "truncations"))
    if not (terminated[-1] or truncated[-1]):
        truncated = truncated | ended(steps, terminated=False)["truncated"]  # the recording stopped there
    prompts = own.get("prompts")
    if prompts is None:
        texts = [str(text) for text in (data.get("infos") or {}).get("prompt", [])]  # many datasets have no infos
        texts = texts if len(texts) == steps + 1 else [prompt] * (steps + 1)
        distinct = list(dict.fromkeys(texts))
        index, prompts = np.asarray([distinct.index(text) for text in texts]), [{"text": text} for text in distinct]
    else:
        index = data["infos"]["prompt_index"]
    return Episode(
        frames=np.ascontiguousarray(frames),
        actions=_typed(space, data["actions"]),
        rewards=np.asarray(data["rewards"], np.float32),
        terminated=terminated,
        truncated=truncated,
        prompt_index=np.asarray(index, np.int32),
        prompts=prompts,
        meta=own.get("meta", {"minari_episode": int(data["id"])}),
    )


def _typed(space: spaces.Space, actions: Any) -> Any:
    """Convert actions to the types in which worldsim records them; other values are refused elsewhere."""
    if isinstance(space, spaces.Dict):
        return {key: _typed(inner, actions[key]) for key, inner in space.spaces.items()}
    dtype = np.int64 if isinstance(space, spaces.Discrete) else space.dtype
    return np.asarray(actions, dtype)


def _image(space: spaces.Space, config: MinariImport) -> tuple[Callable[[Any], np.ndarray], tuple[int, int]]:
    """Find out how to read frames (T, H, W, 3) from observations, and their height and width."""
    entries = dict(_entries(space))
    sizes = {key: found for key, inner in entries.items() if (found := _image_size(inner)) is not None}
    if "" in entries and config.observation is not None:
        raise ConfigError(f"observation is {config.observation!r}, but the observations are {space}, without entries.")
    if not sizes:
        raise DataError(
            f"the observations are {space}, not images (uint8 from 0 to 255 of shape (H, W), (H, W, 1), (H, W, 3), (1, "
            f"H, W) or (3, H, W), of at least {SMALLEST_PICTURE} pixels a side). Recover the environment with minari, "
            "and record it: worldsim record ID."
        )
    key = config.observation if config.observation is not None else next(iter(sizes)) if len(sizes) == 1 else None
    if key is None:
        raise DataError(f"of the observations, {sorted(sizes)} are images; say which one with --observation.")
    if key not in sizes:
        raise DataError(f"the observation {key!r} has no images.{did_you_mean(key, sizes)}")
    return partial(_frames, key), sizes[key]


def _entries(space: spaces.Space, name: str = "") -> Iterator[tuple[str, spaces.Space]]:
    """Yield the parts of a space that are neither Dict nor Tuple, each with its name, as in "obs.pixels" or "0"."""
    if isinstance(space, spaces.Dict | spaces.Tuple):
        inner = space.spaces.items() if isinstance(space, spaces.Dict) else enumerate(space.spaces)
        for key, part in inner:
            yield from _entries(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, space


def _frames(key: str, observations: Any) -> np.ndarray:
    """Get the frames, uint8 (T, H, W, 3), of an episode's observations."""
    for part in key.split(".") if key else ():
        observations = observations[int(part) if isinstance(observations, tuple | list) else part]
    frames = np.asarray(observations)
    frames = frames[..., None] if frames.ndim == 3 else frames
    frames = frames.transpose(0, 2, 3, 1) if _channels_first(frames.shape[1:]) else frames
    return frames if frames.shape[-1] == 3 else frames.repeat(3, axis=-1)


def _channels_first(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3) and shape[-1] not in (1, 3)


def _image_size(space: spaces.Space) -> tuple[int, int] | None:
    """Get the height and width of the pictures of a space; None where it has none: a grid of symbols is no picture."""
    shape: tuple[int, ...] = space.shape or ()
    if not isinstance(space, spaces.Box) or space.dtype != np.uint8 or space.low.any() or (space.high != 255).any():
        return None
    if _channels_first(shape):
        shape = (*shape[1:], *shape[:1])
    if not (len(shape) == 2 or (len(shape) == 3 and shape[-1] in (1, 3))) or min(shape[:2]) < SMALLEST_PICTURE:
        return None
    return shape[0], shape[1]


def _find(config: MinariImport) -> Path:
    """Find the folder of Minari's storage."""
    tried = []
    for folder in (Path(config.source), minari_root(config.root) / config.source):
        for path in (folder / "data", folder):
            if (path / "metadata.json").is_file():
                return path
            tried.append(str(path))
    raise DataError(
        f"there is no Minari dataset {config.source!r}; looked for metadata.json in {', '.join(tried)}. Give a folder, "
        "or fetch it first: minari download ID."
    )


def _minari() -> ModuleType:
    try:
        import minari
    except ImportError as error:
        raise _not_installed() from error
    return minari


def _new_storage(*args: Any, **settings: Any) -> Any:
    from minari.dataset.minari_storage import MinariStorage

    try:
        return MinariStorage.new(*args, **settings)
    except ImportError as error:
        raise _not_installed() from error


def _not_installed() -> MissingDependency:
    return MissingDependency("minari", "exchange with Minari", "pip install 'minari[hdf5,arrow]>=0.5.4'")
