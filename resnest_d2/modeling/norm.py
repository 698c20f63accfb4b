"""Normalization layers by name: Detectron2's, with a SyncBN that also runs on CPUs."""

from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.layers import get_norm as d2_get_norm
from torch import nn

NORMS = ("", "BN", "SyncBN", "FrozenBN", "GN", "LN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")

NormFactory = Callable[[int], nn.Module | None]


class SyncBatchNorm(NaiveSyncBatchNorm):
    """Synchronised batch norm of an input of shape (N, C, H, W) on any device.

    On accelerators it is PyTorch's, ``torch.nn.SyncBatchNorm``, which refuses CPU tensors. In a
    group of processes on CPUs it is Detectron2's differentiable one, which weights each process by
    its batch size. Alone, and in evaluation, it is plain batch norm.

    It does not derive from ``torch.nn.SyncBatchNorm``, because ``DistributedDataParallel`` turns
    down every model on a CPU that holds one.
    """

    # Of torch.nn.SyncBatchNorm, whose forward is called on accelerators.
    process_group = None
    _check_input_dim = nn.SyncBatchNorm._check_input_dim
    _check_non_zero_input_channels = nn.SyncBatchNorm._check_non_zero_input_channels
    # Of NaiveSyncBatchNorm; class attributes also serve layers that were converted.
    _stats_mode = "N"

    def __init__(self, num_features: int, **kwargs) -> None:
        super().__init__(num_features, stats_mode="N", **kwargs)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            return F.batch_norm(
                input,
                self.running_mean,
                self.running_var,
                self.weight,
                self.bias,
                self.training,
                self.momentum,
                self.eps,
            )
        if not self.training or _world_size() == 1:
            return nn.BatchNorm2d.forward(self, input)
        if input.device.type == "cpu":
            return self._forward_on_cpus(input)
        return nn.SyncBatchNorm.forward(self, input)

    def _forward_on_cpus(self, input: torch.Tensor) -> torch.Tensor:
        old = self.running_var.clone()
        output = super().forward(input)
        # Detectron2 averages the biased variance; PyTorch's norms, and so ours, the unbiased one.
        count = input.new_tensor(input.numel() // input.shape[1])
        dist.all_reduce(count)
        factor = count.clamp(min=1) / (count - 1).clamp(min=1)
        kept = (1 - self.momentum) * old
        self.running_var.copy_(kept + (self.running_var - kept) * factor)
        self.num_batches_tracked.add_(1)
        return output


class GroupNorm(nn.GroupNorm):
    """Group norm that also takes a single value per group, as PyTorch's does from two images on.

    With GN the attention's narrowest norm, 32 channels in 32 groups on a 1x1 map, sees exactly
    that: its output is its bias, whatever the image. ``torch.nn.GroupNorm`` refuses it for one
    image only, in inference too.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return torch.group_norm(input, self.num_groups, self.weight, self.bias, self.eps)


def _world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def convert_sync_batchnorm(module: nn.Module) -> nn.Module:
    """Turn every ``torch.nn.SyncBatchNorm`` below ``module`` into :class:`SyncBatchNorm`, in place.

    Parameters, buffers and state-dict names stay as they are.
    """
    for child in module.modules():
        if type(child) is nn.SyncBatchNorm:
            child.__class__ = SyncBatchNorm
    return module


def norm_factory(norm: str | NormFactory | None) -> NormFactory:
    """Return the callable that makes a norm layer, or None for "no norm", from a channel count.

    Args:
        norm: a name that Detectron2's ``get_norm`` knows, "" or None for no norm, or a callable
            that takes a number of channels.

    Raises:
        ValueError: the name is unknown; or, from the callable, GN does not divide the channels.
    """
    if norm is not None and not callable(norm) and norm not in NORMS:
        raise ValueError(f"unknown norm {norm!r}; allowed are {', '.join(map(repr, NORMS))}")

    def make(channels: int) -> nn.Module | None:
        try:
            layer = d2_get_norm(norm, channels)
        except ValueError as error:  # GroupNorm's own message has no numbers
            raise ValueError(f"norm {norm!r} does not fit {channels} channels: {error}") from error
        if type(layer) is nn.GroupNorm:
            layer.__class__ = GroupNorm
        return layer if layer is None else convert_sync_batchnorm(layer)

    return make


def check_batch_statistics(norm: nn.Module | None, batch_size: int) -> None:
    """Refuse to train a batch norm on one value per channel, where its variance is undefined.

    Args:
        norm: a layer that normalises 1x1 maps; anything but a batch norm passes.
        batch_size: images of this process.

    Raises:
        ValueError: the norm would take its statistics from a single value per channel.
    """
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or not norm.training:
        return
    if batch_size != 1:
        return
    if isinstance(norm, NaiveSyncBatchNorm | nn.SyncBatchNorm) and _world_size() > 1:
        return
    raise ValueError(
        f"{type(norm).__name__} cannot be trained on one value per channel: the attention's batch "
        "norm sees a 1x1 map and the batch size of this process is 1. Use at least two "
        "images a process (SOLVER.IMS_PER_BATCH over the number of processes), or "
        'MODEL.RESNETS.NORM "SyncBN" over several processes, or MODEL.RESNETS.NORM "FrozenBN" or '
        '"GN"'
    )
