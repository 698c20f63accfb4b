"""Deformable convolution v1 and v2 through torchvision: CPU and GPU, no compiled Detectron2."""

import torch
from torch import nn
from torchvision.ops import deform_conv2d


def offset_channels(kernel_size: int, deform_groups: int, modulated: bool) -> int:
    """Channels that the offset convolution must have: (dy, dx) and, for v2, a mask, per tap."""
    return (3 if modulated else 2) * kernel_size**2 * deform_groups


class DeformConv2d(nn.Conv2d):
    """Deformable convolution (Dai et al. 2017; modulated: Zhu et al. 2019) without its own offsets.

    The offsets are an input. Their layout is that of Detectron2's compiled operator: the first
    two thirds are (dy, dx) interleaved, per deformable group and tap, the last third is the mask
    before its sigmoid. The number of deformable groups follows from the number of channels.

    Half precision is computed in fp32: half-precision offsets cannot address large maps exactly.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as in
            ``torch.nn.Conv2d``.
        modulated: whether the offsets carry a mask (v2).
        norm: a module applied to the output, or None.
    """

    def __init__(
        self, *args, modulated: bool = False, norm: nn.Module | None = None, **kwargs
    ) -> None:
        super().__init__(*args, **kwargs)
        self.modulated = modulated
        self.norm = norm

    def forward(self, x: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        """Convolve at the shifted positions.

        Args:
            x: shape (N, in_channels, H, W).
            offset: shape (N, ``offset_channels(...)``, H', W'), H' and W' those of the output.

        Returns:
            shape (N, out_channels, H', W'), in the type of ``x``.
        """
        compute_type = torch.float64 if x.dtype == torch.float64 else torch.float32
        offset = offset.to(compute_type)
        mask: torch.Tensor | None = None
        if self.modulated:
            split = offset.shape[1] // 3 * 2
            mask = offset[:, split:].sigmoid()
            offset = offset[:, :split]
        bias = self.bias
        out = deform_conv2d(
            x.to(compute_type),
            offset,
            self.weight.to(compute_type),
            bias if bias is None else bias.to(compute_type),
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            mask=mask,
        ).to(x.dtype)
        if self.norm is not None:
            out = self.norm(out)
        return out
