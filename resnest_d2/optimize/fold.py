"""Folding batch norms, which are affine maps at inference, into the convolutions before them."""

from collections import Counter
from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import Any

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, NaiveSyncBatchNorm
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.nn.utils.parametrize import is_parametrized

from ..modeling.deform_conv import DeformConv2d
from ..modeling.split_attention import SplitAttentionConv2d
from ..modeling.sync_batchnorm import CpuSyncBatchNorm

Convolution = nn.Conv2d | nn.ConvTranspose2d
BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm

# A layer is known by its code: a subclass with a forward of its own may do anything.
CONVOLUTIONS = {nn.Conv2d.forward, nn.ConvTranspose2d.forward}
CONVOLUTIONS_WITH_NORM = {Conv2d.forward, DeformConv2d.forward}
NORMS = {nn.BatchNorm2d.forward, nn.SyncBatchNorm.forward, FrozenBatchNorm2d.forward}
NORMS |= {NaiveSyncBatchNorm.forward, CpuSyncBatchNorm.forward}


def has_hooks(module: nn.Module) -> bool:
    """Whether something sees, and may change, what goes into a module or comes out of it."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def is_foldable(norm: Any) -> bool:
    """Whether a layer is a batch norm with statistics of its own, and nothing else."""
    return (
        isinstance(norm, BatchNorm | FrozenBatchNorm2d)
        and norm.running_mean is not None
        and type(norm).forward in NORMS
        and not has_hooks(norm)
    )


def takes_norm(conv: Any, known: Collection[Any]) -> bool:
    """Whether a layer is a convolution by one of the known forwards, and nothing else."""
    return (
        isinstance(conv, Convolution)
        and type(conv).forward in known
        and getattr(type(conv), "_conv_forward", None) in (None, nn.Conv2d._conv_forward)
        and not is_parametrized(conv)
        and not has_hooks(conv)
    )


def check_foldable(model: nn.Module) -> None:
    """Refuse a model in evaluation whose norms depend on the batch nevertheless.

    Raises:
        ValueError: a batch norm has no running statistics.
    """
    for name, module in model.named_modules():
        if isinstance(module, BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"{name} takes its statistics from the batch (track_running_stats=False), so it "
                "cannot be folded"
            )


@torch.no_grad()
def fold(conv: Convolution, norm: nn.Module) -> None:
    """Fold a batch norm into the convolution before it, in place; the norm is not changed."""

    def exchange(weight: torch.Tensor) -> torch.Tensor:
        """Exchange a transposed convolution's channels, (in, out / groups, H, W) at first."""
        if not isinstance(conv, nn.ConvTranspose2d):
            return weight
        return weight.unflatten(0, (conv.groups, -1)).transpose(1, 2).flatten(0, 1)

    kind = conv.weight.dtype
    parts = (conv.bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    bias, mean, variance, scale, shift = (None if p is None else p.double() for p in parts)
    weight, bias = fuse_conv_bn_weights(
        exchange(conv.weight.double()), bias, mean, variance, norm.eps, scale, shift
    )
    conv.weight = nn.Parameter(exchange(weight).to(kind), requires_grad=False)
    conv.bias = nn.Parameter(bias.to(kind), requires_grad=False)


def fold_norms(model: nn.Module) -> int:
    """Fold every batch norm that follows a convolution, in place.

    Known are Detectron2's layers, which hold their norm as ``norm`` (backbones, pyramids, heads,
    deformable convolutions), the two norms of split attention, and neighbours in an
    ``nn.Sequential``, which is taken to be called whole: nobody looks at what the convolution alone
    gives. Everything else stays as it is: subclasses with a ``forward`` of their own, layers with
    hooks or parametrizations, and convolutions that have more than one place in the model.

    Returns:
        how many were folded.
    """
    count = 0
    places = Counter(id(child) for parent in model.modules() for _, child in _children(parent))
    for module in list(model.modules()):
        if takes_norm(module, CONVOLUTIONS_WITH_NORM) and is_foldable(module.norm):
            fold(module, module.norm)
            module.norm = None
            count += 1
        for first, second in _neighbours(module):
            conv, norm = getattr(module, first), getattr(module, second)
            if places[id(conv)] == 1 and _is_bare(conv) and is_foldable(norm):
                fold(conv, norm)
                is_sequence = isinstance(module, nn.Sequential)
                setattr(module, second, nn.Identity() if is_sequence else None)
                count += 1
    return count


def _children(parent: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Its children; unlike ``named_children()`` twice where one has two names."""
    for name, module in parent.named_modules(remove_duplicate=False):
        if name and "." not in name:
            yield name, module


def _neighbours(module: nn.Module) -> list[tuple[str, str]]:
    """Names of children of which the second gets what the first gives, and nobody else does."""
    if isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward:
        return list(pairwise(name for name, _ in _children(module)))
    is_attention = isinstance(module, SplitAttentionConv2d) and all(
        getattr(type(module), name) is getattr(SplitAttentionConv2d, name)
        for name in ("attention", "forward")
    )
    if is_attention and not any(map(has_hooks, module.modules())):
        return [("conv", "bn0"), ("fc1", "bn1")]
    return []


def _is_bare(conv: Any) -> bool:
    """Whether a layer is a convolution with nothing behind it."""
    alone = getattr(conv, "norm", None) is None and getattr(conv, "activation", None) is None
    return alone and takes_norm(conv, CONVOLUTIONS | CONVOLUTIONS_WITH_NORM)


def activate_in_place(model: nn.Module) -> None:
    """Let the ReLU of Detectron2's convolutions write over what the convolution gives."""
    for module in model.modules():
        activation = getattr(module, "activation", None)
        is_plain = type(activation) is nn.ReLU and not has_hooks(activation)
        if is_plain and takes_norm(module, CONVOLUTIONS_WITH_NORM):
            module.activation = nn.ReLU(inplace=True)
