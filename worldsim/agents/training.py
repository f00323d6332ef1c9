"""Train an agent by PPO, in a world or in the real game, with the same wrappers, network and settings."""

from __future__ import annotations

import dataclasses
import json
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from safetensors.torch import load_file
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from torch import Tensor
from tqdm import tqdm

from worldsim.agents.agent import (
    POLICY_SETTINGS,
    Agent,
    AgentCard,
    load_weights,
    make_card,
    read_agent_card,
    write_tensors,
)
from worldsim.agents.discrete import DiscreteActions, find_actions
from worldsim.agents.envs import (
    agent_observation,
    check_world_game,
    closed_unless,
    find_game,
    frame_size,
    game_keys,
    imagined_envs,
    real_games,
    sample_starts,
    world_of,
)
from worldsim.errors import ConfigError
from worldsim.spaces import space_from_json
from worldsim.training.trainer import stop_on_terminate

SAVE_SECONDS = 60.0
# What a run that goes on agrees in:
SAME = ("game", "world", "actions", "discrete_actions", "stack", "grayscale", "action_repeat")


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """What an agent learns, where, and how."""

    game: str
    """A recipe (worldsim record --list), PACKAGE:RECIPE of a folder, or the id of any Gymnasium environment."""
    world: str | None = None
    """Learn in this world: a shipped one or a folder. Without one: in the real game."""
    out: Path | None = None
    """The folder of the agent (default: runs/agent-GAME-dream or -real). An agent in it resumes its training."""
    init_from: Path | None = None
    """Begin from this agent's network."""
    steps: int = 1_000_000
    """Steps of all environments together."""
    minutes: float | None = None
    """Stop after so many minutes, however many steps that are."""
    num_envs: int = 16
    """Episodes that are played at once."""
    n_steps: int = 128
    """Steps of each environment between updates."""
    batch_size: int = 256
    """Steps that a gradient is made of."""
    epochs: int = 4
    """How often each step is learned from."""
    learning_rate: float = 2.5e-4
    """At the beginning; it falls to zero over the steps."""
    gamma: float = 0.99
    """What a reward one step later is worth."""
    gae_lambda: float = 0.95
    """How far advantages look ahead."""
    entropy: float = 0.01
    """Weight on acting at random."""
    clip: float = 0.2
    """How far an update may change an action's probability."""
    stack: int = 3
    """Frames that the agent sees at once."""
    frame_size: tuple[int, int] | None = None
    """Height and width of the real game's frames (default: as in the recipe); a world has its own."""
    grayscale: bool = False
    """See frames without colour."""
    discrete_actions: bool = True
    """Choose among the game's keys; without, give the numbers of a Box (a clipped Gaussian)."""
    actions: tuple[str, ...] = ()
    """Choose among these keys only, such as left right left+up."""
    action_repeat: int = 1
    """Steps that each action is repeated for; `steps` and `n_steps` then count actions."""
    noise_scale: float | None = None
    """Scale of the noise that the world's frames are sampled from (default: the world's)."""
    num_denoising_steps: int | None = None
    """Denoising steps of the world (default: the world's)."""
    starts_from: Path | None = None
    """A recording: episodes in the world begin from its clips rather than from those the world carries."""
    starts: int = 256
    """How many clips."""
    starts_anywhere: bool = True
    """Clips from anywhere in an episode; without, the first frame of each."""
    where: tuple[str, ...] = ()
    """Only clips with these labels, such as ground=grass."""
    sample_end: bool = True
    """Draw the world's ends by their learned probability; without, an episode ends when that passes a half."""
    max_episode_steps: int | None = None
    """Cut episodes after so many steps (default: as in the recipe)."""
    seed: int = 0
    """Of the network, the episodes and the updates."""
    threads: int = 1
    """CPU cores."""
    runtime: str = "auto"
    """What computes the world."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("steps", "num_envs", "epochs", "stack", "action_repeat", "starts", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.n_steps * self.num_envs < 2 or self.batch_size < 2:
            raise ConfigError("n_steps * num_envs and batch_size must both be at least 2.")
        if (self.n_steps * self.num_envs) % self.batch_size:
            raise ConfigError(
                f"batch_size is {self.batch_size}, which does not divide n_steps * num_envs = "
                f"{self.n_steps * self.num_envs}; choose one that does."
            )
        if not 0 < self.gamma <= 1:
            raise ConfigError(f"gamma is {self.gamma}; allowed: 0 < gamma <= 1.")
        if self.world is None and (self.starts_from or self.noise_scale is not None):
            raise ConfigError("starts_from and noise_scale are for learning in a world; name one with world.")

    def folder(self) -> Path:
        """Folder of the agent."""
        name = self.game.split(":")[-1].split("/")[-1]
        return self.out or Path("runs") / f"agent-{name}-{'dream' if self.world else 'real'}"


def train_agent(config: AgentConfig) -> Agent:
    """Train until the steps or minutes are spent; resume an agent that is in the folder already.

    Ctrl-C leaves an agent that can be loaded and resumed.

    Raises:
        DataError: there is no such game, recording or agent.
        ConfigError: settings that do not fit the game, or other ones than those the agent in the folder began with.
    """
    torch.set_num_threads(config.threads)
    folder = config.folder()
    raw, actions = make_envs(config)
    try:
        card = new_card(config, raw, actions)
        before = read_agent_card(folder) if (folder / "agent.json").is_file() else None
        if before is not None:
            _check_same(before, card, folder)
            card = dataclasses.replace(card, progress=before.progress)
        seen = agent_observation(raw, actions, config.stack, config.grayscale, config.action_repeat)
        scaled = VecNormalize(seen, norm_obs=False, gamma=config.gamma)
        model = make_ppo(config, scaled)
        if before is not None or config.init_from is not None:
            source = folder if before is not None else Path(str(config.init_from))
            _go_on(model, scaled, card, source, before is not None)
        left = config.steps - model.num_timesteps
        learning = Learning(config, card, folder, model, scaled)
        if left > 0 and not learning.late():
            _learn(model, left, learning)
    finally:
        raw.close()
    return Agent.load(folder)


def _learn(model: PPO, steps: int, learning: Learning) -> None:
    before = stop_on_terminate()
    try:
        model.learn(steps, learning, reset_num_timesteps=False)
    except KeyboardInterrupt:
        tqdm.write(f"stopped at step {model.num_timesteps}; run the same command to go on from there")
        learning.save()
    finally:
        learning.bar.close()
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def make_envs(config: AgentConfig) -> tuple[VecEnv, DiscreteActions | None]:
    """Make the environments that `config` asks for, and find the discrete action set in them."""
    if config.world is None:
        recipe = find_game(config.game, config.frame_size)
        space, keys = game_keys(recipe)
        envs = real_games(recipe, config.num_envs, config.max_episode_steps)
        return envs, find_actions(space, keys, config.actions, config.discrete_actions)
    game = find_game(config.game)
    settings: dict[str, Any] = {
        "noise_scale": config.noise_scale,
        "num_denoising_steps": config.num_denoising_steps,
        "threads": config.threads,
        "runtime": config.runtime,
        "max_episode_steps": config.max_episode_steps or game.episode_steps,
        "end_above": None if config.sample_end else 0.5,
    }
    if config.starts_from is not None:
        frames = world_context(config.world)
        settings["starts"] = sample_starts(
            config.starts_from, config.starts, frames, config.where, config.seed, config.starts_anywhere
        )
    envs = imagined_envs(config.world, config.num_envs, **settings)
    world = world_of(envs).world
    with closed_unless(envs):
        check_world_game(world, game)
        return envs, find_actions(world.action_space, world.card.keys, config.actions, config.discrete_actions)


def world_context(world: str) -> int:
    """Compute the number of frames of a clip that a world uses."""
    from worldsim.envs.shipped import world_path
    from worldsim.world import find_world

    dynamics = json.loads((find_world(world_path(world)) / "dynamics" / "config.json").read_text())
    return int(dynamics["context"]) + int(dynamics["history"])


def new_card(config: AgentConfig, envs: VecEnv, actions: DiscreteActions | None) -> AgentCard:
    """Make the card of an agent that learns in `envs`, before any wrapper."""
    training = json.loads(json.dumps(dataclasses.asdict(config), default=str))
    size = frame_size(envs)
    about = {"stack": config.stack, "grayscale": config.grayscale, "action_repeat": config.action_repeat}
    return make_card(config.game, size, envs.action_space, actions, **about, training=training)


def make_ppo(config: AgentConfig, envs: VecEnv) -> PPO:
    """Make Stable-Baselines3's PPO with the settings of `config`."""
    model = PPO(
        "CnnPolicy",
        envs,
        learning_rate=lambda left: config.learning_rate * max(left, 0.0),
        n_steps=config.n_steps,
        batch_size=config.batch_size,
        n_epochs=config.epochs,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        clip_range=config.clip,
        ent_coef=config.entropy,
        policy_kwargs=POLICY_SETTINGS,
        seed=config.seed,
        device=torch.get_default_device(),  # theirs is the GPU wherever there is one
    )
    model.set_logger(Logger(folder=None, output_formats=[]))  # `Learning` writes what it says
    return model


