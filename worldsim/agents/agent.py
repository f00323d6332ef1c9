"""An agent on disk and in play: a small network over the last frames, and its discrete action set.

    runs/agent/
      agent.json            its game, its frames, its actions, its training
      policy.safetensors    the network of Stable-Baselines3's policy; nothing is unpickled
      optimizer.safetensors to resume training (not needed to play)

Legend: N games, H W frame, C channels of a frame, S frames stacked.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3.common.policies import ActorCriticCnnPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from worldsim.agents.discrete import DiscreteActions
from worldsim.agents.envs import to_grayscale
from worldsim.errors import ConfigError, DataError, FrameError, check_ranges
from worldsim.files import replacing
from worldsim.renamed import AGENT, AGENT_TRAINING, with_new_names
from worldsim.spaces import space_from_json, space_to_json
from worldsim.untrusted import convert, read_json

FORMAT, FORMAT_VERSION = "worldsim-agent", 1
SMALLEST = 20  # pixels of a frame's side that the network can see


class SmallCnn(BaseFeaturesExtractor):
    """Two convolutions, a third of the work of the usual network for Atari: the step of the world should dominate."""

    def __init__(self, observation_space: spaces.Box, features: int = 256) -> None:
        """Initialize for frames (C * S, H, W)."""
        super().__init__(observation_space, features)
        channels, height, width = observation_space.shape
        self.look = nn.Sequential(
            nn.Conv2d(channels, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten()
        )
        with torch.no_grad():
            size = self.look(torch.zeros(1, channels, height, width)).shape[1]
        self.sum_up = nn.Sequential(nn.Linear(size, features), nn.ReLU())

    def forward(self, observations: Tensor) -> Tensor:
        """Compute features (N, features) of frames scaled to 0..1."""
        return self.sum_up(self.look(observations))


POLICY_SETTINGS: dict[str, Any] = {"features_extractor_class": SmallCnn, "net_arch": []}


MOST_ACTIONS = 16_384  # that an agent chooses among


@dataclass(frozen=True, kw_only=True)
class AgentCard:
    """The description of an agent, in `agent.json`.

    Raises:
        ConfigError: a field that no agent can have. A card may be a stranger's: what it says is bounded.
    """

    game: str  # what it plays: a recipe or a Gymnasium id
    frame_size: tuple[int, int]  # (height, width)
    action_space: dict[str, Any]  # of the game, see worldsim.spaces
    actions: dict[str, Any] | None  # names of keys -> actions, or None where it gives the numbers itself
    stack: int = 3
    grayscale: bool = False
    action_repeat: int = 1  # steps that each action lasts
    training: dict[str, Any] = field(default_factory=dict)  # the config it learned with
    progress: dict[str, Any] = field(default_factory=dict)  # steps, seconds, scale of rewards
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        """Check the fields."""
        check_ranges(self, {"frame_size": (1, 4096), "stack": (1, 256), "action_repeat": (1, 1_000_000)})
        space_from_json(self.action_space)
        if self.actions is not None and not 0 < len(self.actions) <= MOST_ACTIONS:
            raise ConfigError(f"there are {len(self.actions)} actions; allowed: 1 to {MOST_ACTIONS}.")


class Agent:
    """Plays by a network, as a `VectorPolicy`. It stores the last frames of each game itself.

    Args:
        card: its description.
        policy: the network; None makes a new one.
        greedy: take the most probable action; False samples one.

    Attributes:
        actions: what it chooses among, or None.
    """

    def __init__(self, card: AgentCard, policy: ActorCriticCnnPolicy | None = None, greedy: bool = True) -> None:
        """Put the parts together."""
        self.card, self.greedy = card, greedy
        self.space: spaces.Space = space_from_json(card.action_space)
        self.actions = None
        if card.actions is not None:
            dtype = self.space.dtype
            self.actions = DiscreteActions(
                tuple(card.actions), np.stack([np.asarray(a, dtype) for a in card.actions.values()])
            )
        self.policy = policy or make_network(card)
        self.policy.set_training_mode(False)
        self.begin(1)

    def begin(self, count: int, seed: int = 0) -> None:
        """Prepare for `count` games."""
        self._seen = np.zeros((count, *self.card.frame_size, _channels(self.card)), np.uint8)
        self._noise = torch.Generator().manual_seed(seed)
        self._left = np.zeros(count, np.int64)  # steps that the last actions are still repeated for
        self._last: np.ndarray | None = None

    def look(self, frames: np.ndarray, begun: np.ndarray) -> np.ndarray:
        """Append the frames (N, H, W, 3); return the input of the network, (N, C * S, H, W)."""
        if frames.shape[1:3] != tuple(self.card.frame_size):
            raise FrameError(f"frames have shape {frames.shape}; this agent sees frames of {self.card.frame_size}.")
        if len(frames) != len(self._seen):
            raise FrameError(f"there are {len(frames)} frames for {len(self._seen)} games; call begin({len(frames)}).")
        new = to_grayscale(frames) if self.card.grayscale else frames
        self._seen[begun] = 0  # as VecFrameStack has it
        self._seen = np.concatenate([self._seen[..., new.shape[-1] :], new], axis=-1)
        return self._seen.transpose(0, 3, 1, 2)

    @torch.no_grad()
    def act(self, frames: np.ndarray, begun: np.ndarray) -> np.ndarray:
        """Choose an action for each game; see `VectorPolicy.act`."""
        self._left[begun] = 0
        repeating, before = self._left > 0, self._seen
        chosen = self._decide(self.look(frames, begun))
        if repeating.any() and self._last is not None:
            self._seen[repeating] = before[repeating]  # while an action is repeated it does not look
            chosen[repeating] = self._last[repeating]
        self._left = np.where(repeating, self._left, self.card.action_repeat) - 1
        self._last = chosen
        return chosen.copy()

    def _decide(self, seen: np.ndarray) -> np.ndarray:
        """Choose an action for each game, from the output of `look`."""
        if self.actions is not None:
            return self.actions.values[self.choose(seen)]
        distribution = self.policy.get_distribution(self._tensor(seen)).distribution
        mean: Tensor = distribution.mean  # type: ignore[union-attr]
        if not self.greedy:
            noise = torch.randn(mean.shape, generator=self._noise).to(mean.device)
            mean = mean + noise * distribution.stddev  # type: ignore[union-attr]
        space = self.space
        assert isinstance(space, spaces.Box)  # as `find_actions` leaves it
        return np.clip(mean.cpu().numpy(), space.low, space.high).astype(space.dtype)

    @torch.no_grad()
    def choose(self, seen: np.ndarray) -> np.ndarray:
        """Choose the numbers (N,) of the actions for the output of `look`."""
        likely: Tensor = self.policy.get_distribution(self._tensor(seen)).distribution.probs.cpu()  # type: ignore[union-attr]
        picked = likely.argmax(1) if self.greedy else torch.multinomial(likely, 1, generator=self._noise)[:, 0]
        return picked.numpy()

    @torch.no_grad()
    def value(self, seen: np.ndarray) -> np.ndarray:
        """Estimate the return with the critic, (N,), in the game's own rewards."""
        scale = float(self.card.progress.get("reward_scale", 1.0))  # it learned with rewards divided by this
        return self.policy.predict_values(self._tensor(seen))[:, 0].cpu().numpy() * scale

    def _tensor(self, seen: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(seen)).to(self.policy.device)

    def recall(self, seen: np.ndarray) -> None:
        """Continue from the output of `look`, of this agent or another."""
        self._seen = seen.transpose(0, 2, 3, 1).copy()

    def save(self, path: str | Path) -> None:
        """Write the agent to a folder, so that a reader finds the old one or the new one."""
        path = Path(path)
        path.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().contiguous() for name, value in self.policy.named_parameters()}
        write_tensors(weights, path / "policy.safetensors")
        with replacing(path / "agent.json") as partial:
            partial.write_text(json.dumps(dataclasses.asdict(self.card), indent=2, default=str) + "\n")

    @staticmethod
    def load(path: str | Path, greedy: bool = True) -> Agent:
        """Read an agent's folder.

        Raises:
            DataError: no agent there, a damaged one, or one of another format version.
        """
        path = Path(path)
        try:
            card = read_agent_card(path)
            agent = Agent(card, greedy=greedy)
            load_weights(agent.policy, path)
        except (OSError, SafetensorError, RuntimeError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"the agent {path} is damaged or incomplete ({error}); train it again.") from error
        return agent


