"""A generated world behind the Gymnasium API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from worldsim.data.frames import check_frames
from worldsim.engine.simulator import Outcome, SamplerConfig, Simulator, State
from worldsim.errors import ActionError, ConfigError, FrameError, InputError, SessionError
from worldsim.models.action import flatten_actions
from worldsim.world import World

WORLDS = Path(__file__).resolve().parent / "worlds"
SHIPPED = ("car-racing", "doom")


def world_path(name: str | Path) -> str | Path:
    """The folder of a shipped world; any other name as it is."""
    return WORLDS / name if name in SHIPPED else name


class WorldEnv(gym.Env[np.ndarray, Any]):
    """A world that was learned from recordings and is drawn by a model, frame by frame.

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
    first frame is generated from the prompt alone.

    ## Episode End
    Terminates when the learned probability passes 0.5; truncates after `max_episode_steps` of the card.

    ## Arguments
    - `world`: a shipped world ("car-racing", "doom"), a world folder, or a hub id.
    - `prompt`: what `reset` uses when its options say nothing.
    - `steps`, `history_sigma`, `guidance`: of the sampler; None keeps the card's.
    - `threads`: CPU threads of the model, None leaves torch's setting.

    ## Version History
    - v0: first version.
    """

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 12}

    def __init__(
        self,
        world: str | Path = "car-racing",
        render_mode: str | None = None,
        prompt: str | None = None,
        steps: int | None = None,
        history_sigma: float | None = None,
        guidance: float | None = None,
        threads: int | None = None,
    ) -> None:
        """Load the world.

        Raises:
            WorldNotFound, WorldFormatError, WorldError: it cannot be loaded.
            ConfigError: a render mode or sampler setting that is not allowed.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode is {render_mode!r}; allowed: None, 'rgb_array', 'human'.")
        if threads is not None:
            torch.set_num_threads(threads)
        self.world = World.from_pretrained(world_path(world))
        card = self.world.card
        changes = {"steps": steps, "history_sigma": history_sigma, "guidance": guidance}
        sampler = SamplerConfig(**{**card.sampler, **{k: v for k, v in changes.items() if v is not None}})
        self.simulator = Simulator.of(self.world, sampler)
        self.render_mode = render_mode
        self.metadata = {**self.metadata, "render_fps": card.fps}
        self.action_space = self.world.action_space
        self.observation_space = spaces.Box(0, 255, (*card.frame_size, 3), np.uint8)
        self.prompts: list[str] = list(card.prompts)
        self.default_prompt = prompt
        self.state: State | None = None
        self._frame: np.ndarray | None = None
        self._window: Any = None
        self._steps = 0

    @property
    def prompt(self) -> str:
        """The prompt in force for the next frame."""
        return self._session().prompts[0]

    def set_prompt(self, text: str) -> None:
        """Condition the frames from now on on `text`.

        Raises:
            PromptError: the world takes no prompts, or `text` is not a string.
            MissingDependency: the prompt is new to the world and its text encoder is not installed.
        """
        state = self._session()
        self.world.book.add(text)
        state.prompts = [text]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: of the episode's noise and of the choice of the start.
            options: "prompt": words for the frames from now on; "start": a clip to continue, {"frames": uint8
                (T, H, W, 3), "actions": the T - 1 actions between them}.

        Raises:
            InputError: an unknown option, frames of the wrong size, or actions that do not fit.
        """
        super().reset(seed=seed)
        options = options or {}
        unknown = set(options) - {"prompt", "start"}
        if unknown:
            raise InputError(f"reset got the options {sorted(unknown)}; allowed: 'prompt', 'start'.")
        prompt, start = options.get("prompt", self.default_prompt), options.get("start")
        noise_seed = int(self.np_random.integers(2**62))
        if start is None and prompt is None and self.world.starts:
            start = self.world.starts[int(self.np_random.integers(len(self.world.starts)))]
            prompt = start["prompt"]
        if prompt is None:
            prompt = self.prompts[0] if self.prompts else ""
        self.world.book.add(prompt)
        clip = None if start is None else self._check_start(start)
        self.state = self.simulator.begin([noise_seed], [prompt])
        if clip is None:
            outcome = self.simulator.step(self.state, None)
            self._frame = self._decode(outcome)
        else:
            frames, actions = clip
            latents = self.world.autoencoder.encode(torch.from_numpy(frames))
            for i, latent in enumerate(latents):
                self.simulator.observe(self.state, latent.unsqueeze(0), None if i == 0 else actions[i - 1 : i])
            self._frame = frames[-1].copy()
        self._steps = 0
        if self.render_mode == "human":
            self._show()
        return self._frame.copy(), {"prompt": prompt}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Draw the next frame under `action`.

        Raises:
            SessionError: before the first reset.
            ActionError: the action is outside the action space.
        """
        state = self._session()
        outcome = self.simulator.step(state, self._flatten(action))
        self._frame = self._decode(outcome)
        self._steps += 1
        limit = self.world.card.episode_steps
        terminated = bool(outcome.ended[0] > 0.5)
        truncated = limit is not None and self._steps >= limit
        if self.render_mode == "human":
            self._show()
        info = {"prompt": state.prompts[0], "ended": float(outcome.ended[0])}
        return self._frame.copy(), float(outcome.reward[0]), terminated, truncated, info

    def render(self) -> np.ndarray | None:  # type: ignore[override]
        """The last frame in mode "rgb_array"."""
        if self.render_mode == "rgb_array":
            self._session()
            assert self._frame is not None
            return self._frame.copy()
        return None

    def get_keys_to_action(self) -> dict[str, Any]:
        """The action for each combination of keys, such as "left+up"; "" is no key."""
        if isinstance(self.action_space, spaces.Discrete):
            return {key: int(action) for key, action in self.world.card.keys.items()}
        return {key: np.asarray(action, self.action_space.dtype) for key, action in self.world.card.keys.items()}

    def close(self) -> None:
        """Close the window if there is one; may be called again."""
        if self._window is not None:
            import pygame

            pygame.display.quit()
            self._window = None

    def _session(self) -> State:
        if self.state is None:
            raise SessionError("the environment has no episode yet; call reset() first.")
        return self.state

    def _flatten(self, action: Any) -> torch.Tensor:
        if not self.action_space.contains(action):
            kind = getattr(action, "dtype", type(action).__name__)
            raise ActionError(
                f"action {action!r} ({kind}) is outside the action space; allowed: {self.action_space}. "
                "Sample one with env.action_space.sample()."
            )
        batch = (
            {k: np.asarray(v)[None] for k, v in action.items()}
            if isinstance(action, dict)
            else np.asarray(action)[None]
        )
        return torch.from_numpy(flatten_actions(self.action_space, batch))

    def _check_start(self, start: Any) -> tuple[np.ndarray, torch.Tensor]:
        if not isinstance(start, dict) or "frames" not in start:
            raise InputError(f"start is {type(start).__name__}; allowed: a dict with 'frames' and 'actions'.")
        frames = check_frames(start["frames"], "start['frames']", dims=4)
        size = tuple(self.world.card.frame_size)
        if frames.shape[1:3] != size or not len(frames):
            raise FrameError(
                f"start['frames'] has shape {frames.shape}; allowed: (T, {size[0]}, {size[1]}, 3) with T >= 1. "
                "Resize with worldsim.data.frames.resize_frame."
            )
        actions = start.get("actions", [])
        one = next(iter(actions.values())) if isinstance(actions, dict) else actions
        if len(one) != len(frames) - 1:
            raise ActionError(
                f"start has {len(frames)} frames and {len(one)} actions; there must be one action between each two "
                f"frames: {len(frames) - 1}."
            )
        keep = self.simulator.dynamics.config.context + self.simulator.dynamics.config.history
        flat = torch.zeros(0, self.simulator.dynamics.config.action_size)
        if len(one):
            flat = torch.from_numpy(flatten_actions(self.action_space, actions))
        # Older frames have no effect: neither the history nor the cache reaches back so far.
        return frames[-keep:], flat[max(0, len(one) - (len(frames[-keep:]) - 1)) :]

    def _decode(self, outcome: Outcome) -> np.ndarray:
        return self.world.autoencoder.decode(outcome.latents)[0].numpy()

    def _show(self) -> None:
        import pygame

        assert self._frame is not None
        height, width = self._frame.shape[:2]
        scale = max(1, 512 // width)
        if self._window is None:
            pygame.display.init()
            self._window = pygame.display.set_mode((width * scale, height * scale))
            pygame.display.set_caption(f"worldsim: {self.world.card.name}")
            self._clock = pygame.time.Clock()
        picture = pygame.surfarray.make_surface(self._frame.swapaxes(0, 1))
        self._window.blit(pygame.transform.scale(picture, self._window.get_size()), (0, 0))
        pygame.event.pump()
        pygame.display.flip()
        self._clock.tick(self.metadata["render_fps"])