class Learning(BaseCallback):
    """Shows progress, writes log.jsonl and saves the agent."""

    def __init__(self, config: AgentConfig, card: AgentCard, folder: Path, model: PPO, scaled: VecNormalize) -> None:
        """Start to count."""
        super().__init__()
        self.config, self.card, self.folder, self.model, self.scaled = config, card, folder, model, scaled
        self.bar = tqdm(
            total=config.steps,
            initial=model.num_timesteps,
            unit="step",
            desc=folder.name,
            smoothing=0.05,
            mininterval=2,
        )
        self.spent = float(card.progress.get("seconds", 0.0))  # in earlier runs
        self.begun = self.saved = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds spent on training, in all runs."""
        return self.spent + time.perf_counter() - self.begun

    def late(self) -> bool:
        """Whether the minutes are spent."""
        return self.config.minutes is not None and self.seconds >= 60 * self.config.minutes

    def _on_step(self) -> bool:
        self.bar.update(self.scaled.num_envs)
        return not self.late()

    def _on_rollout_end(self) -> None:
        # The logger still has the update before this rollout; it is emptied after this.
        scalars = {name.split("/")[-1]: value for name, value in self.logger.name_to_value.items()}
        episodes = self.model.ep_info_buffer or ()
        line: dict[str, Any] = {"steps": self.num_timesteps, "seconds": round(self.seconds, 1)}
        if episodes:  # the last hundred
            line["return"] = float(np.mean([episode["r"] for episode in episodes]))
            line["length"] = float(np.mean([episode["l"] for episode in episodes]))
            self.bar.set_postfix({"return": f"{line['return']:.4g}", "length": f"{line['length']:.0f}"})
        for name in ("entropy_loss", "value_loss", "approx_kl", "explained_variance", "clip_fraction"):
            if name in scalars:
                line[name] = round(float(scalars[name]), 5)
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if time.perf_counter() - self.saved > SAVE_SECONDS:
            self.save()

    def _on_training_end(self) -> None:
        self.save()

    def save(self) -> None:
        """Write the agent and its state of training."""
        self.saved = time.perf_counter()
        rms = self.scaled.ret_rms
        progress = {
            "steps": self.num_timesteps,
            "seconds": round(self.seconds, 1),
            "reward_statistics": [float(rms.mean), float(rms.var), float(rms.count)],
            "reward_scale": float(np.sqrt(rms.var + self.scaled.epsilon)),  # a return is the critic's value times this
        }
        policy: Any = self.model.policy
        Agent(dataclasses.replace(self.card, progress=progress), policy).save(self.folder)
        state: dict[int, dict[str, Tensor]] = policy.optimizer.state_dict()["state"]
        moments = {f"{i}.{name}": value.contiguous() for i, part in state.items() for name, value in part.items()}
        write_tensors(moments, self.folder / "optimizer.safetensors")


def _go_on(model: PPO, scaled: VecNormalize, card: AgentCard, folder: Path, all_of_it: bool) -> None:
    """Load an agent's network; with `all_of_it` also its optimizer, its count of steps and its scale of rewards."""
    load_weights(model.policy, folder)
    if not all_of_it:
        return
    optimizer = model.policy.optimizer
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in load_file(folder / "optimizer.safetensors").items():
        index, _, moment = name.partition(".")
        state.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    rms = scaled.ret_rms
    mean, var, count = card.progress["reward_statistics"]
    rms.mean, rms.var, rms.count = np.asarray(mean), np.asarray(var), count
    model.num_timesteps = int(card.progress["steps"])


def _check_same(before: AgentCard, card: AgentCard, folder: Path) -> None:
    changed = [name for name in SAME if before.training.get(name) != card.training.get(name)]
    if changed or before.actions != card.actions or space_from_json(before.action_space) != _space(card):
        was = {name: before.training.get(name) for name in changed} or "its actions"
        raise ConfigError(f"the agent in {folder} learns with other settings: {was}. Choose another folder with out.")


def _space(card: AgentCard) -> spaces.Space:
    return space_from_json(card.action_space)
