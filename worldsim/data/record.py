"""Record any Gymnasium environment that shows RGB frames into a dataset of episodes.

Episode k of a dataset and its split are a function of (settings, seed, k) alone. The lengths of the episodes determine
which episodes a recording of so many frames has. So a recording that was stopped can be resumed, and the files are the
same whatever the number of workers.
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
from tqdm import tqdm

from worldsim.data.admission import check_episode, check_space, check_text, read_prompt, read_reward
from worldsim.data.card import FILE, LARGEST_SIDE, DatasetCard
from worldsim.data.episodes import Dataset, Episode, count_steps, write_episode
from worldsim.data.foreign import foreign_recipe, full_id, game_errors
from worldsim.data.frames import see_frame
from worldsim.data.policy import BeginnerPolicy, NoOpSpans, Policy, RandomPolicy, Rest
from worldsim.data.recipe import Recipe
from worldsim.data.worker_pool import Alone, WorkerPool, refuse_to_begin_again
from worldsim.errors import ActionError, ConfigError, DataError, FrameError, did_you_mean
from worldsim.files import locked
from worldsim.registry import find_recipe, hidden, recipes
from worldsim.renamed import renamed_value
from worldsim.spaces import ActionCodec, plain_action

LOCK = "recording.lock"
MIXED_IN = ("no_op_fraction", "beginners", "rests")  # settings that need a recipe with an action of no key


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """What to record, how many frames, and where to."""

    game: str
    """A recipe (see --list), PACKAGE:RECIPE of a folder of yours, or the id of any Gymnasium environment."""
    out: Path | None = None
    """The folder of the dataset (default: data/GAME). A recording that is there already is continued."""
    frames: int = 20_000
    """Stop when the dataset has so many frames, over all splits."""
    workers: int = 2
    """Processes that play at the same time; 1 plays in this process."""
    seed: int = 0
    """Another seed gives other episodes."""
    policy: str = "recipe"
    """What plays: the policy of the "recipe", "random" actions repeated for a few steps, or the folder of an agent."""
    random: float = 0.1
    """With an agent: the share of steps that random actions take, repeated for a few steps."""
    no_op_fraction: float = 0.0
    """Fraction of the steps in which no key is held, 8 to 64 steps each time (recipes only): a policy that explores
    hardly ever stands still, and a world trained on it alone cannot."""
    beginners: float = 0.0
    """Share of the episodes that a beginner plays, who holds one key or taps any (recipes only)."""
    rests: float = 0.0
    """Share of the episodes that end with a long rest without a key, 64 to 400 steps (recipes only)."""
    frame_size: tuple[int, int] | None = None
    """Height and width (default: what the recipe says, or 64 64)."""
    max_episode_steps: int | None = None
    """Cut episodes after so many steps (default: as in the recipe or the environment)."""
    prompt: str = ""
    """The words for every frame, where the game has none of its own."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        least = {"frames": 1, "workers": 1, "seed": 0, "max_episode_steps": 1}
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name} is {value}; it must be at least {low}.")
        size = self.frame_size
        if size is not None and not (len(size) == 2 and all(1 <= side <= LARGEST_SIDE for side in size)):
            raise ConfigError(f"frame_size is {size}; it must be a height and a width of 1 to {LARGEST_SIDE}.")
        check_text(self.prompt)
        if not self.by_agent and self.policy not in ("recipe", "random"):
            hint = renamed_value("policy", self.policy)
            raise ConfigError(f"policy is {self.policy!r}; allowed: 'recipe', 'random', the folder of an agent.{hint}")
        for name in ("random", "beginners", "rests"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; allowed: 0 to 1.")
        if not 0 <= self.no_op_fraction < 1:
            raise ConfigError(f"no_op_fraction is {self.no_op_fraction}; allowed: 0 <= no_op_fraction < 1.")

    @property
    def by_agent(self) -> bool:
        """Whether the policy is an agent's folder."""
        return (Path(self.policy) / "agent.json").is_file()


def record(config: RecordConfig, make_policy: Callable[[], Policy] | None = None) -> Dataset:
    """Record until the dataset has `config.frames` frames; continue a recording that was stopped.

    Args:
        config: what, how much, and where to.
        make_policy: makes the policy, in place of the recipe's: a top-level function or a partial of one, which workers
            import by name. Where the policy is an agent: `worldsim.agents.recording.policy_for(config)`.

    Raises:
        ConfigError: the action space is of a kind that cannot be recorded, or an agent is to play without
            `make_policy`.
        DataError: an unknown game, a folder with something else in it or that another process records into, or a game
            that crashed or gives what cannot be recorded. Finished episodes stay.
        OSError: the disk is full, say. Finished episodes stay, and the recording can be continued.
    """
    refuse_to_begin_again()
    if config.by_agent and make_policy is None:
        raise ConfigError("the policy is an agent; pass make_policy=worldsim.agents.recording.policy_for(config).")
    recipe = recipe_for(config)
    recipe = dataclasses.replace(recipe, make_policy=make_policy or recipe.make_policy)
    for name in MIXED_IN:
        if getattr(config, name) and "" not in recipe.keys:
            raise ConfigError(
                f"{name} is {getattr(config, name)}, but {recipe.name} has no action for no key (recipes have one); "
                f"record with {name} 0."
            )
    out = config.out or Path("data") / recipe.name
    card = _card(recipe, config)
    _check_folder(out)
    with locked(out / LOCK, f"recording into {out}"):
        _open(out, card)
        _play(recipe, config, out)
    return Dataset(out)


def _play(recipe: Recipe, config: RecordConfig, out: Path) -> None:
    """Record the episodes that are missing."""
    # Frames in an episode; a rest may begin late and last long.
    most = 1 + max(recipe.episode_steps, Rest.AFTER[1] + Rest.STEPS[1] if config.rests else 0)
    frames = index = 0
    play = partial(_record, recipe, config, out)
    with (
        Alone(play) if config.workers == 1 else WorkerPool(play, config.workers) as pool,
        tqdm(total=config.frames, unit="frame", desc=f"recording {recipe.name}") as bar,
    ):
        while True:
            # An episode is begun only when it is needed however long those under way turn out to be: so a recording
            # has the same episodes whatever the number of workers, at the price of some waiting at its very end.
            while pool.free and frames + pool.busy * most < config.frames:
                path = episode_path(out, index, recipe.unseen)
                if path.is_file():
                    frames += count_steps(path) + 1
                    bar.initial = bar.n = bar.last_print_n = frames  # the time left counts only what is new
                else:
                    pool.begin(index)
                index += 1
            if not pool.busy:
                return
            frames += sum(pool.wait())
            bar.update(frames - bar.n)


def recipe_for(config: RecordConfig) -> Recipe:
    """Find the recipe that `config` asks for, or make one for the Gymnasium id.

    Raises:
        DataError: neither a recipe nor an environment that can be made.
        MissingDependency: the game is known, but a package that it needs is not installed.
    """
    # Ids first: the games behind the recipes need packages that another environment does not.
    env_id = full_id(config.game)
    recipe = None if env_id in gym.registry or env_id != config.game else find_recipe(env_id)
    if recipe is None and (":" in env_id or env_id in gym.registry):
        recipe = foreign_recipe(env_id, config.max_episode_steps)
    elif recipe is None:
        ids = difflib.get_close_matches(config.game, gym.registry)
        hint = did_you_mean(config.game, {*recipes(), *hidden()})
        hint += f" Gymnasium ids like it: {', '.join(ids)}." if ids else ""
        raise DataError(f"{config.game!r} is neither a recipe nor the id of a Gymnasium environment.{hint}")
    return dataclasses.replace(
        recipe,
        frame_size=config.frame_size or recipe.frame_size,
        episode_steps=config.max_episode_steps or recipe.episode_steps,
    )


def split_of(index: int, unseen: bool) -> str:
    """Get the split of episode `index`: one in ten is held out; with `unseen`, one in 25 shows prompts of its own."""
    if unseen and index % 25 == 24:
        return "unseen"
    return "heldout" if index % 10 == 9 else "train"


def episode_path(out: Path, index: int, unseen: bool) -> Path:
    """Say where episode `index` of a dataset lies."""
    return out / split_of(index, unseen) / f"{index:06d}.safetensors"


def record_episode(recipe: Recipe, config: RecordConfig, index: int) -> Episode:
    """Play episode `index`; the same arguments give the same episode.

    The environment is made anew: not every game forgets all of its last episode at reset.
    """
    split = split_of(index, recipe.unseen)
    seed = int(np.random.SeedSequence([config.seed, index]).generate_state(1)[0])
    rng = np.random.default_rng([config.seed, index])  # not `seed`: that would be the environment's own stream
    policy = recipe.make_policy()
    options = policy.begin(rng, split)
    if config.policy == "random":
        policy = RandomPolicy()
        policy.begin(rng, split)
    elif np.random.default_rng([config.seed, index, 2]).random() < config.beginners:
        policy = BeginnerPolicy(recipe.keys, policy)
        options = policy.begin(rng, split)
    no_ops = NoOpSpans(config.no_op_fraction, np.random.default_rng([config.seed, index, 1]))
    rest = Rest(config.rests, recipe.protect, np.random.default_rng([config.seed, index, 3]))
    options |= rest.options
    limit = recipe.episode_steps if rest.begins is None else rest.begins + Rest.STEPS[1]
    env = recipe.make_env()
    try:
        observation, info = env.reset(seed=seed, options=options or None)
        frames, prompts = [see_frame(env, observation, recipe.frame_size)], [read_prompt(info, config.prompt)]
        actions, rewards, terminations, truncations = [], [], [], []
        while len(actions) < limit and not rest.over(len(actions)):
            action = policy.act(env, observation, info)
            if no_ops.step() or rest.resting(len(actions)):
                action = recipe.keys[""]
            actions.append(copy.deepcopy(action))  # games and policies may change what they gave or were given
            observation, reward, terminated, truncated, info = env.step(copy.deepcopy(action))
            frames.append(see_frame(env, observation, recipe.frame_size))
            prompts.append(read_prompt(info, config.prompt))
            rewards.append(read_reward(reward))
            terminations.append(bool(terminated))
            truncations.append(bool(truncated))
            if terminated or truncated:
                break
        if not terminations[-1]:
            truncations[-1] = True  # by the recorder's own time limit
        space = env.action_space
    finally:
        env.close()
    texts = [json.dumps(prompt, sort_keys=True) for prompt in prompts]
    distinct = list(dict.fromkeys(texts))
    episode = Episode(
        frames=np.stack(frames),
        actions=ActionCodec(space).stack(actions),
        rewards=np.asarray(rewards, np.float32),
        terminated=np.asarray(terminations),
        truncated=np.asarray(truncations),
        prompt_index=np.asarray([distinct.index(text) for text in texts], np.int32),
        prompts=[json.loads(text) for text in distinct],
        meta={"index": index, "seed": seed, "split": split, **({"protected": True} if rest.options else {})},
    )
    check_episode(episode, space, recipe.frame_size)
    return episode


def _record(recipe: Recipe, config: RecordConfig, out: Path, index: int) -> int:
    """Record episode `index` into its file; return its number of frames."""
    failed = f"{recipe.env_id} failed in episode {index} of seed {config.seed}"
    try:
        with game_errors(failed):
            episode = record_episode(recipe, config, index)
    except (ActionError, ConfigError, FrameError) as error:
        raise DataError(f"{failed}: {error}") from error
    write_episode(episode_path(out, index, recipe.unseen), episode)
    return len(episode) + 1


def _card(recipe: Recipe, config: RecordConfig) -> DatasetCard:
    with game_errors(f"cannot make the environment {recipe.env_id!r}"):
        env = recipe.make_env()
        try:
            space = env.action_space
        finally:
            env.close()
    return DatasetCard(
        name=recipe.name,
        frame_size=recipe.frame_size,
        fps=recipe.fps,
        action_space=check_space(space),
        keys={key: plain_action(action) for key, action in recipe.keys.items()},
        notices=recipe.notices,
        recipe=config.game,
        provenance={
            "env_id": recipe.env_id,
            "policy": config.policy,
            **({"random": config.random} if config.by_agent else {}),
            **{name: getattr(config, name) for name in MIXED_IN if getattr(config, name)},
            "seed": config.seed,
            "prompt": config.prompt,
            "episode_steps": recipe.episode_steps,
            "packages": {name: _version(name) for name in ("worldsim-engine", *recipe.packages)},
        },
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # the same import may come from another distribution


def _check_folder(out: Path) -> None:
    """Refuse a folder that has something else in it, before anything is written there."""
    if out.exists() and not (out / FILE).exists():
        if not out.is_dir() or any(file.suffix != ".partial" and file.name != LOCK for file in out.iterdir()):
            raise DataError(f"{out} is there already and is no dataset (it has no {FILE}). Choose another folder.")


def _open(out: Path, card: DatasetCard) -> None:
    """Begin a dataset at `out`, or make sure that the one there was recorded with the same settings."""
    if (out / FILE).exists():
        before, now = _settings(Dataset(out).card), _settings(card)
        if before["keys"] == "{}":  # recorded before the keys of a game were stored
            before["keys"] = now["keys"]
        names = sorted(name for name in before | now if before.get(name) != now.get(name))
        if names and any(out.glob("*/*.safetensors")):
            changes = "; ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in names)
            raise DataError(
                f"{out} was recorded with other settings: {changes}. Record with the same ones, or into another folder."
            )
        if not names and Dataset(out).card == card:
            return
    card.write(out)


def _settings(card: DatasetCard) -> dict[str, str]:
    packages = {f"version of {name}": version for name, version in card.provenance.get("packages", {}).items()}
    settings = {**card.to_json(), **card.provenance, **packages}
    return {k: json.dumps(v, sort_keys=True) for k, v in settings.items() if k not in ("provenance", "packages")}
