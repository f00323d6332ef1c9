"""The frames and actions that were played, to be saved as an episode to train on."""

from __future__ import annotations

import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from worldsim.data.card import FILE, DatasetCard
from worldsim.data.episodes import Dataset, Episode, write_episode
from worldsim.data.frames import resize_frame
from worldsim.envs.keymap import KeyMap
from worldsim.errors import DataError, SessionError
from worldsim.spaces import ActionCodec, space_to_json

MOST_STEPS = 10_000  # of an episode are kept, the last ones: 120 MB at 64x64


class History:
    """Frames, actions and prompts since the last reset.

    Args:
        space: the action space.
        frame_size: (height, width) of the frames that are kept.
    """

    def __init__(self, space: spaces.Space, frame_size: tuple[int, int]) -> None:
        """Begin with nothing."""
        self.space, self.frame_size = space, frame_size
        self.begin()

    def begin(self) -> None:
        """Forget all."""
        self._frames: deque[tuple[np.ndarray, str]] = deque(maxlen=MOST_STEPS + 1)
        self._steps: deque[tuple[Any, float, bool, bool]] = deque(maxlen=MOST_STEPS)

    def __len__(self) -> int:
        """Count the steps."""
        return len(self._steps)

    def add_frame(self, frame: np.ndarray, prompt: str, labels: dict[str, Any]) -> None:
        """Append a frame, uint8 (H, W, 3), and the prompt that it was drawn under."""
        text = json.dumps({**labels, "text": prompt}, sort_keys=True)
        self._frames.append((resize_frame(frame, self.frame_size), text))

    def add_step(self, action: Any, reward: float, terminated: bool, truncated: bool) -> None:
        """Append a step, before its frame."""
        self._steps.append((action, reward, terminated, truncated))

    def take_back(self) -> None:
        """Remove the last step and its frame."""
        self._steps.pop()
        self._frames.pop()

    def episode(self, meta: dict[str, Any]) -> Episode:
        """Make an episode of all steps.

        Raises:
            SessionError: no step was made yet.
        """
        if not self._steps:
            raise SessionError("there is nothing to save yet: no step was made since the last reset. Play a little.")
        actions, rewards, terminated, truncated = zip(*self._steps, strict=True)
        distinct = list(dict.fromkeys(text for _, text in self._frames))
        place = {text: i for i, text in enumerate(distinct)}
        return Episode(
            frames=np.stack([frame for frame, _ in self._frames]),
            actions=ActionCodec(self.space).stack(list(actions)),
            rewards=np.array(rewards, np.float32),
            terminated=np.array(terminated, bool),
            truncated=np.array(truncated, bool),
            prompt_index=np.array([place[text] for _, text in self._frames], np.int32),
            prompts=[json.loads(text) for text in distinct],
            meta=meta,
        )

    def save(self, folder: Path, *, name: str, env_id: str, fps: float, keymap: KeyMap, meta: dict[str, Any]) -> Path:
        """Write the episode into the dataset at `folder`, which is begun if there is none; return the file.

        Raises:
            SessionError: no step was made yet.
            DataError: another kind of dataset is there.
            ConfigError: the action space cannot be written.
        """
        episode = self.episode({**meta, "split": "train"})
        if not (folder / FILE).exists():
            self._card(name, env_id, fps, keymap).write(folder)
        dataset = Dataset(folder)
        if dataset.frame_size != self.frame_size or dataset.action_space != self.space:
            raise DataError(
                f"{folder} holds {dataset.frame_size} frames with actions {dataset.action_space}; this game has "
                f"{self.frame_size} and {self.space}. Move that folder away, or play with another --out."
            )
        numbers = [int(path.stem) for path in dataset.episodes("train") if path.stem.isdigit()]
        path = folder / "train" / f"{max(numbers, default=-1) + 1:06d}.safetensors"
        write_episode(path, episode)
        return path

    def _card(self, name: str, env_id: str, fps: float, keymap: KeyMap) -> DatasetCard:
        return DatasetCard(
            name=name,
            frame_size=self.frame_size,
            fps=fps,
            action_space=space_to_json(self.space),
            keys=keymap.named(),
            recipe=env_id,
            provenance={"env_id": env_id, "policy": "player"},
        )
