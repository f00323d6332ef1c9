"""Plan ahead in a world before each step, and take the action with the best futures.

The world follows the game: each real frame is appended to its session (`Engine.observe`). A plan forks that session a
few times for each action, runs all forks in shared passes, and compares their rewards until they terminate. Forks of
different actions share their noise and their later actions, so that chance does not decide between the actions.
Legend: A first actions, S futures of each, H steps.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from worldsim.agents.agent import Agent
from worldsim.agents.discrete import DiscreteActions, find_actions
from worldsim.agents.envs import check_world_game, find_game, imagined_envs, real_games
from worldsim.agents.evaluation import play_episodes
from worldsim.data.policy import VectorPolicy
from worldsim.engine.engine import Engine
from worldsim.engine.make import EngineConfig, make_engine
from worldsim.envs.shipped import world_path
from worldsim.errors import ConfigError
from worldsim.world import World


@dataclass(frozen=True, kw_only=True)
class PlannerConfig:
    """How far and how wide to plan."""

    futures: int = 8
    """Futures of each first action."""
    horizon: int = 16
    """Steps that each looks ahead."""
    action_repeat: int = 6
    """Without an agent: actions are repeated for 1 to so many steps, the first one too."""
    every: int = 1
    """Plan at each so-manieth step, and keep to the plan between."""
    gamma: float = 0.99
    """What a reward one step later is worth."""
    pick: Literal["mean", "best"] = "mean"
    """Judge a first action by all of its futures or by the best of them."""
    value: bool = True
    """With an agent: add what its critic expects after the horizon."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("futures", "horizon", "action_repeat", "every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.every > self.horizon:
            raise ConfigError(f"every is {self.every}; a plan has only {self.horizon} steps.")


