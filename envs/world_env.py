"""A generated world behind the Gymnasium API."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from worldsim.engine.make import EngineConfig, make_engine
from worldsim.engine.records import EngineLike
from worldsim.envs.copies import Copies
from worldsim.envs.episodes import check_options, sample_spec
from worldsim.envs.shipped import world_path
from worldsim.errors import ConfigError, SessionError

MEMORY_MB = 256  # of one environment's engine: its forks and snapshots


class WorldEnv(Copies, gym.Env[np.ndarray, Any]):
    """A world that a model learned from recordings and generates frame by frame.

    ## Description
    Every step draws the next frame from the last ones, the action and the prompt. No game runs underneath.

    ## Action Space
    That of the recorded game.

    ## Observation Space
    The frame, uint8 (H, W, 3).

    ## Rewards
    Learned from the recorded game.

    ## Starting State
    A short recorded clip of the world (`options={"start": ...}` gives another one). With a prompt and no start the
    first frame is generated from the prompt alone. `options={"snapshot": ...}` goes on from a snapshot.

    ## Episode End
    Terminates with the learned probability, drawn from the session's seed and step alone; truncates after
    `max_episode_steps` of the card.

    ## Arguments
    - `world`: a shipped world (see `worldsim.envs.SHIPPED`), a world folder, or a hub id.
    - `prompt`: what `reset` uses when its options say nothing.
    - `num_denoising_steps`, `history_sigma`, `guidance`, `noise_scale`: of the sampler; None keeps the card's.
    - `runtime`: what computes, see `worldsim.engine.engine.Engine`.

    ## Version History
    - v0: first version.
    """

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 12}

    def __init__(
        self,
        world: str | Path = "car-racing",
        render_mode: str | None = None,
        prompt: str | None = None,
        num_denoising_steps: int | None = None,
        history_sigma: float | None = None,
        guidance: float | None = None,
        runtime: str = "auto",
        engine: EngineLike | None = None,
        noise_scale: float | None = None,
    ) -> None:
        """Load the world, or share the `engine` of another environment.

        Raises:
            WorldNotFound, WorldFormatError, WorldError: it cannot be loaded.
            ConfigError: a render mode or sampler setting that is not allowed.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode is {render_mode!r}; allowed: None, 'rgb_array', 'human'.")
        self._own_engine = engine is None
        self._made = (
            None
            if engine is not None
            else {
                "world": world,
                "render_mode": render_mode,
                "prompt": prompt,
                "num_denoising_steps": num_denoising_steps,
                "history_sigma": history_sigma,
                "guidance": guidance,
                "runtime": runtime,
                "noise_scale": noise_scale,
            }
        )
        settings = EngineConfig(
            memory_mb=MEMORY_MB,
            threads=1,
            runtime=runtime,
            num_denoising_steps=num_denoising_steps,
            history_sigma=history_sigma,
            guidance=guidance,
            noise_scale=noise_scale,
        )
        self.engine: EngineLike = engine or make_engine(world_path(world), settings)
        self.world = self.engine.world
        card = self.world.card
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": card.fps}
        self.action_space = self.world.action_space
        self.observation_space = spaces.Box(0, 255, (*card.frame_size, 3), np.uint8)
        self.prompts: list[str] = list(card.prompts)
        self.default_prompt = prompt
        self.session: int | None = None
        self._window: Any = None
        self._begun = 0  # the session's step when the count towards truncation was zero

    @property
    def prompt(self) -> str:
        """The prompt in force for the next frame."""
        return self.engine.sessions[self._session()].prompt

    def set_prompt(self, text: str) -> None:
        """Condition the frames from now on on `text`.

        Raises:
            PromptError: the world takes no prompts, or `text` is not a string.
            MissingDependency: the prompt is new to the world and its text encoder is not installed.
        """
        self.engine.set_prompt(self._session(), text)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: of the episode's noise and of the choice of the start.
            options: "prompt": words for the frames from now on; "start": a clip to continue, {"frames": uint8
                (T, H, W, 3), "actions": the T - 1 actions between them}; "snapshot": one to go on from.

        Raises:
            InputError: an unknown option, frames of the wrong size, or actions that do not fit.
        """
        super().reset(seed=seed)
        options = options or {}
        check_options(options)
        clips = len(self.world.starts)
        spec = sample_spec(clips, self.np_random, options.get("prompt"), options.get("start"), self.default_prompt)
        if options.get("snapshot") is not None:
            session = self.engine.restore(options["snapshot"])
            if options.get("prompt") is not None:
                self.engine.set_prompt(session, options["prompt"])
        else:
            session = self.engine.open_all([spec])[0]
        self._leave()
        found = self.engine.sessions[session]
        self.session, self._begun = session, found.step
        if self.render_mode == "human":
            self._show()
        return found.frame.copy(), {"prompt": found.prompt}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Draw the next frame under `action`.

        Raises:
            SessionError: before the first reset.
            ActionError: the action is outside the action space.
        """
        session = self._session()
        step = self.engine.step({session: action})[session]
        limit = self.world.card.episode_steps
        truncated = limit is not None and step.step - self._begun >= limit  # no count of its own that could go astray
        if self.render_mode == "human":
            self._show()
        info = {"prompt": self.prompt, "ended": step.ended}
        return step.frame, step.reward, step.terminated, truncated, info

    def snapshot(self) -> Any:
        """Take a snapshot of the episode, for `restore`, `reset(options={"snapshot": ...})` and `Snapshot.save`.

        Raises:
            SessionError: before the first reset.
        """
        return self.engine.snapshot(self._session())

    def restore(self, snapshot: Any) -> np.ndarray:
        """Go back to a snapshot, and return its frame. The count of steps towards truncation goes on.

        Raises:
            SessionError: before the first reset.
            SnapshotMismatch: it is of another world or runtime, or was closed.
        """
        session = self._session()
        before = self.engine.sessions[session].step
        found = self.engine.sessions[self.engine.restore(snapshot, session)]
        self._begun += found.step - before
        return found.frame.copy()

    def fork(self) -> WorldEnv:
        """Make an environment that goes on from here on its own; the two share all memory until they differ.

        Raises:
            SessionError: before the first reset.
            EngineFull: there is no room for one more.
        """
        fork = type(self)(prompt=self.default_prompt, engine=self.engine)
        fork.session, fork._begun = self.engine.fork(self._session()), self._begun
        fork.spec, fork._np_random_seed, fork._own_engine = self.spec, self._np_random_seed, self._own_engine
        return fork

    def _fork_sessions(self) -> None:
        self._window, self._np_random = None, copy.deepcopy(self._np_random)
        if self.session is not None:
            self.session = self.engine.fork(self.session)

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """Get the last frame in mode "rgb_array"."""
        if self.render_mode == "rgb_array":
            return self.engine.sessions[self._session()].frame.copy()
        return None

    def get_keys_to_action(self) -> dict[str, Any]:
        """Get the action of each combination of keys, such as "left+up"; "" is no key."""
        if isinstance(self.action_space, spaces.Discrete):
            return {key: int(action) for key, action in self.world.card.keys.items()}
        if isinstance(self.action_space, spaces.Dict):
            return dict(self.world.card.keys)
        return {key: np.asarray(action, self.action_space.dtype) for key, action in self.world.card.keys.items()}

    def close(self) -> None:
        """End the session, and the window if there is one; may be called again."""
        self._leave()
        if self._own_engine and not self.engine.sessions:  # forks go on, and the last one closes it
            self.engine.close()
        if self._window is not None:
            import pygame

            if pygame.display.get_init() and pygame.display.get_surface() is self._window:  # and no one else's by now
                pygame.display.quit()
            self._window = None

    def _leave(self) -> None:
        if self.session is not None and self.session in self.engine.sessions:
            self.engine.close(self.session)
        self.session = None

    def _session(self) -> int:
        if self.session is None:
            raise SessionError("the environment has no episode yet; call reset() first.")
        return self.session

    def _show(self) -> None:
        import pygame

        frame = self.engine.sessions[self._session()].frame
        height, width = frame.shape[:2]
        scale = max(1, 512 // width)
        shown = pygame.display.get_surface() if pygame.display.get_init() else None
        if shown is None or shown is not self._window:  # not opened yet, or closed or taken over by another game
            pygame.display.init()
            self._window = pygame.display.set_mode((width * scale, height * scale))
            pygame.display.set_caption(f"worldsim: {self.world.card.name}")
            self._clock = pygame.time.Clock()
        picture = pygame.surfarray.make_surface(frame.swapaxes(0, 1))
        self._window.blit(pygame.transform.scale(picture, self._window.get_size()), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self.metadata["render_fps"])
