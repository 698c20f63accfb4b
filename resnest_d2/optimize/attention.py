"""Split attention for inference: the same function in fewer passes over memory."""

import torch

from ..modeling.split_attention import HALF, SplitAttentionConv2d
from .fold import CONVOLUTIONS, CONVOLUTIONS_WITH_NORM, has_hooks, takes_norm
from .replace import Replacement


class FusedSplitAttentionConv2d(Replacement, SplitAttentionConv2d):
    """A :class:`SplitAttentionConv2d` that pools and sums in fewer passes."""

    kind = SplitAttentionConv2d

    @staticmethod
    def fits(layer: SplitAttentionConv2d) -> bool:
        """Whether no part has hooks, and convolutions are of known kinds."""
        convolutions = (layer.conv, layer.fc1, layer.fc2)
        return not any(map(has_hooks, layer.modules())) and all(
            takes_norm(conv, CONVOLUTIONS | CONVOLUTIONS_WITH_NORM) for conv in convolutions
        )

    def pool(self, splits: torch.Tensor) -> torch.Tensor:
        """Pool before summing the splits: one pass, and no temporary of the map's size."""
        dtype = torch.float32 if splits.dtype in HALF else splits.dtype
        return (
            splits.flatten(1, 2)
            .mean((2, 3), keepdim=True, dtype=dtype)
            .view(splits.shape[0], self.radix, self.channels, 1, 1)
            .sum(1)
        )

    def weighted_sum(self, splits: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Interpolate between two splits, whose weights sum to 1."""
        if self.radix == 1:
            return splits[:, 0] * attention[:, 0]
        if self.radix == 2:
            return torch.lerp(splits[:, 1], splits[:, 0], attention[:, 0])
        return super().weighted_sum(splits, attention)
