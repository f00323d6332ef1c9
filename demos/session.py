"""A session of play: one environment, or two side by side that get the same keys. No window and no pygame here."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import gymnasium as gym
import numpy as np

from worldsim.demos.history import History
from worldsim.demos.rewind import Moment, Past
from worldsim.envs.keymap import KeyMap, keymap_for
from worldsim.errors import MissingDependency, PromptError, SessionError
from worldsim.spaces import ActionCodec

LEAD_IN = 12  # frames of a real game that the world beside it begins from
SMALL = 128  # frames up to this size are saved as they are
SAVED_SIZE = (64, 64)  # what larger ones are saved as, like `worldsim record` does
RECENT = 30  # steps that a duration is the mean of
FRAMES_PER_SECOND = 30.0  # for an environment that does not say

View = Literal["frame", "render"]


class Side:
    """One environment, and what is shown of it.

    Args:
        env: made with render_mode "rgb_array".
        name: what it is called on the screen.
        view: show the observation, if it is an image ("frame"), or the render of the environment ("render").
        keymap: of the environment (default: its own keys, or keys made for its action space).

    Attributes:
        frame: the observation, or the render if that is no image: uint8 (H, W, 3).
        picture: the image that is shown.
        reward, total: of the last step, and since the last reset.
        terminated, truncated: whether the episode is over, and why.
        prompt, labels: in force for the frame.
    """

    def __init__(self, env: gym.Env, name: str, view: View = "frame", keymap: KeyMap | None = None) -> None:
        """Take over `env`; `reset` before anything else."""
        self.env, self.name, self.view = env, name, view
        self.keymap = keymap or keymap_for(env)
        self.fps = float(env.unwrapped.metadata.get("render_fps") or FRAMES_PER_SECOND)
        self.takes_prompt = hasattr(env.unwrapped, "set_prompt")
        self.prompts: list[str] = list(getattr(env.unwrapped, "prompts", ()))
        self.generated = self.takes_prompt and hasattr(env.unwrapped, "prompts")
        self.can_rewind = hasattr(env.unwrapped, "snapshot") and hasattr(env.unwrapped, "restore")
        self.prompt, self.labels = "", {}
        self._times: deque[float] = deque(maxlen=RECENT)
        self.frame = self.picture = np.zeros((1, 1, 3), np.uint8)

    @property
    def over(self) -> bool:
        """Whether the episode has ended."""
        return self.terminated or self.truncated

    def reset(self, seed: int | None, options: dict[str, Any]) -> None:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options or None)
        self.reward = self.total = 0.0
        self.terminated = self.truncated = False
        self._times.clear()
        self._look(observation, info)

    def step(self, action: Any) -> None:
        """Make a step; after the end of the episode, nothing."""
        if self.over:
            return
        began = time.perf_counter()
        observation, reward, self.terminated, self.truncated, info = self.env.step(action)
        self.truncated = self.truncated and not self.generated  # worlds go on past the time limit of agents
        self.reward = float(reward)
        self.total += self.reward
        self._look(observation, info)
        self._times.append(time.perf_counter() - began)

    @property
    def step_ms(self) -> float:
        """Mean duration of the last steps in milliseconds, drawing included; 0 before the first."""
        return 1000 * sum(self._times) / len(self._times) if self._times else 0.0

    def set_prompt(self, text: str) -> None:
        """Change the prompt from the next frame on; see the environment for what it raises."""
        self.env.unwrapped.set_prompt(text)  # type: ignore[attr-defined]  -- asked for by takes_prompt

    def moment(self) -> Moment:
        """Take the state of now; only where `can_rewind`. Raises EngineFull when there is no room for a snapshot."""
        return Moment(
            snapshot=self.env.unwrapped.snapshot(),  # type: ignore[attr-defined]
            reward=self.reward,
            total=self.total,
            terminated=self.terminated,
            truncated=self.truncated,
            prompt=self.prompt,
            labels=self.labels,
        )

    def go_back(self, moment: Moment) -> None:
        """Go back to `moment`, and show its frame."""
        frame = self.env.unwrapped.restore(moment.snapshot)  # type: ignore[attr-defined]
        self.reward, self.total = moment.reward, moment.total
        self.terminated, self.truncated = moment.terminated, moment.truncated
        self._look(frame, {"prompt": moment.prompt, "labels": moment.labels})

    def _look(self, observation: Any, info: dict[str, Any]) -> None:
        image = isinstance(observation, np.ndarray) and observation.dtype == np.uint8 and observation.ndim == 3
        if image and observation.shape[-1] == 3:
            self.frame = observation
            self.picture = self._render() if self.view == "render" else observation
        else:
            self.frame = self.picture = self._render()
        self.prompt = str(info.get("prompt", getattr(self.env.unwrapped, "prompt", "")) or "")
        self.labels = dict(info.get("labels", {}))

    def _render(self) -> np.ndarray:
        return np.asarray(self.env.render(), np.uint8)


class Session:
    """One or two sides, stepped with the same keys; the first is the one that is saved.

    A world beside a real game of the same frames and actions begins from that game's first frames, so that both start
    from the same place.

    Args:
        sides: one or two.
        prompt: for the sides that take one (default: their own).
        seed: of the first reset; each later one adds 1 to it. None draws one.
        frame_size: (height, width) of saved frames (default: as they are, large ones 64x64).

    Raises:
        PromptError: `prompt` is given and no side takes one.
    """

    def __init__(
        self,
        sides: Sequence[Side],
        *,
        prompt: str | None = None,
        seed: int | None = None,
        frame_size: tuple[int, int] | None = None,
    ) -> None:
        """Reset all sides."""
        self.sides, self.prompt = list(sides), prompt
        self.first = self.sides[0]
        self.fps = self.first.fps
        if prompt is not None:
            self.check_prompts()
        self._seed = int(np.random.default_rng().integers(2**31)) if seed is None else seed
        self._frame_size = frame_size
        self.past = Past(self.sides, self.fps)
        self.resets = 0
        self.reset()

    def reset(self) -> None:
        """Begin a new episode on every side, with one seed for all."""
        self.past.clear()  # first: its memory is needed now
        self.seed = self._seed + self.resets
        self.resets += 1
        self.steps = 0
        games = [side for side in self.sides if not side.generated]
        worlds = [side for side in self.sides if side.generated]
        for game in games:
            game.reset(self.seed, {})
            if self.prompt is not None and game.takes_prompt:
                game.set_prompt(self.prompt)
        for world in worlds:
            self._reset_world(world, games)
        height, width = self.first.frame.shape[:2]
        size = self._frame_size or ((height, width) if max(height, width) <= SMALL else SAVED_SIZE)
        self.history = History(self.first.env.action_space, size)
        self.history.add_frame(self.first.frame, self.first.prompt, self.first.labels)

    def _reset_world(self, world: Side, games: list[Side]) -> None:
        options: dict[str, Any] = {} if self.prompt is None else {"prompt": self.prompt}
        space = world.env.action_space
        if games and games[0].frame.shape == world.env.observation_space.shape and games[0].env.action_space == space:
            options["start"] = _lead_in(games[0])
            options.setdefault("prompt", games[0].prompt)
        try:
            world.reset(self.seed, options)
        except (PromptError, MissingDependency):
            if self.prompt is not None or "prompt" not in options:
                raise
            del options["prompt"]  # the game's words need not be the world's
            world.reset(self.seed, options)

    def step(self, pressed: Sequence[str]) -> None:
        """Make a step on every side under the pressed keys, in the order they were pressed."""
        if self.can_rewind and not self.over:
            self.past.keep(self.prompt, self.steps)
        going = not self.first.over
        action = self.first.keymap.action(pressed)
        for side in self.sides:
            same = side.env.action_space == self.first.env.action_space
            side.step(action if same else side.keymap.action(pressed))
        if going:
            self.steps += 1
            self.history.add_step(action, self.first.reward, self.first.terminated, self.first.truncated)
            self.history.add_frame(self.first.frame, self.first.prompt, self.first.labels)

    def rewind(self) -> None:
        """Take the last step back, out of the history too; do nothing when no state is stored.

        Raises:
            SessionError: an environment has no snapshots to go back to.
        """
        if not self.can_rewind:
            names = " and ".join(side.name for side in self.sides if not side.can_rewind)
            raise SessionError(f"Nothing is rewound: {names} cannot go back. Worlds made by worldsim can.")
        before = self.past.go_back()
        if before is None:
            return
        self.prompt = before.prompt
        if before.steps < self.steps:  # else the first side was over, and only the other one stepped
            self.steps = before.steps
            self.history.take_back()

    @property
    def can_rewind(self) -> bool:
        """Whether all sides can be rewound, as they go back together."""
        return all(side.can_rewind for side in self.sides)

    @property
    def over(self) -> bool:
        """Whether the episodes of all sides have ended."""
        return all(side.over for side in self.sides)

    @property
    def step_ms(self) -> float:
        """Mean duration of the last steps in milliseconds, all sides together."""
        return sum(side.step_ms for side in self.sides)

    @property
    def prompts(self) -> list[str]:
        """Example prompts of the sides."""
        return list(dict.fromkeys(prompt for side in self.sides for prompt in side.prompts))

    def set_prompt(self, text: str) -> None:
        """Change the prompt of every side that takes one, and of later episodes.

        Raises:
            PromptError: no side takes one, or this one.
            MissingDependency: reading new words needs a package that is not installed.
        """
        self.check_prompts()
        failed: list[Exception] = []
        for side in self.sides:
            if side.takes_prompt:
                try:
                    side.set_prompt(text)
                    self.prompt = text
                except (PromptError, MissingDependency) as error:
                    failed.append(error)
        if failed:
            raise failed[0]

    @property
    def takes_prompt(self) -> bool:
        """Whether a side takes a prompt."""
        return any(side.takes_prompt for side in self.sides)

    def check_prompts(self) -> None:
        """Raise PromptError if no side takes a prompt."""
        if not self.takes_prompt:
            names = " and ".join(side.name for side in self.sides)
            raise PromptError(f"{names}: no prompt is taken. Worlds made by worldsim take one.")

    def save(self, folder: Path) -> Path:
        """Save the steps since the last reset into the dataset at `folder`; see `History.save`."""
        side = self.first
        env_id = side.env.spec.id if side.env.spec else type(side.env.unwrapped).__name__
        keys, meta = side.keymap, {"seed": self.seed}
        return self.history.save(folder, name=folder.name, env_id=env_id, fps=side.fps, keymap=keys, meta=meta)

    def close(self) -> None:
        """Close the environments."""
        self.past.clear()
        for side in self.sides:
            side.env.close()


def _lead_in(game: Side) -> dict[str, np.ndarray]:
    """Play a game without keys; return frames and actions, for a world to begin from."""
    frames, actions = [game.frame], []
    while len(frames) < LEAD_IN and not game.over:
        actions.append(game.keymap.action(()))
        game.step(actions[-1])
        frames.append(game.frame)
    game.total = 0.0
    return {"frames": np.stack(frames), "actions": ActionCodec(game.env.action_space).stack(actions)}
