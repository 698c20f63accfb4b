"""Split attention for inference: the same function in fewer passes over memory."""

import copy

import torch
import torch.nn.functional as F
from torch import nn

from ..modeling.split_attention import SplitAttentionConv2d, is_half, logits_in_fp32, needs_fp32
from .fold import CONVOLUTIONS, CONVOLUTIONS_WITH_NORM, fold, has_hooks, is_foldable, takes_norm


class FusedSplitAttentionConv2d(nn.Module):
    """A :class:`SplitAttentionConv2d` with its norms folded.

    Pooled first and then summed over the splits, the mean takes one pass and no temporary of the
    map's size; ``fc2``'s outputs are in the splits' order to begin with; and the weighted sum of
    two splits, whose weights sum to 1, is one interpolation.

    Args:
        source: what to take over; it is not changed.
    """

    deformable: torch.jit.Final[bool]
    radix: torch.jit.Final[int]

    def __init__(self, source: SplitAttentionConv2d) -> None:
        super().__init__()
        self.radix, self.channels = source.radix, source.channels
        self.deformable = source.deformable
        self.conv, self.fc1, self.fc2 = map(copy.deepcopy, (source.conv, source.fc1, source.fc2))
        self.bn0, self.bn1 = copy.deepcopy(source.bn0), copy.deepcopy(source.bn1)
        if is_foldable(self.bn0):
            fold(self.conv, self.bn0)
            self.bn0 = None
        if is_foldable(self.bn1):
            fold(self.fc1, self.bn1)
            self.bn1 = None
        self.groups = source.groups
        if source.groups == 1:  # cardinal-major is radix-major then
            self.order: list[int] | None = None
        else:
            per_group = self.channels // self.groups
            order = torch.arange(self.channels * self.radix)
            order = order.view(self.groups, self.radix, per_group).transpose(0, 1).flatten()
            self.order = order.tolist()

    def forward(self, x: torch.Tensor, offset: torch.Tensor | None = None) -> torch.Tensor:
        """As in :meth:`SplitAttentionConv2d.forward`."""
        x = self.conv(x, offset) if self.deformable else self.conv(x)
        if self.bn0 is not None:
            x = self.bn0(x)
        x = F.relu_(x)
        pooled = x.mean((2, 3), keepdim=True, dtype=torch.float32 if is_half(x) else x.dtype)
        if self.radix > 1:
            pooled = pooled.view(x.shape[0], self.radix, self.channels, 1, 1).sum(1)
        weights = self.logits(pooled)
        if self.order is not None:
            weights = weights[:, self.order]
        if self.radix == 1:
            return x * torch.sigmoid(weights).to(x.dtype)
        if self.radix == 2:
            first, second = x[:, : self.channels], x[:, self.channels :]
            # A softmax over two is the sigmoid of their difference.
            share = torch.sigmoid(weights[:, : self.channels] - weights[:, self.channels :])
            return torch.lerp(second, first, share.to(x.dtype))
        splits = x.view(x.shape[0], self.radix, self.channels, x.shape[2], x.shape[3])
        shares = weights.view(x.shape[0], self.radix, self.channels, 1, 1).softmax(1)
        return (splits * shares.to(x.dtype)).sum(1)

    def logits(self, pooled: torch.Tensor) -> torch.Tensor:
        """The attention branch, as in :meth:`SplitAttentionConv2d.attention` in fp32 if need be."""
        if not torch.jit.is_scripting():  # noqa: SIM102  (TorchScript drops only a lone condition)
            if needs_fp32(pooled, self.fc1):
                return logits_in_fp32(pooled, self.fc1, self.bn1, self.fc2)
        x = self.fc1(pooled.to(self.fc1.weight.dtype))
        if self.bn1 is not None:
            x = self.bn1(x)
        return self.fc2(F.relu_(x))


def fuse_attention(model: nn.Module) -> int:
    """Put the fused layer in place of every split attention below ``model``.

    Subclasses, and layers that have hooks or whose convolutions were replaced, stay as they are.

    Returns:
        how many there were.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is SplitAttentionConv2d and _is_plain(child):
                setattr(parent, name, FusedSplitAttentionConv2d(child))
                count += 1
    return count


def _is_plain(layer: SplitAttentionConv2d) -> bool:
    """Whether all of a layer is as its class made it."""
    convolutions = (layer.conv, layer.fc1, layer.fc2)
    return not any(map(has_hooks, layer.modules())) and all(
        takes_norm(conv, CONVOLUTIONS | CONVOLUTIONS_WITH_NORM) for conv in convolutions
    )
