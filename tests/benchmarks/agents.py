"""Agents that train on a generated world as they train on its game; and how fast the frames come beside the game's.

python tests/benchmarks/agents.py [--frames 2048] [--envs 8] [--threads 2]

Three things, each on the world car-racing and on the game that it was recorded from (worldsim/RealCarRacing-v0: frames
of the same size and pace, episodes of as many steps), in turns and in one process: random actions without learning;
Stable-Baselines3's PPO; and a PPO in one loop as CleanRL writes them, with Gymnasium's episode statistics. Nothing in
the learners knows which of the two it plays.

A round is one rollout and its update. Each first round is not timed: it begins the first episodes and sets things up.
Later episodes' beginnings count. The ratios are the world's frames a second over the game's: above 1 the world is
faster. It runs on what `worldsim tune car-racing` found (in the folder that WORLDSIM_CACHE names), else eager.

Where other work shares the cores, a learner on several threads waits for the slowest in every small operator, and the
ratios say little about the world: use --threads 1 there.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import tyro
from gymnasium.vector import SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor
from torch import Tensor, nn
from torch.distributions import Normal

from worldsim.engine.engine import Engine
from worldsim.envs.stable_baselines import SB3VecEnv
from worldsim.envs.vector_env import WorldVectorEnv

WORLD, GAME = "worldsim/CarRacing-v0", "worldsim/RealCarRacing-v0"
EPISODE_STEPS = 250
ROUNDS = 4  # that are timed
EPOCHS, MINIBATCHES = 2, 4  # of both learners
RATE, GAMMA, LAMBDA, CLIP, VALUE, NORM = 2.5e-4, 0.99, 0.95, 0.2, 0.5, 0.5


class Random:
    """Random actions, no learning."""

    def __init__(self, envs: VectorEnv, steps: int) -> None:
        self.envs, self.steps = envs, steps
        self.close = envs.close
        envs.action_space.seed(0)
        envs.reset(seed=0)

    def round(self) -> None:
        for _ in range(self.steps):
            self.envs.step(self.envs.action_space.sample())

    def returns(self) -> list[float]:
        return []


class Stable:
    """Stable-Baselines3's PPO."""

    def __init__(self, envs: VecEnv, steps: int) -> None:
        self.frames = steps * envs.num_envs
        self.close = envs.close
        self.model = PPO(
            "CnnPolicy",
            VecMonitor(envs),
            learning_rate=RATE,
            n_steps=steps,
            batch_size=-(-self.frames // MINIBATCHES),
            n_epochs=EPOCHS,
            seed=0,
            device="cpu",
        )

    def round(self) -> None:
        self.model.learn(self.frames, reset_num_timesteps=False)

    def returns(self) -> list[float]:
        return [float(episode["r"]) for episode in self.model.ep_info_buffer or ()]


class Agent(nn.Module):
    """A small network for frames of 64x64: a normal distribution of actions, and a value."""

    def __init__(self, actions: int) -> None:
        super().__init__()
        convolutions = nn.Conv2d(3, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten()
        self.trunk = nn.Sequential(*convolutions, nn.Linear(32 * 6 * 6, 256), nn.ReLU())
        self.mean, self.value = nn.Linear(256, actions), nn.Linear(256, 1)
        self.log_std = nn.Parameter(torch.zeros(actions))
        nn.init.orthogonal_(self.mean.weight, 0.01)

    def forward(self, frames: Tensor) -> tuple[Normal, Tensor]:
        hidden = self.trunk(frames.permute(0, 3, 1, 2) / 255)
        return Normal(self.mean(hidden), self.log_std.exp()), self.value(hidden).squeeze(-1)


class Clean:
    """PPO in one loop, for environments that begin anew at the step after an episode's last one.

    That step takes no action and earns nothing: nothing is learned from it. Legend: T steps, N environments.
    """

    def __init__(self, envs: VectorEnv, steps: int) -> None:
        torch.manual_seed(0)
        self.envs, self.steps = RecordEpisodeStatistics(envs), steps
        self.close = self.envs.close
        self.shape = envs.single_action_space.shape or ()
        self.agent = Agent(*self.shape)
        self.optimizer = torch.optim.Adam(self.agent.parameters(), RATE, eps=1e-5)
        self.seen = torch.from_numpy(self.envs.reset(seed=0)[0])
        self.over = torch.zeros(envs.num_envs, dtype=torch.bool)

    def round(self) -> None:
        size = self.steps, self.envs.num_envs  # (T, N)
        frames = torch.empty(*size, *self.seen.shape[1:], dtype=torch.uint8)
        actions = torch.empty(*size, *self.shape)
        likely, rewards, values = torch.empty(size), torch.empty(size), torch.empty(size[0] + 1, size[1])
        valid, ended, over = torch.empty(3, *size, dtype=torch.bool)
        space = self.envs.single_action_space
        assert isinstance(space, gym.spaces.Box)

        with torch.no_grad():
            for t in range(self.steps):
                frames[t], valid[t] = self.seen, ~self.over
                policy, values[t] = self.agent(self.seen)
                actions[t] = policy.sample()
                likely[t] = policy.log_prob(actions[t]).sum(-1)
                clipped = np.clip(actions[t].numpy(), space.low, space.high)
                seen, reward, terminated, truncated, _ = self.envs.step(clipped)
                self.seen, self.over = torch.from_numpy(seen), torch.from_numpy(terminated | truncated)
                rewards[t], ended[t], over[t] = torch.from_numpy(reward), torch.from_numpy(terminated), self.over
            values[-1] = self.agent(self.seen)[1]

        # What follows the last step of an episode is its last frame, so that one cut short keeps its value to come.
        errors = rewards + GAMMA * values[1:] * ~ended - values[:-1]
        gains, gain = torch.empty(size), torch.zeros(size[1])
        for t in reversed(range(self.steps)):
            gain = gains[t] = errors[t] + GAMMA * LAMBDA * gain * ~over[t]
        targets = gains + values[:-1]

        flat = [x.flatten(0, 1) for x in (frames, actions, likely, gains, targets)]
        rows = valid.flatten().nonzero().squeeze(1)
        for _ in range(EPOCHS):
            for batch in rows[torch.randperm(len(rows))].chunk(MINIBATCHES):
                self._update(*(x[batch] for x in flat))

    def _update(self, frames: Tensor, actions: Tensor, likely: Tensor, gains: Tensor, targets: Tensor) -> None:
        policy, values = self.agent(frames)
        ratio = (policy.log_prob(actions).sum(-1) - likely).exp()
        gains = (gains - gains.mean()) / (gains.std(correction=0) + 1e-8)
        surrogate = torch.minimum(gains * ratio, gains * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
        loss = VALUE * (values - targets).square().mean() - surrogate
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.agent.parameters(), NORM)
        self.optimizer.step()

    def returns(self) -> list[float]:
        return [float(value) for value in self.envs.return_queue]


def ratio(title: str, world: Random | Stable | Clean, game: Random | Stable | Clean, frames: int) -> float:
    """Let both play in turns, print how fast, and return the world's frames a second over the game's."""
    spent = [0.0, 0.0]
    for turn in range(1 + ROUNDS):
        for i, player in enumerate((world, game)):
            begin = time.perf_counter()
            player.round()
            spent[i] += time.perf_counter() - begin if turn else 0.0
    for name, seconds, player in zip(("world", "game"), spent, (world, game), strict=True):
        speed = f"{frames} frames {seconds:7.2f} s {frames / seconds:7.0f} frames/s"
        returns = player.returns()
        ends = f"   {len(returns)} episodes, mean return {np.mean(returns):.1f}" if returns else ""
        print(f"{title:22}{name:6}{speed}{ends}", flush=True)
        player.close()
    return spent[1] / spent[0]


def main(frames: int = 2048, envs: int = 8, threads: int = 2) -> None:
    """Measure.

    Args:
        frames: of each of the six, of all environments together.
        envs: how many environments.
        threads: CPU cores of the world, and of the learners.
    """
    torch.set_num_threads(threads)
    steps = max(2, frames // (ROUNDS * envs))
    frames = ROUNDS * steps * envs

    def world(**settings: Any) -> VectorEnv:
        return gym.make_vec(WORLD, num_envs=envs, threads=threads, max_episode_steps=EPISODE_STEPS, **settings)

    def game() -> gym.Env:
        return gym.make(GAME, max_steps=EPISODE_STEPS)

    games, ratios = [game] * envs, {}
    first = world()
    assert isinstance(first, WorldVectorEnv) and isinstance(first.engine, Engine)
    print(f"{envs} environments, {threads} threads, runtime of the world: {first.engine.runtime.name}")
    ratios["stepping"] = ratio("stepping", Random(first, steps), Random(SyncVectorEnv(games), steps), frames)
    stable = Stable(SB3VecEnv(world(autoreset_mode="SameStep")), steps), Stable(DummyVecEnv(games), steps)
    ratios["Stable-Baselines3 PPO"] = ratio("Stable-Baselines3 PPO", *stable, frames)
    clean = Clean(world(), steps), Clean(SyncVectorEnv(games), steps)
    ratios["CleanRL's loop"] = ratio("CleanRL's loop", *clean, frames)
    print("world over game: " + ", ".join(f"{name} {value:.2f}" for name, value in ratios.items()))


if __name__ == "__main__":
    tyro.cli(main)
