"""Many episodes of one generated world, stepped together on one engine.

Sub-environment i is, bit for bit, the single environment (`WorldEnv`) with the same seed and prompt.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, iterate

from worldsim.engine.make import EngineConfig, make_engine
from worldsim.engine.records import EngineLike, SessionSpec, StepResult
from worldsim.envs.copies import Copies
from worldsim.envs.episodes import check_options, sample_spec
from worldsim.envs.shipped import world_path
from worldsim.errors import ActionError, ConfigError, InputError, SessionError

MEMORY_MB = 1024  # of the engine, at least; more where that many environments need more
SPARE = 1.5  # memory for so many times the environments: forks, snapshots, the shared beginnings


class WorldVectorEnv(Copies, VectorEnv):
    """Vectorised `WorldEnv`; `gymnasium.make_vec` makes one by itself.

    Args:
        num_envs: how many.
        world: a shipped world (see `worldsim.envs.SHIPPED`), a world folder, or a hub id.
        render_mode: None or "rgb_array".
        autoreset_mode: when an episode that is over begins anew: at the next step (Gymnasium's default), in the same
            step, or never (then `reset(options={"reset_mask": mask})` does it).
        prompt: what resets use when their options say nothing; one for all, or one each.
        max_episode_steps: truncate after so many steps, besides what the world's card says.
        num_denoising_steps, history_sigma, guidance, noise_scale: of the sampler; None keeps the card's.
        threads: CPU cores to use (default: all).
        runtime: what computes, see `Engine`.
        engine: share this one.
        starts: clips that episodes begin from, in place of those that the world carries.
        end_above: an episode terminates when its learned probability passes this; None draws the end with that
            probability, as single environments do.

    Raises:
        WorldError: the world cannot be loaded.
        ConfigError: a setting that is not allowed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 12, "autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(  # noqa: D107  -- the class says it
        self,
        num_envs: int = 1,
        world: str | Path = "car-racing",
        render_mode: str | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        prompt: str | Sequence[str | None] | None = None,
        max_episode_steps: int | None = None,
        num_denoising_steps: int | None = None,
        history_sigma: float | None = None,
        guidance: float | None = None,
        threads: int | None = None,
        runtime: str = "auto",
        engine: EngineLike | None = None,
        noise_scale: float | None = None,
        starts: Sequence[dict[str, Any]] | None = None,
        end_above: float | None = None,
    ) -> None:
        if num_envs < 1:
            raise ConfigError(f"num_envs is {num_envs}; it must be at least 1.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(f"render_mode is {render_mode!r}; allowed: None, 'rgb_array'.")
        self.num_envs, self.render_mode = num_envs, render_mode
        self._own_engine = engine is None
        self._made = None if engine is not None else {
            "num_envs": num_envs, "world": world, "render_mode": render_mode, "autoreset_mode": autoreset_mode,
            "prompt": prompt, "max_episode_steps": max_episode_steps, "num_denoising_steps": num_denoising_steps,
            "history_sigma": history_sigma, "guidance": guidance, "threads": threads, "runtime": runtime,
            "noise_scale": noise_scale, "starts": starts, "end_above": end_above,
        }  # fmt: skip
        if engine is None:
            clips = None if starts is None else len(starts)
            settings = EngineConfig(
                memory_mb=MEMORY_MB,
                min_sessions=math.ceil(num_envs * SPARE) + (clips or 0),  # of each clip the memory is stored
                clips=clips,
                threads=threads,
                runtime=runtime,
                num_denoising_steps=num_denoising_steps,
                history_sigma=history_sigma,
                guidance=guidance,
                noise_scale=noise_scale,
            )
            engine = make_engine(world_path(world), settings)
        self.engine: EngineLike = engine
        self.starts, self.end_above = starts, end_above
        self.world = self.engine.world
        card = self.world.card
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = {**self.metadata, "render_fps": card.fps, "autoreset_mode": self.autoreset_mode}
        self.single_action_space = self.world.action_space
        self.single_observation_space = spaces.Box(0, 255, (*card.frame_size, 3), np.uint8)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.default_prompts = self._each(prompt, "prompt")
        limits = [limit for limit in (card.episode_steps, max_episode_steps) if limit is not None]
        self.max_episode_steps = min(limits) if limits else None
        self._generators: list[np.random.Generator | None] = [None] * num_envs
        self._sessions: list[int | None] = [None] * num_envs
        self._begun = [0] * num_envs  # the sessions' steps when the counts towards truncation were zero

    def reset(  # type: ignore[override]
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Begin episodes.

        Args:
            seed: of each sub-environment; a number means seed, seed + 1, ...; None goes on with their generators.
            options: "prompt", "start", "snapshot" as in `WorldEnv.reset`, one for all or a list with one each;
                "reset_mask": which sub-environments begin anew, bool (num_envs,).

        Raises:
            InputError: an unknown option, or one that does not fit.
        """
        options = dict(options or {})
        check_options(options, also=("reset_mask",))
        chosen = self._mask(options.pop("reset_mask", None))
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else self._each(seed, "seed")
        for i in np.flatnonzero(chosen):
            if seeds[i] is not None:
                self._generators[i] = seeding.np_random(seeds[i])[0]
        if isinstance(seed, int):
            self._np_random, self._np_random_seed = seeding.np_random(seed)
        wanted = {name: self._each(options.get(name), name) for name in ("prompt", "start", "snapshot")}
        self._begin(np.flatnonzero(chosen).tolist(), wanted)
        infos: dict[str, Any] = {}
        for i in np.flatnonzero(chosen).tolist():
            infos = self._add_info(infos, {"prompt": self.engine.sessions[self._session(i)].prompt}, i)
        return self._observations(), infos

    def step(self, actions: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Draw the next frame of every episode.

        Returns:
            Frames (num_envs, H, W, 3), rewards float64, terminations and truncations (num_envs,), infos.

        Raises:
            SessionError: before the first reset; or an episode is over and `autoreset_mode` is DISABLED.
            ActionError: an action is outside the action space.
        """
        # Whether an episode is over is read from its last frame: a count of its own could go astray when a step is
        # interrupted between the frame and the count.
        ended, out_of_time = self._over()
        again, sessions = ended | out_of_time, [self._session(i) for i in range(self.num_envs)]
        if self.autoreset_mode == AutoresetMode.DISABLED and again.any():
            which = np.flatnonzero(again).tolist()
            raise SessionError(f"the episodes {which} are over; call reset(options={{'reset_mask': mask}}) for them.")
        if self.autoreset_mode == AutoresetMode.SAME_STEP and again.any():  # a step was interrupted
            self._begin(np.flatnonzero(again).tolist(), {})
            again, sessions = np.zeros_like(again), [self._session(i) for i in range(self.num_envs)]
        if isinstance(actions, (np.ndarray, list, tuple)) and len(actions) != self.num_envs:
            raise ActionError(
                f"there are {len(actions)} actions; allowed: one for each of {self.num_envs} environments."
            )
        rows = zip(range(self.num_envs), iterate(self.action_space, actions), strict=True)
        drawn = self.engine.step({sessions[i]: action for i, action in rows if not again[i]})

        rewards, infos = np.zeros(self.num_envs), {}
        for i in np.flatnonzero(~again):
            rewards[i] = drawn[sessions[i]].reward
        terminated, truncated = (part & ~again for part in self._over())
        over = terminated | truncated
        same_step = over if self.autoreset_mode == AutoresetMode.SAME_STEP else np.zeros_like(over)
        for i in range(self.num_envs):
            if same_step[i]:
                step = drawn[sessions[i]]
                final = {"final_obs": step.frame, "final_info": self._info(i, step)}
                infos = self._add_info(infos, final, i)
        if (again | same_step).any():
            self._begin(np.flatnonzero(again | same_step).tolist(), {})
        for i in range(self.num_envs):
            step = None if again[i] or same_step[i] else drawn[sessions[i]]
            infos = self._add_info(infos, self._info(i, step), i)
        return self._observations(), rewards, terminated, truncated, infos

    def set_prompt(self, text: str, index: int | None = None) -> None:
        """Condition the frames from now on on `text`, of one sub-environment or of all.

        Raises:
            PromptError: the world cannot take the prompt.
        """
        for i in range(self.num_envs) if index is None else [index]:
            self.engine.set_prompt(self._session(i), text)

    def snapshot(self, index: int) -> Any:
        """Take a snapshot of one sub-environment's episode."""
        return self.engine.snapshot(self._session(index))

    def restore(self, snapshot: Any, index: int) -> np.ndarray:
        """Take one sub-environment back to a snapshot, and return its frame."""
        session = self._session(index)
        before = self.engine.sessions[session].step
        found = self.engine.sessions[self.engine.restore(snapshot, session)]
        self._begun[index] += found.step - before  # the count of steps towards truncation goes on
        return found.frame.copy()

    def render(self) -> tuple[np.ndarray, ...] | None:  # type: ignore[override]
        """Get the last frames in mode "rgb_array"."""
        return tuple(self._observations()) if self.render_mode == "rgb_array" else None

    def close_extras(self, **kwargs: Any) -> None:
        """End the sessions."""
        for i, session in enumerate(self._sessions):
            if session is not None:
                self.engine.close(session)
                self._sessions[i] = None
        if self._own_engine and not self.engine.sessions:
            self.engine.close()

    def _begin(self, indices: list[int], wanted: dict[str, list[Any]]) -> None:
        """Begin episodes of some sub-environments, all of them in shared passes."""
        nothing = [None] * self.num_envs
        prompts, starts, snapshots = (wanted.get(name, nothing) for name in ("prompt", "start", "snapshot"))
        specs: dict[int, SessionSpec] = {}
        clips = self.world.starts if self.starts is None else self.starts
        for i in indices:
            spec = sample_spec(len(clips), self._generator(i), prompts[i], starts[i], self.default_prompts[i])
            if self.starts is not None and starts[i] is None and spec.start is not None:
                spec = replace(spec, start=self.starts[int(cast(int, spec.start))])
            if snapshots[i] is None:
                specs[i] = spec
        begun = dict(zip(specs, self.engine.open_all(list(specs.values())), strict=True))
        try:
            for i in set(indices) - specs.keys():
                begun[i] = self.engine.restore(snapshots[i])
        except Exception:
            for session in begun.values():
                self.engine.close(session)
            raise
        for i, session in begun.items():
            old = self._sessions[i]
            if old is not None:
                self.engine.close(old)
            self._begun[i], self._sessions[i] = self.engine.sessions[session].step, session

    def _over(self) -> tuple[np.ndarray, np.ndarray]:
        """Which episodes have terminated, and which are out of time, by their last frames, each bool (num_envs,)."""
        ended, out_of_time = np.zeros((2, self.num_envs), np.bool_)
        for i in range(self.num_envs):
            last = self.engine.sessions[self._session(i)]
            steps = last.step - self._begun[i]
            ended[i] = steps > 0 and (last.terminated if self.end_above is None else last.ended > self.end_above)
            out_of_time[i] = self.max_episode_steps is not None and steps >= self.max_episode_steps
        return ended, out_of_time

    def _fork_sessions(self) -> None:
        self._generators, self._begun = copy.deepcopy(self._generators), list(self._begun)
        self._np_random = copy.deepcopy(self._np_random)
        self._sessions = [None if session is None else self.engine.fork(session) for session in self._sessions]

    def _info(self, index: int, step: StepResult | None) -> dict[str, Any]:
        info: dict[str, Any] = {"prompt": self.engine.sessions[self._session(index)].prompt}
        return info if step is None else info | {"ended": step.ended}

    def _observations(self) -> np.ndarray:
        return np.stack([self.engine.sessions[self._session(i)].frame for i in range(self.num_envs)])

    def _session(self, index: int) -> int:
        session = self._sessions[index]
        if session is None:
            raise SessionError(f"sub-environment {index} has no episode yet; call reset() first.")
        return session

    def _generator(self, index: int) -> np.random.Generator:
        if self._generators[index] is None:
            self._generators[index] = seeding.np_random()[0]
        return self._generators[index]  # type: ignore[return-value]

    def _mask(self, mask: Any) -> np.ndarray:
        if mask is None:
            return np.ones(self.num_envs, np.bool_)
        if not (isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (self.num_envs,)):
            raise InputError(f"reset_mask is {mask!r}; allowed: a bool array of shape ({self.num_envs},).")
        if not mask.any():
            raise InputError("reset_mask is all False; at least one sub-environment has to begin anew.")
        return mask

    def _each(self, value: Any, name: str) -> list[Any]:
        """Spread a value over all sub-environments."""
        if isinstance(value, (list, tuple, np.ndarray)):
            if len(value) != self.num_envs:
                raise InputError(f"{name} has {len(value)} entries; allowed: one for each of {self.num_envs}.")
            return list(value)
        return [value] * self.num_envs
