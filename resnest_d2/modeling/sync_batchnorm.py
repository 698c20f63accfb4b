"""Synchronised batch norm on CPUs, and in a process alone."""

import torch
import torch.distributed as dist
from detectron2.layers import NaiveSyncBatchNorm
from detectron2.utils import comm
from torch import nn


class CpuSyncBatchNorm(NaiveSyncBatchNorm):
    """Differentiable synchronised batch norm in a process group on CPUs; alone, plain batch norm.

    ``torch.nn.SyncBatchNorm`` refuses CPU tensors, ``DistributedDataParallel`` refuses models on
    CPUs that hold one, and Detectron2's convolutions refuse empty inputs before one. Processes
    weigh by their numbers of values, so batches may be unequal.
    """

    def __init__(self, num_features: int, **kwargs) -> None:
        super().__init__(num_features, stats_mode="N", **kwargs)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        if not self.training or comm.get_world_size() == 1:
            return super().forward(input)
        old = self.running_var.clone()
        output = super().forward(input)
        # Detectron2 averages the biased variance, PyTorch's norms the unbiased one.
        count = input.new_tensor(input.numel() // input.shape[1])
        dist.all_reduce(count)
        factor = count.clamp(min=1) / (count - 1).clamp(min=1)
        kept = (1 - self.momentum) * old
        self.running_var.copy_(kept + (self.running_var - kept) * factor)
        self.num_batches_tracked.add_(1)
        return output


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
