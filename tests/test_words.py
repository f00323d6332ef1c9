"""The field's words: names that were replaced do not come back.

A row is (old name, the folder or folders where it may not be a name, the name of today). More rows follow as more names
are replaced.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parent.parent
OLD = {
    "FrameCache": ("", "KVCache"),
    "BlockPool": ("", "KVBlockPool"),
    "Opening": ("", "SessionSpec"),
    "Outcome": ("", "ModelOutput"),
    "Wish": ("", "PendingStep"),
    "Kept": ("", "StoredSnapshot"),
    "Mark": ("", "RequestKey"),
    "LevelEmbedding": ("", "SigmaEmbedder"),
    "Crew": ("", "WorkerPool"),
    "crew": ("", "pool"),
    "clean_pass": ("", "cache_sigma"),
    "flatten_actions": ("", "ActionCodec"),
    "stack_actions": ("", "ActionCodec"),
    "Prepare": ("", "Denoise"),
    "Conditions": ("", "ContextInputs"),
    "Past": ("worldsim", "LayerCache"),
    "Shared": ("worldsim", "Context"),
    "Prediction": ("worldsim", "DiTOutput"),
    "Judge": ("", "Heads"),
    "judge": ("worldsim/models", "heads"),
    "level": ("worldsim/models", "sigma"),
    "TextAttention": ("", "CrossAttention"),
    "in_fixed_rows": ("", "pad_rows"),
    "Windows": ("", "SegmentBatch"),
    "draws": ("worldsim/training", "samples"),
    "training_levels": ("", "sample_sigmas"),
    "newborn": ("", "new_session"),
    "dreams": ("", "imagined_envs"),
    "temperature": ("", "noise_scale"),
    "shared_noise": ("", "spatially_shared_noise"),
    "picture_weights": ("", "latent_metric"),
    "draw_steps": ("", "num_denoising_steps"),
    "steps_drawn": ("", "denoising_steps"),
    "draws_after": ("", "second_sample_start"),
    "mix": ("worldsim/diffusion", "add_noise"),
    "schedule": ("worldsim/diffusion", "get_schedule"),
    "pin": ("worldsim/engine", "reserve"),
    "windows": ("worldsim/training", "segments"),
    "stills": ("worldsim/training", "image_samples"),
    "own_after": ("worldsim/training", "rollout_start"),
    "own_frames": ("worldsim/training", "rollout_length"),
    "own_pool": ("worldsim/training", "rollout_buffer"),
    "own_reuse": ("worldsim/training", "rollout_reuse"),
    "own_rests": ("worldsim/training", "rollout_rests"),
    "own_trust": ("worldsim/training", "rollout_trust"),
    "end_weight": ("worldsim/training", "termination_weight"),
    "typical": ("worldsim", "mean_frame or medians"),
    "focus": ("worldsim/training", "saliency_weight"),
    "held": (("worldsim/training", "bridges", "demos"), "val (data), pressed (keys)"),
    "sheet": ("worldsim", "sample_grid or contact_sheet"),
    "exactness": ("", "batch_invariance"),
    "stretches": ("worldsim/evaluation", "segments"),
    "Stretches": ("", "Segments"),
    "glances": ("", "look_aways"),
    "permuted": ("", "shuffled"),
    "foreign_actions": ("", "shuffled_actions"),
    "obedience": ("", "prompt_adherence"),
    "to_grey": ("", "to_grayscale"),
    "alone": ("", "isolated"),
    "told": (("bridges", "envs", "demos"), "event_onset, or what it is"),
    "tell": (("bridges", "envs", "demos"), "report"),
    "twin": ("", "fork"),
    "twins": ("", "forks"),
    "Held": ("demos", "PressedKeys"),
    "fresh": (
        ("worldsim/training", "worldsim/engine", "worldsim/agents", "worldsim/data", "bridges", "demos"),
        "no_history, selected, or what it is",
    ),
    "wish": ("", "pending, control"),
    "wishes": ("", "pending"),
    "mark": ("bridges", "request_key"),
    "kept": (
        ("worldsim/agents", "worldsim/data", "worldsim/engine", "worldsim/evaluation", "bridges", "demos"),
        "stored",
    ),
    "given": (("worldsim/training", "bridges", "envs", "demos"), "what it is"),
    "opening": ("worldsim/engine", "spec"),
    "openings": ("worldsim/engine", "specs"),
    "draw_opening": ("", "sample_spec"),
    "Explorer": ("", "Policy"),
    "explorer": ("", "policy"),
    "make_explorer": ("", "make_policy"),
    "explorer_for": ("", "policy_for"),
    "RandomExplorer": ("", "RandomPolicy"),
    "AgentExplorer": ("", "AgentPolicy"),
    "Beginner": ("", "BeginnerPolicy"),
    "Actor": ("", "VectorPolicy"),
    "actor": ("", "policy"),
    "RandomActor": ("", "RandomVectorPolicy"),
    "Act": ("", "RolloutPolicy"),
    "drive": ("", "policy"),
    "Driver": ("", "CarRacingPolicy or RoadPolicy"),
    "driven": ("", "RoadPolicy"),
    "Walker": ("", "DoomPolicy"),
    "Pauses": ("", "NoOpSpans"),
    "idle": ("", "no_op"),
    "Choices": ("", "DiscreteActions"),
    "choices": ("worldsim/agents", "actions"),
    "find_choices": ("", "find_actions"),
    "hold": ("worldsim", "action_repeat"),
    "grey": ("", "grayscale"),
    "Grey": ("", "Grayscale"),
    "as_agents_see": ("", "agent_observation"),
    "horizon": ("worldsim/evaluation", "long_rollout"),
    "Horizon": ("", "LongRollout"),
    "bands": ("worldsim/evaluation", "reference"),
    "band": ("worldsim/evaluation", "reference_range"),
    "Truth": ("", "ReferenceStats"),
    "reach": ("worldsim/agents", "context_frames"),
}
FOLDERS = ("worldsim", "envs", "bridges", "demos")


def names(source: str) -> set[str]:
    """All names that a module defines or uses: variables, attributes, arguments, keywords, classes, modules."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        for field in ("id", "attr", "arg", "name", "asname"):
            value = getattr(node, field, None)
            if isinstance(value, str):
                found |= set(value.split("."))
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= set(node.module.split("."))
    return found


@pytest.fixture(scope="module")
def modules() -> dict[str, set[str]]:
    """The names of each module of the package, by its path."""
    paths = {path.resolve() for folder in FOLDERS for path in (TOP / folder).rglob("*.py")}
    return {str(path.relative_to(TOP)): names(path.read_text()) for path in sorted(paths)}


def test_old_names_are_found() -> None:
    assert {"crew", "Wish", "pin", "mix"} <= names("from a.crew import Wish\nx.pin(mix=1)")


@pytest.mark.parametrize("old", OLD)
def test_old_names_are_gone(old: str, modules: dict[str, set[str]]) -> None:
    folder, new = OLD[old]
    assert len(modules) > 100
    found = [path for path, known in modules.items() if path.startswith(folder) and old in known]
    assert not found, f"{old} is called {new} now; it is a name in {found}"
