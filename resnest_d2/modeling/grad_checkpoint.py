"""Gradient checkpointing of a block that holds batch norms."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


@contextmanager
def frozen_running_statistics(module: nn.Module) -> Iterator[None]:
    """Let batch norms below ``module`` normalise as in training, their averages unmoved."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    saved = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms]
    discarded = torch.zeros((), dtype=torch.long)  # on the CPU, where counting starts no kernel
    try:
        for norm, _, batches in saved:
            norm.momentum = 0.0
            norm.num_batches_tracked = None if batches is None else discarded
        yield
    finally:
        for norm, momentum, batches in saved:
            norm.momentum, norm.num_batches_tracked = momentum, batches


@torch.compiler.disable  # Dynamo cannot trace the context that keeps the statistics
def checkpoint_block(block: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Run ``block.compute(x)``, and run it again in the backward pass instead of keeping its maps.

    The first pass alone updates running statistics.
    """
    return checkpoint(
        block.compute,
        x,
        use_reentrant=False,
        preserve_rng_state=False,  # no block draws random numbers
        context_fn=lambda: (nullcontext(), frozen_running_statistics(block)),
    )
