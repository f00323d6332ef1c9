"""Make an engine of a world, with some settings of the world's sampler changed; loads torch only when called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # an environment of a remote engine needs none of these, and no torch
    from worldsim.engine.engine import Engine
    from worldsim.world import World


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How a world is played: what an engine may use, and what its sampler does."""

    memory_mb: int = 1024
    """For the sessions and their snapshots."""
    min_sessions: int = 0
    """Reserve more memory where so many sessions need more."""
    max_sessions: int | None = None
    """Besides what memory allows."""
    clips: int | None = None
    """Of so many of the last clips that sessions began from the memory is stored (default: the engine's)."""
    threads: int | None = None
    """CPU cores (default: all)."""
    runtime: str = "auto"
    """See `worldsim.engine.engine.Engine`."""
    isolated: bool = False
    """Sample every session by itself."""
    buckets: tuple[int, ...] | None = None
    """Fill batches up to these sizes; see `worldsim.engine.engine.Engine`."""
    num_denoising_steps: int | None = None
    """Of the sampler, as are the next three (default: what the world's card says)."""
    history_sigma: float | None = None
    guidance: float | None = None
    noise_scale: float | None = None


def make_engine(world: str | Path | World, config: EngineConfig) -> Engine:
    """Make an engine of a world.

    Args:
        world: one in memory, a folder or a hub id (`worldsim.envs.shipped.world_path` gives a shipped one's folder).
        config: its settings.

    Raises:
        WorldNotFound, WorldFormatError, WorldError: the world cannot be loaded.
        ConfigError: a setting that cannot work.
        RuntimeUnavailable: this machine cannot build the runtime.
    """
    from worldsim.diffusion.sampler import SamplerConfig
    from worldsim.engine.engine import CLIPS, Engine
    from worldsim.world import World

    found = world if isinstance(world, World) else World.from_pretrained(world)
    sampler = SamplerConfig.of(
        found.card.sampler,
        num_denoising_steps=config.num_denoising_steps,
        history_sigma=config.history_sigma,
        guidance=config.guidance,
        noise_scale=config.noise_scale,
    )

    def with_memory(memory_mb: int) -> Engine:
        return Engine(
            found,
            sampler=sampler,
            runtime=config.runtime,
            threads=config.threads,
            isolated=config.isolated,
            buckets=config.buckets,
            max_sessions=config.max_sessions,
            memory_mb=memory_mb,
            clips=CLIPS if config.clips is None else config.clips,
        )

    engine = with_memory(config.memory_mb)
    if engine.table.capacity < config.min_sessions:
        engine = with_memory(int(config.min_sessions * engine.table.session_bytes / 1e6) + 1)
    return engine
