"""Synchronised batch norm on CPUs, and in a process alone."""

import torch
import torch.distributed as dist
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..config import ConfigError


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Differentiable synchronised batch norm in a process group on CPUs; alone, plain batch norm.

    ``torch.nn.SyncBatchNorm`` refuses CPU tensors, ``DistributedDataParallel`` refuses models on
    CPUs that hold one, and Detectron2's convolutions refuse empty inputs before one. Processes
    weigh by their numbers of values, so batches may be unequal. The variance is that of centred
    values; Detectron2's ``NaiveSyncBatchNorm`` takes it from squares, at a loss of digits.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or comm.get_world_size() == 1:
            return super().forward(input)
        count = input.new_tensor(input.numel() // input.shape[1])
        dist.all_reduce(count)
        mean = differentiable_all_reduce(input.sum(dim=(0, 2, 3))) / count.clamp(min=1)
        centred = input - mean[:, None, None]
        squares = differentiable_all_reduce(centred.square().sum(dim=(0, 2, 3)))
        scale = self.weight * torch.rsqrt(squares / count.clamp(min=1) + self.eps)
        if count:
            self.running_mean.lerp_(mean.detach(), self.momentum)
            unbiased = squares.detach() / (count - 1).clamp(min=1)
            self.running_var.lerp_(unbiased, self.momentum)
        self.num_batches_tracked.add_(1)
        return centred * scale[:, None, None] + self.bias[:, None, None]


def replace_sync_batchnorm(model: nn.Module) -> nn.Module:
    """Replace every ``torch.nn.SyncBatchNorm`` of a model by :class:`CpuSyncBatchNorm`.

    Parameters, buffers and their names stay the same.

    Returns:
        the model, or the new layer if the model itself is a SyncBN.
    """
    if isinstance(model, nn.SyncBatchNorm):
        layer = CpuSyncBatchNorm(model.num_features, eps=model.eps, momentum=model.momentum)
        layer.weight, layer.bias = model.weight, model.bias
        for name, buffer in model.named_buffers(recurse=False):
            setattr(layer, name, buffer)
        return layer.train(model.training)
    for name, child in model.named_children():
        replaced = replace_sync_batchnorm(child)
        if replaced is not child:
            setattr(model, name, replaced)
    return model


def require_several_images(norm: nn.Module | None) -> None:
    """Refuse to train a batch norm on one image, of which it sees a map of 1x1.

    Raises:
        ConfigError: it is such a norm, and its statistics are not those of several processes.
    """
    is_synchronised = isinstance(norm, SYNCHRONISED) and comm.get_world_size() > 1
    if isinstance(norm, _BatchNorm) and norm.training and not is_synchronised:
        raise ConfigError(
            "batch norm cannot be trained on one image a process: the attention's sees one value a "
            "channel. Use at least two images a process (SOLVER.IMS_PER_BATCH over the number of "
            "processes), or MODEL.RESNETS.NORM SyncBN over several processes, FrozenBN or GN"
        )


SYNCHRONISED = (CpuSyncBatchNorm, nn.SyncBatchNorm, NaiveSyncBatchNorm)
