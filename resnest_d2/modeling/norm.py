"""Normalization layers by name."""

from collections.abc import Callable

import torch
from detectron2.layers import get_norm
from torch import nn

from ..config import ConfigError

NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")

Norm = str | Callable[[int], nn.Module] | None
"""A name that Detectron2's ``get_norm`` knows, a callable that takes a number of channels, or "" or
None for no norm."""


class GroupNorm(nn.GroupNorm):
    """Group norm that also takes a single value per group.

    With 32 groups the attention's narrowest norm sees one channel a group on a 1x1 map, so its
    output is its bias. ``torch.nn.GroupNorm`` refuses that for one image, in inference too.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def make_norm(norm: Norm, channels: int) -> nn.Module | None:
    """Detectron2's ``get_norm`` with a message for a wrong name.

    Raises:
        ConfigError: the name is unknown, or GN's 32 groups do not divide the channels.
    """
    if norm == "GN":
        if channels % 32:
            raise ConfigError(f"norm 'GN' does not fit {channels} channels: 32 must divide them")
        return GroupNorm(32, channels)
    if isinstance(norm, str) and norm not in NORMS:
        raise ConfigError(f"norm must be one of {', '.join(map(repr, NORMS))}, got {norm!r}")
    return get_norm(norm, channels)
