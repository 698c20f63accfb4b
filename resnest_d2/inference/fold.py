"""Folding batch norms, which are affine maps at inference, into the convolutions before them."""

from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Convolution = nn.Conv2d | nn.ConvTranspose2d


def is_foldable(norm: Any) -> bool:
    """Whether a layer is a batch norm with statistics of its own."""
    return isinstance(norm, _BatchNorm | FrozenBatchNorm2d) and norm.running_mean is not None


def check_foldable(model: nn.Module) -> None:
    """Refuse a model whose norms depend on the batch.

    Raises:
        ValueError: a batch norm is in training, or has no running statistics.
    """
    for name, module in model.named_modules():
        if not isinstance(module, _BatchNorm):
            continue
        if module.training:
            raise ValueError(f"{name} is in training; call model.eval() first")
        if module.running_mean is None:
            raise ValueError(
                f"{name} takes its statistics from the batch (track_running_stats=False), so it "
                "cannot be folded"
            )


def affine(norm: nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of a batch norm at inference, in fp64, each of shape (channels,)."""
    mean, var = norm.running_mean.double(), norm.running_var.double()
    scale = (var + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -mean * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    return scale, shift


@torch.no_grad()
def fold(conv: Convolution, norm: nn.Module) -> None:
    """Fold a batch norm into the convolution before it, in place; the norm is not changed."""
    scale, shift = affine(norm)
    weight = conv.weight.double()
    if isinstance(conv, nn.ConvTranspose2d):  # (in, out / groups, H, W)
        per_group = weight.shape[1]
        grouped = weight.unflatten(0, (conv.groups, -1))
        weight = (grouped * scale.view(conv.groups, 1, per_group, 1, 1)).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, 1, 1, 1)
    if conv.bias is not None:
        shift = shift + conv.bias.double() * scale
    kind = conv.weight.dtype
    conv.weight = nn.Parameter(weight.to(kind), requires_grad=False)
    conv.bias = nn.Parameter(shift.to(kind), requires_grad=False)


def fold_norms(model: nn.Module) -> int:
    """Fold every batch norm that follows a convolution, in place.

    Known are Detectron2's layers, which hold their norm as ``norm`` (backbones, pyramids, heads,
    deformable convolutions), and neighbours in an ``nn.Sequential``.

    Returns:
        how many were folded.
    """
    count = 0
    for module in list(model.modules()):
        if isinstance(module, Convolution) and is_foldable(getattr(module, "norm", None)):
            fold(module, module.norm)
            module.norm = None
            count += 1
        if isinstance(module, nn.Sequential):
            count += _fold_neighbours(module)
    return count


def _fold_neighbours(sequence: nn.Sequential) -> int:
    count = 0
    for index in range(len(sequence) - 1):
        conv, norm = sequence[index], sequence[index + 1]
        bare = getattr(conv, "norm", None) is None and getattr(conv, "activation", None) is None
        if isinstance(conv, Convolution) and bare and is_foldable(norm):
            fold(conv, norm)
            sequence[index + 1] = nn.Identity()
            count += 1
    return count
