"""First weights of the dynamics, and what is done to a model once before it trains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from worldsim.models.attention import CrossAttention
from worldsim.models.config import GATE_OPEN, GATE_START

if TYPE_CHECKING:
    from worldsim.models.dit import DiT


def initialise(dit: DiT) -> None:
    """Draw the weights.

    adaLN-zero: gates, cross-attention, extra inputs and outputs are zero, so that every block starts as the identity.
    """
    for module in dit.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    readers = [module.out for module in dit.modules() if isinstance(module, CrossAttention)]
    extras = [embedder for embedder in (dit.noise, dit.camera, dit.image) if embedder is not None]
    for last in (*readers, *extras, dit.modulation, dit.final, dit.heads.reward[-1], dit.heads.termination[-1]):
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
    set_gate(dit, GATE_START if dit.config.newest_base else GATE_OPEN)


def set_gate(dit: DiT, logit: float) -> None:
    """Let every token go as far from the newest frame to what it predicts as `logit` says, whatever it sees."""
    nn.init.zeros_(dit.gate.weight)
    nn.init.constant_(dit.gate.bias, logit)
    dit.gate.requires_grad_(dit.config.newest_base)


def compile_blocks(dit: DiT) -> None:
    """Compile the blocks for training, which takes two minutes once and then less than half of the time.

    Only passes with gradients over segments use them; the runtimes of play compile a whole pass instead.
    """
    torch._dynamo.config.recompile_limit = 64  # of all blocks together: kinds of layers times shapes of batches
    for block in dit.blocks:
        block.compiled = torch.compile(block.forward, dynamic=False)  # type: ignore[assignment]