class RandomVectorPolicy:
    """Samples the same actions, each for one step or repeated for some.

    Args:
        space: the game's action space.
        actions: what to choose among; None samples the space.
        action_repeat: repeat an action for 1 to `action_repeat` steps.
    """

    def __init__(self, space: spaces.Space, actions: DiscreteActions | None, action_repeat: int = 1) -> None:
        """Prepare for one game."""
        self.space, self.actions, self.action_repeat = space, actions, action_repeat
        self.begin(1)

    def begin(self, count: int, seed: int = 0) -> None:
        """Prepare for `count` games."""
        self._rng, self._left = np.random.default_rng(seed), np.zeros(count, np.int64)
        self.space.seed(seed)
        self._held: list[Any] = [None] * count

    def act(self, frames: np.ndarray, begun: np.ndarray) -> np.ndarray:
        """Choose an action for each game; see `VectorPolicy.act`."""
        self._left[begun] = 0
        for i in np.flatnonzero(self._left == 0):
            self._left[i] = self._rng.integers(1, self.action_repeat + 1)
            if self.actions is None:
                self._held[i] = self.space.sample()
            else:
                self._held[i] = self.actions.values[self._rng.integers(len(self.actions))]
        self._left -= 1
        return np.stack(self._held)


def make_card(
    game: str, frame_size: tuple[int, int], space: spaces.Space, actions: DiscreteActions | None, **more: Any
) -> AgentCard:
    """Make the card of a new agent.

    Raises:
        ConfigError: the frames are too small for its network.
    """
    if min(frame_size) < SMALLEST:
        raise ConfigError(f"frames are {frame_size}; an agent sees frames of at least {SMALLEST} x {SMALLEST}.")
    table = None if actions is None else dict(zip(actions.names, actions.values.tolist(), strict=True))
    return AgentCard(game=game, frame_size=frame_size, action_space=space_to_json(space), actions=table, **more)


