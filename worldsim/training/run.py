"""A training run of a world's dynamics: from a recording, or another world, to a world that can be played."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path

import torch

from worldsim.data.episodes import Dataset, count_steps, read_episode
from worldsim.data.latents import LatentData
from worldsim.errors import ConfigError
from worldsim.files import replacing_folder
from worldsim.model_card import write_model_card
from worldsim.models.autoencoder import DiffusersAutoencoder
from worldsim.models.autoencoder_files import describe_autoencoder
from worldsim.models.config import GATE_START, DiTConfig
from worldsim.models.initialise import set_gate
from worldsim.models.text import PromptBook
from worldsim.models.text_encoders import DEFAULT_ENCODER, TransformersEncoder
from worldsim.spaces import ActionCodec
from worldsim.training.autoencoder import load_run
from worldsim.training.configs import DynamicsTraining
from worldsim.training.dynamics import DynamicsTask
from worldsim.training.latent_metric import latent_metric
from worldsim.training.trainer import Trainer
from worldsim.world import World, WorldCard

PICTURE_FRAMES = 32  # frames that say what latents change in the picture
SHIPPED_PROMPTS = 120  # most frequent prompts, which a world carries ready to use
SHIPPED_STARTS = 8  # clips that a world carries to begin from
EXTRA_INPUTS = ("fresh_noise", "camera_size", "image_width", "memory_width")  # that training does not give yet
ADJUSTED = ("context", "newest_base")  # options of the model that a run may choose though it goes on from a world
IN_MOTION = 24  # steps after which a policy has started to move


def train_dynamics(config: DynamicsTraining) -> World:
    """Train, and export the world with the EMA weights to `out/world`. Run again, it goes on where it stopped."""
    task, trainer, dataset, autoencoder = prepare(config)
    trainer.run()
    return export(config, task, trainer, dataset, autoencoder)


def prepare(config: DynamicsTraining) -> tuple[DynamicsTask, Trainer, Dataset, DiffusersAutoencoder]:
    """Encode the recording and build (or resume) the run, without a step of training."""
    torch.set_num_threads(config.trainer.threads)
    dataset, *more = (Dataset(path) for path in (config.data, *config.extra_data))
    for other in more:
        for name in ("action_space", "frame_size", "fps", "keys"):
            here, there = dataset.card.get(name), other.card.get(name)
            if here != there:
                raise ConfigError(
                    f"{other.path} has the {name} {there}, {config.data} has {here}; train on recordings of one game."
                )
    world = None if config.init_from is None else World.from_pretrained(config.init_from, dtype=torch.float32)
    if world is not None:
        _check_options(config.model, config.objective.shape(world.dynamics.config), config.init_from)
    _check_inputs(config.model if world is None else world.dynamics.config, config.init_from)
    autoencoder = load_run(config.autoencoder_folder()) if world is None else world.autoencoder
    data = LatentData.join([LatentData.cached(part, "train", autoencoder) for part in (dataset, *more)])
    val = LatentData.cached(dataset, "heldout", autoencoder)
    if world is None:
        channels, height, width = data.latents.shape[1:]
        encoder = TransformersEncoder(encoder_of(config))
        model = dataclasses.replace(
            config.model,
            latent_channels=channels,
            latent_size=(height, width),
            action_size=autoencoder.temporal_stride * ActionCodec(dataset.action_space).size,
            frames_per_latent=autoencoder.temporal_stride,
            text_width=encoder.width,
            text_tokens=max(config.model.text_tokens, encoder.tokens_of(data.prompts)),
        )
        book = PromptBook(model.text_width, encoder, model.text_tokens)
    else:
        base = config.model.newest_base and world.dynamics.config.output == "x"
        model = dataclasses.replace(world.dynamics.config, newest_base=base)
        book = PromptBook(model.text_width, encoder_of(config, world), model.text_tokens)
        if world.action_space != dataset.action_space:
            raise ConfigError(
                f"the world {config.init_from} has the action space {world.action_space}, the dataset {config.data} "
                f"has {dataset.action_space}; go on with a recording of the same game."
            )
    shape = config.objective.shape(model)
    if world is not None and shape != model:
        raise ConfigError(
            f"the world {config.init_from} predicts {model.output!r} (learned_variance {model.learned_variance}), the "
            f"objective {config.objective.objective!r} trains {shape.output!r} (learned_variance "
            f"{shape.learned_variance}); train with the world's own objective, or without --init-from."
        )
    model = shape
    if model.patch[0] != 1:
        raise ConfigError(f"patch is {model.patch}; training takes patches of one latent in time so far.")
    if world is None:
        _check_options(config.model, model, None)
    # In play a frame sees `context` earlier ones, as a window's last frame does. With one more, a world that was well
    # trained foresaw ends five times too often.
    model = dataclasses.replace(model, context=min(config.model.context, config.batch.longest() - 1))
    metric = None
    if config.objective.needs_metric():
        shown = torch.linspace(0, len(data.latents) - 1, PICTURE_FRAMES).long()
        metric = latent_metric(autoencoder, data.latents[shown])
    torch.manual_seed(config.trainer.seed)
    task = DynamicsTask(
        dataclasses.replace(config, model=model), data, val, book, metric=metric, decode=autoencoder.decode_clip
    )
    if world is not None:
        task.module.load_state_dict(world.dynamics.state_dict())
        if model.newest_base and not world.dynamics.config.newest_base:
            set_gate(task.module, GATE_START)
    return task, Trainer(task, config.trainer, config.folder()), dataset, autoencoder


def _check_options(asked: DiTConfig, model: DiTConfig, world: Path | None) -> None:
    """Raises ConfigError for an option of the model that something else decides: it would be overwritten silently.

    A value that is the default cannot be told from an option that was left out.
    """
    adjusted = (*ADJUSTED, "text_tokens") if world is None else ADJUSTED
    source = "the recording, its autoencoder or the objective" if world is None else f"the world {world}"
    for part in dataclasses.fields(DiTConfig):
        value, taken = getattr(asked, part.name), getattr(model, part.name)
        if part.name not in adjusted and value not in (getattr(DiTConfig(), part.name), taken):
            raise ConfigError(
                f"{part.name} is {value}, but {source} has {taken}; leave the option out, or choose another source."
            )


def _check_inputs(model: DiTConfig, world: Path | None) -> None:
    """Raises ConfigError for a model with an input that training does not give."""
    for name in EXTRA_INPUTS:
        if value := getattr(model, name):
            whose, help = ("", "leave it out") if world is None else (f" in {world}", "go on from another world")
            raise ConfigError(f"{name} is {value!r}{whose}; training does not give this input so far: {help}.")


def encoder_of(config: DynamicsTraining, world: World | None = None) -> str:
    """The name of the text encoder of a run, that of the world to go on from where there is one.

    Raises:
        ConfigError: the config names another than the world's.
    """
    known = None if world is None else world.card.text_encoder
    if known is not None and config.text_encoder not in (None, known):
        raise ConfigError(
            f"text_encoder is {config.text_encoder!r}, the world {config.init_from} was trained with {known!r}; leave "
            "text_encoder out, or train without --init-from."
        )
    return known or config.text_encoder or DEFAULT_ENCODER


def export(
    config: DynamicsTraining, task: DynamicsTask, trainer: Trainer, dataset: Dataset, autoencoder: DiffusersAutoencoder
) -> World:
    """The world of a run, with its EMA weights, saved under `out/world`."""
    dynamics = task.config.model.build()
    dynamics.load_state_dict(trainer.ema)
    counts = torch.bincount(task.data.prompt, minlength=len(task.data.prompts))
    common = [task.data.prompts[i] for i in counts.argsort(descending=True).tolist() if task.data.prompts[i]]
    digest = hashlib.sha256()
    more = [Dataset(path) for path in config.extra_data]
    for part in (dataset, *more):
        for path in part.episodes("train"):
            digest.update(path.read_bytes())
    card = WorldCard(
        name=dataset.card["name"],
        frame_size=dataset.frame_size,
        fps=dataset.card["fps"],
        action_space=dataset.card["action_space"],
        latent_mean=autoencoder.mean.tolist(),
        latent_std=autoencoder.std.tolist(),
        autoencoder=describe_autoencoder(autoencoder),
        keys=dataset.card.get("keys", {}),
        prompts=common[:SHIPPED_PROMPTS],
        text_encoder=task.book.encoder_name,
        sampler=dataclasses.asdict(config.objective.world_sampler()),
        notices=list(dict.fromkeys(text for part in (dataset, *more) for text in part.card.get("notices", []))),
        provenance={
            "recording": dataset.card["provenance"],
            **({"more_recordings": [part.card["provenance"] for part in more]} if more else {}),
            "train_episodes_sha256": digest.hexdigest(),
            "training": json.loads(json.dumps(dataclasses.asdict(task.config), default=lambda path: path.name)),
            "steps": trainer.step,
        },
    )
    starts = []
    for index, path in enumerate(dataset.episodes("heldout")[:SHIPPED_STARTS]):
        steps = count_steps(path)
        # Early, as policies begin well and then try things out: every second clip at rest, the others in motion.
        length = 2 * max(dynamics.config.history, 1) * autoencoder.temporal_stride
        begin = min(IN_MOTION * (index % 2), max(0, steps - length))
        clip = read_episode(path, begin, min(steps, begin + length))
        starts.append({"frames": clip.frames, "actions": clip.actions, "prompt": clip.texts()[-1]})
    world = World(card, autoencoder, dynamics, task.book, starts)
    with replacing_folder(config.folder() / "world") as partial:
        world.save_pretrained(partial)
        write_model_card(world.card, partial)
    return world