class Planner:
    """Plays games by planning ahead in a world; a `VectorPolicy`.

    Args:
        engine: of the world. `planning_engine` makes one with room for all futures.
        actions: to choose among.
        config: how far and how wide to look.
        agent: who acts after the first step of a future; without one, random actions.
        prompt: of the world (default: its first).
    """

    def __init__(
        self,
        engine: Engine,
        actions: DiscreteActions,
        config: PlannerConfig | None = None,
        agent: Agent | None = None,
        prompt: str | None = None,
    ) -> None:
        """Prepare for one game."""
        self.engine, self.actions, self.config = engine, actions, config or PlannerConfig()
        self.agent, self.prompt = agent, prompt
        self._sessions: list[int | None] = []
        self.begin(1)

    def begin(self, count: int, seed: int = 0) -> None:
        """Prepare for `count` games."""
        self.close()
        self._rng = np.random.default_rng(seed)
        self._sessions = [None] * count
        self._plans: list[list[int]] = [[] for _ in range(count)]
        self._last: list[Any] = [None] * count
        if self.agent is not None:
            self.agent.begin(count, seed)

    def close(self) -> None:
        """End the sessions."""
        for session in self._sessions:
            if session is not None:
                self.engine.close(session)
        self._sessions = []

    def act(self, frames: np.ndarray, begun: np.ndarray) -> np.ndarray:
        """Choose an action for each game; see `VectorPolicy.act`."""
        seen = None if self.agent is None else self.agent.look(frames, begun)
        for i, frame in enumerate(frames):
            session = self._sessions[i]
            if session is None or begun[i]:
                if session is not None:
                    self.engine.close(session)
                start = {"frames": frame[None], "actions": []}
                seed = int(self._rng.integers(2**62))
                self._sessions[i] = session = self.engine.open(seed=seed, start=start, prompt=self.prompt)
                self._plans[i] = []
            else:
                self.engine.observe(session, self._last[i], frame)
            if not self._plans[i]:
                self._plans[i] = self.plan(session, None if seen is None else seen[i])[: self.config.every]
            self._last[i] = self.actions.values[self._plans[i].pop(0)]
        return np.stack(self._last)

    def plan(self, session: int, seen: np.ndarray | None = None) -> list[int]:
        """Return the numbers of the actions of the best future, from its first step; the session does not change.

        Args:
            session: where to look ahead from.
            seen: what the agent sees now, (C * S, H, W).
        """
        count, futures = len(self.actions), self.config.futures
        seeds = [int(seed) for seed in self._rng.integers(2**62, size=futures)]
        forks: list[int] = []
        try:
            for _ in range(count):  # fork a * S + s has the noise s
                for seed in seeds:
                    forks.append(self.engine.fork(session, seed))
            earned, done = self._imagine(forks) if self.agent is None else self._follow(forks, seen)
        finally:
            for fork in forks:
                self.engine.close(fork)
        earned = earned.reshape(count, futures)
        scores = earned.mean(1) if self.config.pick == "mean" else earned.max(1)
        best = int(scores.argmax())  # of equals the first
        return done[best * futures + int(earned[best].argmax())].tolist()

    def _imagine(self, forks: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """Run futures under random actions, each repeated; return the rewards (A * S,) and the actions (A * S, H)."""
        done = np.empty((len(self.actions), self.config.futures, self.config.horizon), np.int64)
        for s in range(self.config.futures):
            row = np.repeat(*self._segments())[: self.config.horizon]
            first = int(self._rng.integers(1, self.config.action_repeat + 1))
            done[:, s] = row
            done[:, s, :first] = np.arange(len(self.actions))[:, None]
        flat = done.reshape(len(forks), -1)
        chunks = {fork: list(self.actions.values[row]) for fork, row in zip(forks, flat, strict=True)}
        steps = self.engine.play(chunks, frames="last")
        earned, alive = np.zeros(len(forks)), np.ones(len(forks))
        for h in range(self.config.horizon):
            now = [steps[fork][h] for fork in forks]
            earned += self.config.gamma**h * alive * [step.reward for step in now]
            alive *= 1 - np.array([step.ended for step in now])
        return earned, flat

    def _segments(self) -> tuple[np.ndarray, np.ndarray]:
        size, most = self.config.horizon, self.config.action_repeat
        return self._rng.integers(len(self.actions), size=size), self._rng.integers(1, most + 1, size=size)

    def _follow(self, forks: list[int], seen: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Run futures in which an agent acts after the first step."""
        if self.agent is None or seen is None:
            raise ConfigError("to look ahead with an agent, plan needs what the agent sees now.")
        # An agent of its own: the planner's sees the game, this one its futures.
        agent = Agent(self.agent.card, self.agent.policy, greedy=False)
        agent.begin(len(forks), int(self._rng.integers(2**31)))
        agent.recall(np.repeat(seen[None], len(forks), axis=0))
        earned, alive = np.zeros(len(forks)), np.ones(len(forks))
        done = np.empty((len(forks), self.config.horizon), np.int64)
        none = np.zeros(len(forks), bool)
        numbers, seen_now = np.repeat(np.arange(len(self.actions)), self.config.futures), seen
        for h in range(self.config.horizon):
            done[:, h] = numbers
            steps = self.engine.step(dict(zip(forks, self.actions.values[numbers], strict=True)))
            now = [steps[fork] for fork in forks]
            earned += self.config.gamma**h * alive * [step.reward for step in now]
            alive *= 1 - np.array([step.ended for step in now])
            seen_now = agent.look(np.stack([step.frame for step in now]), none)
            numbers = agent.choose(seen_now)
        if self.config.value:
            earned += self.config.gamma**self.config.horizon * alive * agent.value(seen_now)
        return earned, done


def planning_engine(world: str | Path | World, sessions: int, **settings: Any) -> Engine:
    """Make an engine with room for so many sessions; `settings` are those of `EngineConfig`."""
    found = world if isinstance(world, World) else world_path(world)
    return make_engine(found, EngineConfig(memory_mb=256, min_sessions=sessions, **settings))


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What to play by planning, and in which world to plan."""

    world: str
    """The world to look ahead in."""
    game: str | None = None
    """The real game to play (default: play in the world itself)."""
    agent: Path | None = None
    """Who acts in the futures (default: random actions)."""
    actions: tuple[str, ...] = ()
    """Choose among these keys only (default: the agent's, or all)."""
    episodes: int = 10
    """How many whole episodes."""
    planner: PlannerConfig = PlannerConfig()
    """How far and how wide to look."""
    prompt: str | None = None
    """Of the world (default: its first)."""
    noise_scale: float | None = None
    """Scale of the noise that the futures are sampled from (default: the world's)."""
    max_episode_steps: int | None = None
    """Cut episodes after so many steps (default: as in the recipe or the world)."""
    seed: int = 1_000_000
    """Of the episodes and of the futures."""
    threads: int = 1
    """CPU cores."""
    out: Path | None = None
    """Write the report there."""


def plan(config: PlanConfig) -> dict[str, Any]:
    """Play whole episodes by planning ahead; write the report to `config.out`, and return it.

    Raises:
        ConfigError: the world is of another game, or the agent chooses among others.
    """
    torch.set_num_threads(config.threads)
    agent = None if config.agent is None else Agent.load(config.agent)
    world = World.from_pretrained(world_path(config.world))
    actions = find_actions(world.action_space, world.card.keys, config.actions)
    if agent is not None:
        actions = agent.actions
        if (repeat := agent.card.action_repeat) > 1:
            raise ConfigError(f"the agent repeats actions for {repeat} steps; a planner chooses at each one.")
    if actions is None:
        raise ConfigError("a planner chooses among a few actions; the agent gives numbers. Train one that chooses.")
    recipe = None if config.game is None else find_game(config.game, world.card.frame_size)
    if recipe is not None:
        check_world_game(world, recipe)
    room = len(actions) * config.planner.futures + 4
    engine = planning_engine(world, room, threads=config.threads, noise_scale=config.noise_scale)
    planner: VectorPolicy = Planner(engine, actions, config.planner, agent, config.prompt)
    if recipe is None:
        games = imagined_envs(
            config.world, 1, engine=engine, max_episode_steps=config.max_episode_steps, end_above=None
        )
    else:
        games = real_games(recipe, 1, config.max_episode_steps)
    try:
        title = f"planning in {config.game or config.world}"
        played = play_episodes(planner, games, config.episodes, config.seed, title)
    finally:
        games.close()
        engine.close()
    report = {
        "policy": "planner",
        "game": config.game,
        "world": None if config.game else config.world,
        "settings": json.loads(json.dumps(asdict(config), default=str)),
        **played.summary(),
    }
    if config.out is not None:
        config.out.parent.mkdir(parents=True, exist_ok=True)
        config.out.write_text(json.dumps(report, indent=2) + "\n")
    return report
