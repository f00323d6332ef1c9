"""Offline video: patterns of given frames, and clips that are sampled from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import tiny_dynamics
from torch import Tensor, nn

from worldsim.data.episodes import Dataset
from worldsim.errors import ConfigError
from worldsim.models.config import DiTConfig
from worldsim.training.run import prepare
from worldsim.types import TextContext
from worldsim.video.patterns import between, extension, given_frames
from worldsim.video.sampling import sample_clips

FRAMES = 5


def test_patterns() -> None:
    assert given_frames(4, 0, -1).tolist() == [True, False, False, True]
    assert extension(4, 1).tolist() == [True, False, False, False]
    assert extension(4, 3, before=True).tolist() == [False, True, True, True]
    assert between(5, 1, 2).tolist() == [True, False, False, True, True]
    for call, message in (
        (lambda: given_frames(4, 4), "frame 4 is not in a clip of 4; allowed: -4 to 3"),
        (lambda: extension(4, 4), "4 of 4 frames are known; allowed: 1 to 3"),
        (lambda: between(3, 2, 1), "leave none between"),
    ):
        with pytest.raises(ConfigError, match=message):
            call()


def clips_of(task, count: int) -> tuple[Tensor, TextContext]:
    starts = task.val.sample_starts(count, FRAMES, torch.Generator().manual_seed(0))
    clips = task.val.latents[starts.unsqueeze(1) + torch.arange(FRAMES)].float()
    index = torch.zeros(count, FRAMES, dtype=torch.long)
    return clips, TextContext.of([task.book.encode("a cart")], task.config.model.text_tokens, index)


def test_given_frames_stay_and_clips_do_not_depend_on_one_another(
    dataset: Dataset, autoencoder_run: Path, tmp_path: Path
) -> None:
    task, *_ = prepare(tiny_dynamics(dataset, autoencoder_run, tmp_path, objective="flow"))
    for parameter in task.module.parameters():  # blocks start as the identity: frames would not see one another
        nn.init.normal_(parameter, std=0.2)
    (clips, text), given = clips_of(task, 3), given_frames(FRAMES, 1, -1)
    sampled = sample_clips(task.module.eval(), clips, given, text, seeds=[5, 6, 7], steps=3)
    assert torch.equal(sampled[:, given], clips[:, given])
    assert not torch.equal(sampled[:, ~given], clips[:, ~given])
    one = TextContext(text.states, text.mask, text.index[1:2])
    alone = sample_clips(task.module, clips[1:2], given, one, seeds=[6], steps=3)
    torch.testing.assert_close(alone, sampled[1:2], rtol=1e-4, atol=1e-4)
    other = clips.clone()
    other[:, ~given] += 1  # what is not given is not looked at
    assert torch.equal(sample_clips(task.module, other, given, text, seeds=[5, 6, 7], steps=3), sampled)
    later = clips.clone()
    later[:, -1] += 1  # earlier frames see the given last one
    assert (sample_clips(task.module, later, given, text, seeds=[5, 6, 7], steps=3)[:, 0] != sampled[:, 0]).any()
    causal = [
        sample_clips(task.module, part, given, text, seeds=[5, 6, 7], steps=3, mask="causal") for part in (clips, later)
    ]
    assert torch.equal(causal[0][:, 0], causal[1][:, 0])  # and under another mask they do not


def test_training_on_clips(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """Some steps are of clips, which have neither history nor actions nor rewards; the others are as ever."""
    config = tiny_dynamics(dataset, autoencoder_run, tmp_path, objective="flow", clip_prob=0.5, rollout_start=0)
    task, *_ = prepare(config)
    kinds = set()
    for step in range(12):
        batch = task.forcing.segments(step, torch.Generator().manual_seed(step))
        (asked,) = task.objective.corrupt(batch, torch.Generator().manual_seed(step))
        kinds.add(asked.mask)
        if asked.mask == "full":
            given = asked.given
            assert given.history_mask is not None
            assert not (given.history_mask.any() or given.action_mask.any() or given.previous_mask.any())
            assert torch.equal(asked.x[asked.is_context], batch.target[asked.is_context])
        loss, _ = task.loss(step, torch.Generator().manual_seed(step))
        assert torch.isfinite(loss)
    assert kinds == {"causal", "full"}
    with pytest.raises(ConfigError, match="clip_prob is 2"):
        tiny_dynamics(dataset, autoencoder_run, tmp_path, objective="flow", clip_prob=2.0)


@pytest.mark.slow
def test_a_clip_is_sampled_from_its_last_frame(dataset: Dataset, autoencoder_run: Path, tmp_path: Path) -> None:
    """After 200 steps it leads up to that frame: the nearer in time the nearer to the truth, and nearer than others."""
    model = DiTConfig(width=64, heads=2, pattern="stst", text_layers=(0,), history=2, action_history=2, context=4)
    config = tiny_dynamics(
        dataset, autoencoder_run, tmp_path, steps=200, objective="flow", model=model, clip_prob=1.0, segments=8,
        image_samples=0, rollout_segments=0, event_segments=0, terminal_segments=0, no_history=0.0,
    )  # fmt: skip
    task, trainer, *_ = prepare(config)
    for _ in range(200):
        trainer.train_step()
    clips, text = clips_of(task, 48)
    sampled = sample_clips(task.module.eval(), clips, given_frames(FRAMES, -1), text)
    error = (sampled - clips).square().mean(dim=(0, 2, 3, 4))
    others = (clips.roll(1, dims=0) - clips).square().mean(dim=(0, 2, 3, 4))
    assert error[-1] == 0 and (error[1:-1] < error[:-2]).all()
    # Four frames away, where all episodes begin alike, another clip is as near.
    assert (error[2:] < 0.75 * others[2:]).all() and error[1] < others[1], (error, others)
