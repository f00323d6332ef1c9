"""Evaluate a policy on whole episodes, in the real game or in a world, with an interval for the mean."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from worldsim.agents.agent import Agent, RandomVectorPolicy
from worldsim.agents.envs import (
    check_world_game,
    closed_unless,
    find_game,
    imagined_envs,
    real_games,
    sample_starts,
    world_of,
)
from worldsim.agents.training import world_context
from worldsim.data.policy import VectorPolicy
from worldsim.errors import ConfigError
from worldsim.evaluation.intervals import bootstrap, ratio


@dataclass(frozen=True, kw_only=True)
class AgentEvalConfig:
    """What plays, where, and how often."""

    agent: Path
    """The folder of an agent."""
    episodes: int = 100
    """How many whole episodes."""
    policy: Literal["agent", "random"] = "agent"
    """"random" samples the agent's actions instead."""
    greedy: bool = True
    """Take the most probable action; otherwise, sample one."""
    game: str | None = None
    """Play this game (default: the one that the agent learned for)."""
    world: str | None = None
    """Play in this world rather than in the real game."""
    noise_scale: float | None = None
    """Of the world, see agent train."""
    starts_from: Path | None = None
    """A recording whose held-out clips the episodes in the world begin from."""
    where: tuple[str, ...] = ()
    """Only clips with these labels."""
    starts_anywhere: bool = True
    """Clips from anywhere in an episode; without, the first frame of each."""
    num_envs: int = 8
    """Episodes played at once in a world; real games are played one after another."""
    max_episode_steps: int | None = None
    """Cut episodes after so many steps (default: as in the recipe)."""
    seed: int = 1_000_000
    """Of the episodes."""
    threads: int = 1
    """CPU cores."""
    out: Path | None = None
    """The report (default: eval-real.json, eval-dream.json or the same of the random policy in the agent's folder)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("episodes", "num_envs", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")


@dataclass(frozen=True, kw_only=True)
class Played:
    """Some whole episodes.

    Attributes:
        returns: the sum of the game's own rewards of each.
        lengths: steps of each.
        truncated: which were cut by a limit rather than ended.
        seconds: it took.
    """

    returns: list[float]
    lengths: list[int]
    truncated: list[bool]
    seconds: float

    def summary(self) -> dict[str, Any]:
        """Compute the mean, standard deviation, 95 % interval of the mean (bootstrap over episodes) and more."""
        returns = np.asarray(self.returns)
        return {
            "episodes": len(returns),
            "mean": float(returns.mean()),
            "std": float(returns.std()),
            "interval": _interval(self.returns),
            "median": float(np.median(returns)),
            "least": float(returns.min()),
            "most": float(returns.max()),
            "mean_length": float(np.mean(self.lengths)),
            "length_interval": _interval(self.lengths),
            "cut": float(np.mean(self.truncated)),
            "seconds": round(self.seconds, 1),
            "returns": self.returns,
        }


def _interval(values: Sequence[float]) -> list[float] | None:
    sums = np.stack([np.asarray(values, float), np.ones(len(values))], axis=1)
    interval = bootstrap(sums, range(len(values)), ratio())
    return None if interval is None else list(interval)


def play_episodes(policy: VectorPolicy, games: VecEnv, episodes: int, seed: int = 0, title: str = "playing") -> Played:
    """Let a policy play whole episodes.

    Every game has a fixed number of them: to take those that end first would favour short ones. Ctrl-C ends it early,
    with the episodes that are over.

    Args:
        policy: plays.
        games: that show frames, uint8 (N, H, W, 3), without any wrapper of a learner.
        episodes: how many.
        seed: of the games and of the policy.
        title: of the progress bar.
    """
    count, begin = games.num_envs, time.perf_counter()
    quota = np.full(count, episodes // count) + (np.arange(count) < episodes % count)
    rows: list[list[tuple[float, int, bool]]] = [[] for _ in range(count)]
    with tqdm(total=episodes, unit="episode", desc=title, mininterval=2) as bar:
        try:
            for i, played in _endless(policy, games, seed):
                if len(rows[i]) == quota[i]:
                    continue
                rows[i].append(played)
                bar.update()
                bar.set_postfix({"mean": f"{np.mean([r for row in rows for r, _, _ in row]):.4g}"})
                if sum(map(len, rows)) == episodes:
                    break
        except KeyboardInterrupt:
            if not any(rows):
                raise
            bar.write(f"stopped after {sum(map(len, rows))} of {episodes} episodes; the report is of these")
    flat = [entry for row in rows for entry in row]
    returns, steps, cut = (list(part) for part in zip(*flat, strict=True))
    return Played(returns=returns, lengths=steps, truncated=cut, seconds=time.perf_counter() - begin)


def play_steps(
    policy: VectorPolicy, games: VecEnv, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]]:
    """Let a policy play without end; yield the frames (N, H, W, 3), and the rewards, ends and infos of its actions."""
    games.seed(seed)
    frames, over = np.asarray(games.reset()), np.ones(games.num_envs, bool)
    policy.begin(games.num_envs, seed)
    while True:
        seen = frames
        after, rewards, over, infos = games.step(policy.act(seen, over))
        frames = np.asarray(after)
        yield seen, rewards, over, infos


def _endless(policy: VectorPolicy, games: VecEnv, seed: int) -> Iterator[tuple[int, tuple[float, int, bool]]]:
    """Yield the number of a game, and the return, the length and whether it was cut, of each episode that ends."""
    sums, lengths = np.zeros(games.num_envs), np.zeros(games.num_envs, np.int64)
    for _, rewards, over, infos in play_steps(policy, games, seed):
        sums, lengths = sums + rewards, lengths + 1
        for i in np.flatnonzero(over):
            yield int(i), (float(sums[i]), int(lengths[i]), bool(infos[i].get("TimeLimit.truncated")))
            sums[i] = lengths[i] = 0


def evaluate_agent(config: AgentEvalConfig) -> dict[str, Any]:
    """Let an agent, or the random policy with its actions, play; write and return the report.

    Raises:
        DataError: there is no such agent, game or recording.
    """
    torch.set_num_threads(config.threads)
    agent = Agent.load(config.agent, greedy=config.greedy)
    policy: VectorPolicy = agent if config.policy == "agent" else RandomVectorPolicy(agent.space, agent.actions)
    name = config.game or agent.card.game
    games = _games(config, name, agent.card.frame_size)
    try:
        if games.action_space != agent.space:
            raise ConfigError(
                f"{config.world or name} has the action space {games.action_space}; the agent learned in {agent.space}."
            )
        title = f"{config.policy} in {config.world or name}"
        played = play_episodes(policy, games, config.episodes, config.seed, title)
    finally:
        games.close()
    place = "dream" if config.world else "real"
    report = {
        "agent": str(config.agent),
        "policy": config.policy,
        "greedy": config.greedy,
        "game": name,
        "world": config.world,
        "seed": config.seed,
        "learned": agent.card.progress,
        **played.summary(),
    }
    suffix = "" if config.policy == "agent" else "-random"
    out = config.out or config.agent / f"eval-{place}{suffix}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n")
    return report


def line(report: dict[str, Any]) -> str:
    """Format a report in one line."""
    interval, lengths = report["interval"], report["length_interval"]
    ends = "" if interval is None else f" (95 % interval of the mean {interval[0]:.1f} to {interval[1]:.1f})"
    spread = "" if lengths is None else f" ({lengths[0]:.0f} to {lengths[1]:.0f})"
    who = f"{report['policy']} in {report['world'] or report['game']}"
    figures = f"{report['mean']:.1f} +- {report['std']:.1f}"
    return f"{who}: {figures}{ends}, {report['episodes']} episodes of {report['mean_length']:.0f}{spread} steps"


def _games(config: AgentEvalConfig, name: str, frame_size: tuple[int, int]) -> VecEnv:
    recipe = find_game(name, frame_size)
    if config.world is None:
        return real_games(recipe, 1, config.max_episode_steps)
    settings: dict[str, Any] = {"max_episode_steps": config.max_episode_steps or recipe.episode_steps}
    settings |= {"noise_scale": config.noise_scale, "threads": config.threads, "end_above": None}
    if config.starts_from is not None:
        settings["starts"] = sample_starts(
            config.starts_from, config.episodes, world_context(config.world), config.where, config.seed,
            config.starts_anywhere, "heldout",
        )  # fmt: skip
    envs = imagined_envs(config.world, min(config.num_envs, config.episodes), **settings)
    with closed_unless(envs):
        check_world_game(world_of(envs).world, recipe)
    return envs
