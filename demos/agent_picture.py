"""A GIF of an agent at play in the real game, after it learned in a world.

python -m worldsim.demos.agent_picture runs/agent-car-racing-dream --out docs/media/agent.gif
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from worldsim.agents.agent import Agent
from worldsim.agents.envs import find_game, real_games
from worldsim.agents.evaluation import play_steps
from worldsim.demos.pictures import save_gif
from worldsim.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class AgentPictureConfig:
    """Which agent, and how much of its play."""

    agent: Path
    out: Path = Path("agent.gif")
    games: int = 4
    """Games side by side."""
    frames: int = 160
    """Steps to play."""
    every: int = 2
    """Show every n-th frame; the picture runs twice as fast as the game."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("games", "frames", "every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")


def at_play(config: AgentPictureConfig) -> tuple[np.ndarray, float]:
    """Let the agent play real games; return uint8 (T, H, games * W, 3) and the frames per second."""
    agent = Agent.load(config.agent, greedy=False)
    recipe = find_game(agent.card.game, agent.card.frame_size)
    games = real_games(recipe, config.games)
    try:
        steps = islice(play_steps(agent, games, config.seed), 0, config.frames, config.every)
        shown = [np.concatenate(list(frames), axis=1) for frames, *_ in steps]
    finally:
        games.close()
    return np.stack(shown), recipe.fps / config.every


def main() -> None:
    """Write the GIF that the command line asks for."""
    import tyro

    config = tyro.cli(AgentPictureConfig, description=__doc__, config=(tyro.conf.PositionalRequiredArgs,))
    frames, fps = at_play(config)
    save_gif(frames, config.out, 2 * fps)
    print(config.out)


if __name__ == "__main__":
    main()
