"""Deformable convolution v1 and v2 by torchvision: CPU and GPU, no compiled Detectron2."""

import torch
from torch import nn
from torchvision.ops import deform_conv2d


class DeformConv2d(nn.Conv2d):
    """Deformable convolution (arXiv:1703.06211, v2: arXiv:1811.11168) whose offsets are an input.

    The offsets have the layout of Detectron2's compiled operator: two thirds are (dy, dx)
    interleaved, per deformable group and tap; the last third is the mask before its sigmoid. Half
    precision is computed in fp32, because half-precision offsets cannot address large maps.

    Args:
        *args, **kwargs: as in ``torch.nn.Conv2d``.
        modulated: whether the offsets carry a mask (v2).
        norm: a module applied to the output, or None.
    """

    def __init__(
        self, *args, modulated: bool = False, norm: nn.Module | None = None, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        self.modulated, self.norm = modulated, norm

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H', W'), in the type of ``x``.

        The offset has shape (N, C, H', W'), where C is 2, or 3 for v2, times groups and taps.
        """
        dtype = torch.promote_types(x.dtype, torch.float32)
        offset, mask = offset.to(dtype), None
        if self.modulated:
            offset, mask = offset.tensor_split([offset.shape[1] // 3 * 2], dim=1)
            mask = mask.sigmoid()
        weight, bias = self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        geometry = {"stride": self.stride, "padding": self.padding, "dilation": self.dilation}
        out = deform_conv2d(x.to(dtype), offset, weight, bias, mask=mask, **geometry).to(x.dtype)
        return out if self.norm is None else self.norm(out)