def make_network(card: AgentCard) -> ActorCriticCnnPolicy:
    """Make a network for the frames and actions of `card`, just as PPO makes it."""
    height, width = card.frame_size
    seen = spaces.Box(0, 255, (_channels(card), height, width), np.uint8)
    space = space_from_json(card.action_space) if card.actions is None else spaces.Discrete(len(card.actions))
    return ActorCriticCnnPolicy(seen, space, lambda _: 0.0, **POLICY_SETTINGS)


def read_agent_card(path: Path) -> AgentCard:
    """Read `agent.json`.

    Raises:
        DataError: there is no agent, or it has another format version.
    """
    if not (path / "agent.json").is_file():
        raise DataError(f"there is no agent at {path} (no agent.json there). Make one with: worldsim agent train")
    try:
        data = read_json(path / "agent.json")
        found = data.get("format"), data.get("format_version")
        if found != (FORMAT, FORMAT_VERSION):
            raise DataError(f"the agent {path} has format and version {found}; this worldsim reads {FORMAT_VERSION}.")
        data = with_new_names(data, AGENT)
        data["training"] = with_new_names(data.get("training", {}), AGENT_TRAINING)
        return convert(data, AgentCard)
    except DataError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path / 'agent.json'} is damaged ({error}); train the agent again.") from error


def load_weights(policy: nn.Module, path: Path) -> None:
    """Read the network of the agent at `path`; tied parameters are stored once.

    Raises:
        DataError: there is no network, or it has another shape.
    """
    try:
        weights, own = load_file(path / "policy.safetensors"), dict(policy.named_parameters())
        if weights.keys() != own.keys():
            raise DataError(f"the network in {path} has other parts than this one; train the agent again.")
        with torch.no_grad():
            for name, value in weights.items():
                if value.shape != own[name].shape:
                    raise DataError(f"{name} in {path} has shape {tuple(value.shape)}, not {tuple(own[name].shape)}.")
                own[name].copy_(value)
    except (OSError, SafetensorError) as error:
        raise DataError(f"the network in {path} cannot be read ({error}); train the agent again.") from error


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors so that a reader finds the old file or the new one."""
    with replacing(path) as partial:
        save_file(tensors, partial)


def _channels(card: AgentCard) -> int:
    return card.stack * (1 if card.grayscale else 3)
