"""Recording: the same settings give the same files, however often it is stopped and with however many workers."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from PIL import Image

from worldsim.data.contact_sheet import contact_sheet, dataset_contact_sheet
from worldsim.data.episodes import Dataset, read_episode
from worldsim.data.frames import resize_frame
from worldsim.data.policy import NoOpSpans
from worldsim.data.recipe import Recipe
from worldsim.data.record import RecordConfig, episode_path, recipe_for, record, record_episode, split_of
from worldsim.errors import ConfigError, DataError, FrameError

# A game in a module of its own, so that workers can import it. Trouble comes when a file of that name lies beside it.
GAME = '''
import os, time
from pathlib import Path
import gymnasium as gym
import numpy as np

HERE = Path(__file__).parent

class Tiny(gym.Env):
    """Shows its step as brightness; six steps, with new words at the third."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 7}
    observation_space = gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)
    action_space = gym.spaces.Dict({"go": gym.spaces.Discrete(3), "aim.x": gym.spaces.Box(-1, 1, (2,))})

    def __init__(self, render_mode=None):
        self.observation = np.zeros((8, 8, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.color = 0, int(self.np_random.integers(100))
        return self.look()

    def step(self, action):
        self.steps += 1
        if (HERE / "slow").exists():
            time.sleep(0.2)
        if self.steps == 3 and (HERE / "crash").exists():
            raise ValueError("the wheel came off")
        if self.steps == 3 and (HERE / "die").exists():
            os._exit(3)
        if self.steps == 3 and (HERE / "interrupt").exists():
            raise KeyboardInterrupt
        action["aim.x"][:] = 9  # rude
        observation, info = self.look()
        return observation, float(self.steps), self.steps == 6, False, info

    def look(self):
        self.observation[:] = self.color + self.steps  # the same array again
        return self.observation, {"prompt": "late" if self.steps > 2 else "early", "labels": {"half": self.steps // 3}}

gym.register("Tiny-v0", Tiny)
gym.register("Talk-v0", lambda render_mode=None: Talk())

class Talk(Tiny):
    action_space = gym.spaces.Text(3)
'''


@pytest.fixture
def game(tmp_path, monkeypatch):
    folder = tmp_path / "game"
    folder.mkdir()
    (folder / "tiny_game.py").write_text(GAME)
    monkeypatch.syspath_prepend(folder)
    yield folder
    sys.modules.pop("tiny_game", None)
    for name in ("Tiny-v0", "Talk-v0"):
        gym.registry.pop(name, None)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def config(game: str, out: Path, frames: int = 100, **settings) -> RecordConfig:
    return RecordConfig(game=game, out=out, frames=frames, **{"workers": 1, **settings})


def test_splits_are_fixed():
    assert [split_of(k, False) for k in (0, 8, 9, 10, 19, 24)] == [
        "train",
        "train",
        "heldout",
        "train",
        "heldout",
        "train",
    ]
    assert [split_of(k, True) for k in (9, 24, 49, 59)] == ["heldout", "unseen", "unseen", "heldout"]


def test_stopped_recording_equals_unbroken_one(tmp_path):
    settings = {"max_episode_steps": 20, "frame_size": (24, 32), "prompt": "a pole on a cart"}
    whole = record(config("CartPole-v1", tmp_path / "whole", 260, workers=2, **settings))
    part = tmp_path / "part"
    for frames in (1, 90, 260):
        record(config("CartPole-v1", part, frames, **settings))
    assert files(part) == files(whole.path)
    assert whole.episodes("heldout") and not whole.episodes("unseen")

    # A file that is missing or half-written is recorded again, and nothing else is touched.
    before = files(part)
    (part / "train" / "000004.safetensors").unlink()
    (part / "train" / "000004.partial").write_bytes(b"half")
    record(config("CartPole-v1", part, 260, workers=2, **settings))
    assert files(part) == before


def test_what_is_recorded_is_what_the_game_showed(tmp_path):
    dataset = record(config("CartPole-v1", tmp_path / "d", 60, max_episode_steps=12, prompt="a pole"))
    assert dataset.frame_size == (64, 64) and dataset.card.fps == 50 and dataset.card.name == "CartPole-v1"
    assert dataset.card.provenance["packages"]["gymnasium"] == gym.__version__
    env = gym.make("CartPole-v1", render_mode="rgb_array")
    for episode in dataset.read():
        env.reset(seed=episode.meta["seed"])
        assert (episode.frames[0] == resize_frame(np.asarray(env.render()), (64, 64))).all()
        for t, action in enumerate(episode.actions):
            _, reward, terminated, _, _ = env.step(action)
            assert (reward, terminated) == (episode.rewards[t], episode.terminated[t])
            assert (episode.frames[t + 1] == resize_frame(np.asarray(env.render()), (64, 64))).all()
        assert episode.terminated[-1] or episode.truncated[-1]
        assert not episode.truncated[:-1].any()
        assert set(episode.texts()) == {"a pole"}
    env.close()


def test_prompts_labels_and_dict_actions(game, tmp_path):
    dataset = record(config("tiny_game:Tiny-v0", tmp_path / "d", 30, workers=2, frame_size=(8, 8)))
    assert dataset.card.name == "Tiny-v0" and dataset.card.fps == 7
    episodes = dataset.read()
    assert len(episodes) == 5  # of seven frames
    for episode in episodes:
        assert (np.diff(episode.frames[:, 0, 0, 0].astype(int)) == 1).all()  # although the game reuses its array
        assert episode.texts() == ["early"] * 3 + ["late"] * 4
        assert episode.prompts == [
            {"text": "early", "half": 0},
            {"text": "late", "half": 1},
            {"text": "late", "half": 2},
        ]
        assert episode.actions["go"].shape == (6,) and episode.actions["aim.x"].shape == (6, 2)
        assert (abs(episode.actions["aim.x"]) <= 1).all()  # although the game wrote into it
        assert episode.terminated.tolist() == [False] * 5 + [True] and not episode.truncated.any()
    random = record(config("tiny_game:Tiny-v0", tmp_path / "r", 7, policy="random")).read()[0]
    assert (random.frames[0, 0, 0] == episodes[0].frames[0, 0, 0]).all()  # the same game under any policy


@pytest.mark.parametrize("workers", [1, 2])
def test_a_game_that_crashes(game, tmp_path, workers):
    wanted = config("tiny_game:Tiny-v0", tmp_path / "d", 70, workers=workers)
    record(config("tiny_game:Tiny-v0", tmp_path / "d", 14))
    (game / "crash").touch()
    with pytest.raises(DataError, match="episode [23] of seed 0: ValueError: the wheel came off"):
        record(wanted)
    assert len(Dataset(tmp_path / "d").episodes()) == 2
    (game / "crash").unlink()
    assert len(record(wanted).episodes()) == 9


def test_a_process_that_dies(game, tmp_path):
    (game / "die").touch()
    with pytest.raises(DataError, match=r"episode [01] died \(exit code 3\)"):
        record(config("tiny_game:Tiny-v0", tmp_path / "d", workers=2))


def test_interrupt(game, tmp_path):
    (game / "interrupt").touch()
    with pytest.raises(KeyboardInterrupt):
        record(config("tiny_game:Tiny-v0", tmp_path / "d", 7))
    (game / "interrupt").unlink()
    (game / "slow").touch()
    command = "record tiny_game:Tiny-v0 --frames 7000 --workers 2 --out".split()
    child = subprocess.Popen(
        [sys.executable, "-m", "worldsim.cli", *command, str(tmp_path / "d")],
        env={**os.environ, "PYTHONPATH": str(game)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # a background job ignores it
    )
    assert child.stderr is not None
    with child.stderr:
        shown = ""
        while "%" not in shown or "| 0/7000" in shown.split("\r")[-1]:  # until the first episode is there
            shown += child.stderr.read(1)
        child.send_signal(signal.SIGINT)
        assert child.wait(20) == 130
        assert child.stderr.read().endswith("worldsim: stopped\n")
    (game / "slow").unlink()
    dataset = record(config("tiny_game:Tiny-v0", tmp_path / "d", 70))
    assert [int(path.stem) for path in dataset.episodes()] == list(range(9))


def test_other_settings_are_refused(game, tmp_path):
    out = tmp_path / "d"
    record(config("tiny_game:Tiny-v0", out, 1, seed=5))
    before = files(out)
    with pytest.raises(DataError, match='other settings: policy was "recipe", is "random"; seed was 5, is 6'):
        record(config("tiny_game:Tiny-v0", out, 50, seed=6, policy="random"))
    card = json.loads((out / "dataset.json").read_text())
    card["provenance"]["packages"]["numpy"] = "1.0"
    (out / "dataset.json").write_text(json.dumps(card))
    with pytest.raises(DataError, match='version of numpy was "1.0"'):
        record(config("tiny_game:Tiny-v0", out, 50, seed=5))
    for path in (out / "train").iterdir():
        path.unlink()
    record(config("tiny_game:Tiny-v0", out, 1, seed=5))  # nothing to mix with
    assert files(out) == before


def test_folders_with_something_else_in_them(game, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    for out in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(DataError, match="is no dataset"):
            record(config("tiny_game:Tiny-v0", out))


def test_games_that_cannot_be_recorded(game, tmp_path):
    with pytest.raises(DataError, match="Did you mean 'car-racing'.*"):
        recipe_for(config("car-race", tmp_path))
    with pytest.raises(DataError, match="Gymnasium ids like it: CartPole"):
        recipe_for(config("CartPole-v7", tmp_path))
    with pytest.raises(DataError, match="cannot make the environment 'no_such_package:X-v0'"):
        recipe_for(config("no_such_package:X-v0", tmp_path))
    with pytest.raises(ConfigError, match="cannot be recorded; allowed: Discrete"):
        record(config("tiny_game:Talk-v0", tmp_path / "d"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"frames": 0},
        {"workers": 0},
        {"seed": -1},
        {"frame_size": (0, 4)},
        {"max_episode_steps": 0},
        {"policy": "x"},
        {"no_op_fraction": 1.0},
    ],
)
def test_wrong_settings(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        RecordConfig(**{"game": "CartPole-v1", **wrong})


class Teller:
    """A policy that asks for a prompt by way of the reset options, and notes the split."""

    def begin(self, rng, split):
        return {"word": f"{split} {rng.integers(9)}"}

    def act(self, env, observation, info):
        return env.action_space.sample()


class Told(gym.Env):
    observation_space = gym.spaces.Box(0, 255, (4, 4, 3), np.uint8)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros((4, 4, 3), np.uint8), {"prompt": (options or {})["word"]}

    def step(self, action):
        return np.zeros((4, 4, 3), np.uint8), 0.0, False, False, {}


def test_recipe_with_unseen_prompts():
    recipe = Recipe(
        name="told", summary="", env_id="Told", make_env=Told, make_policy=Teller, fps=1, episode_steps=2, unseen=True
    )
    for policy in ("recipe", "random"):
        episode = record_episode(recipe, RecordConfig(game="told", policy=policy), 24)
        assert episode.texts()[0].startswith("unseen ") and episode.texts()[1:] == ["", ""]
        assert episode.frames.shape == (3, 64, 64, 3) and episode.truncated.tolist() == [False, True]
    assert episode_path(Path("d"), 24, True) == Path("d/unseen/000024.safetensors")


def test_standing_still(tmp_path):
    """No-op spans are whole, take their fraction, and change nothing of what is chosen otherwise."""
    spans = NoOpSpans(0.3, np.random.default_rng(0))
    still = np.array([spans.step() for _ in range(20_000)])
    assert abs(still.mean() - 0.3) < 0.05
    edges = np.flatnonzero(np.diff(np.concatenate([[0], still.astype(int), [0]])))
    lengths = edges[1::2] - edges[::2]
    assert lengths[:-1].min() >= NoOpSpans.SHORTEST

    recipe = Recipe(
        name="told",
        summary="",
        env_id="Told",
        make_env=Told,
        make_policy=Teller,
        fps=1,
        episode_steps=200,
        keys={"": 0},
    )
    settings = [RecordConfig(game="told", policy="random", no_op_fraction=fraction) for fraction in (0.0, 0.6)]
    plain, paused = (record_episode(recipe, setting, 3).actions for setting in settings)
    changed = plain != paused
    assert changed.any() and (paused[changed] == 0).all() and not changed.all()
    with pytest.raises(ConfigError, match="no action for no key"):
        record(config("CartPole-v1", tmp_path / "d", 10, no_op_fraction=0.2))


def test_sheets(game, tmp_path):
    frames = [np.full((4, 6, 3), i, np.uint8) for i in range(5)]
    assert contact_sheet(frames, columns=3).size == (3 * 8 + 2, 2 * 6 + 2)
    plain = np.asarray(contact_sheet(frames, columns=3, scale=2))
    assert plain[2, 2].tolist() == [0] * 3 and (plain[12:20, 2:14] == 3).all()
    assert contact_sheet(frames, 3, captions=["a row", "b" * 500]).height > contact_sheet(frames, 3).height
    assert contact_sheet(frames, 3, captions=list("abcde")).size == contact_sheet(frames, 3, captions=["", ""]).size
    for columns, scale, captions in ((0, 1, None), (3, 0, None), (3, 1, ["one"])):
        with pytest.raises(ConfigError, match="sheet|captions"):
            contact_sheet(frames, columns, scale, captions)
    with pytest.raises(ConfigError, match="0 frames"):
        contact_sheet([], 3)
    with pytest.raises(FrameError, match="several sizes"):
        contact_sheet([frames[0], frames[0][:2]], 3)

    dataset = record(config("tiny_game:Tiny-v0", tmp_path / "d", 77, frame_size=(16, 16)))
    assert [len(dataset.episodes(split)) for split in ("train", "heldout")] == [10, 1]
    path = dataset_contact_sheet(dataset, tmp_path / "sheet.png", episodes=3, columns=4)
    with Image.open(path) as image:
        assert image.width == 4 * 18 + 2
    assert read_episode(dataset.episodes("heldout")[0]).meta["index"] == 9
