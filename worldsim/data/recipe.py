"""How to record one game: an environment, a policy that plays it, and prompts for its frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym

from worldsim.data.policy import Policy

SPLITS = ("train", "heldout", "unseen")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How to record one game.

    The environment puts `info["prompt"]` (the words in force for the frame just returned) and `info["labels"]`
    (JSON scalars: the true state behind the words) into every info; both are optional. The label "event" names what the
    words say happens now, "" where nothing does: training shows such moments more often. (Without it: any new words.)
    """

    name: str
    summary: str
    env_id: str  # what the provenance says was recorded
    make_env: Callable[[], gym.Env]  # top-level function: workers import it by name
    make_policy: Callable[[], Policy]
    fps: float  # frames per second of game time
    episode_steps: int  # an episode is cut after so many steps
    frame_size: tuple[int, int] = (64, 64)  # (height, width)
    keys: Mapping[str, Any] = field(default_factory=dict)  # "left+up" -> action; "" is no key
    protect: Mapping[str, Any] = field(default_factory=dict)  # options of a reset under which nothing ends an episode
    scheduled_options: tuple[str, ...] = ()  # of a reset: what makes something happen later in the episode
    notices: tuple[str, ...] = ()  # licences of what the frames show
    packages: tuple[str, ...] = ()  # distributions whose versions go into the provenance
    unseen: bool = False  # has prompts that are held out of training
    package: str = ""  # of the game's folder, where its probes are looked for; the registry fills it in
