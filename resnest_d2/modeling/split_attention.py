"""Split attention, the operation that makes a ResNet a ResNeSt."""

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import nn

from ..config import ConfigError
from .deform_conv import DeformConv2d
from .norm import Norm, make_norm
from .sync_batchnorm import require_several_images


class SplitAttentionConv2d(nn.Module):
    """A convolution into ``radix`` splits, summed with weights that the splits' mean decides.

    ResNeSt, Zhang et al. 2020 (arXiv:2004.08955), section 3.1, in the radix-major layout of its
    section 3.2: the convolution has ``groups * radix`` groups, and its output holds all channels
    of split 0, then all of split 1, and so on. Radix 1 gates the channels with a sigmoid (squeeze
    and excitation); radix >= 2 takes a softmax over the splits. The state-dict names are those of
    the published weights.

    Args:
        in_channels: a multiple of ``groups * radix``.
        out_channels: a multiple of ``groups``.
        kernel_size, stride, padding, dilation, bias: arguments of the convolution.
        groups: cardinality.
        radix: splits per cardinal group, at least 1.
        norm: see :data:`~resnest_d2.modeling.norm.Norm`.
        deformable: make the convolution deformable; ``forward`` then needs offsets.
        deform_modulated: whether the offsets carry a mask (DCN v2).

    Raises:
        ConfigError: radix or groups below 1, channels that they do not divide, an unknown norm.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        radix: int = 2,
        norm: Norm = "BN",
        deformable: bool = False,
        deform_modulated: bool = False,
    ) -> None:
        super().__init__()
        if radix < 1 or groups < 1:
            raise ConfigError(f"radix and groups must be at least 1, got {radix} and {groups}")
        if in_channels < 1 or in_channels % (groups * radix) or out_channels % groups:
            raise ConfigError(
                f"in_channels {in_channels} must be a multiple of groups * radix = "
                f"{groups} * {radix}, and out_channels {out_channels} one of groups"
            )
        self.radix, self.groups, self.channels = radix, groups, out_channels
        self.deformable = deformable
        geometry = (kernel_size, stride, padding, dilation, groups * radix, bias)
        modulated = {"modulated": deform_modulated} if deformable else {}
        conv_class = DeformConv2d if deformable else Conv2d
        self.conv = conv_class(in_channels, out_channels * radix, *geometry, **modulated)
        self.bn0 = make_norm(norm, out_channels * radix)
        hidden = attention_channels(in_channels, radix, groups)
        self.fc1 = Conv2d(out_channels, hidden, 1, groups=groups)
        self.bn1 = make_norm(norm, hidden)
        self.fc2 = Conv2d(hidden, out_channels * radix, 1, groups=groups)
        for layer in (self.conv, self.fc1, self.fc2):
            weight_init.c2_msra_fill(layer)

    def forward(self, x: torch.Tensor, offset: torch.Tensor | None = None) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H', W'), after the activation.

        A deformable layer requires the offset of :class:`DeformConv2d`; any other refuses one.
        """
        if (offset is not None) != self.deformable:
            problem = "needs an offset" if self.deformable else "is given an offset"
            raise ValueError(f"SplitAttentionConv2d(deformable={self.deformable}) {problem}")
        x = self.conv(x) if offset is None else self.conv(x, offset)
        x = F.relu_(x if self.bn0 is None else self.bn0(x))
        splits = x.view(x.shape[0], self.radix, self.channels, x.shape[2], x.shape[3])
        return self.weighted_sum(splits, self.attention(self.pool(splits)).to(x.dtype))

    def pool(self, splits: torch.Tensor) -> torch.Tensor:
        """Map splits (N, radix, out_channels, H, W) to their sum's mean (N, out_channels, 1, 1).

        The mean of splits in half precision is in fp32, because their sum can overflow fp16.
        """
        if splits.dtype in HALF:
            return splits.mean((3, 4), keepdim=True, dtype=torch.float32).sum(1)
        return splits.sum(1).mean((2, 3), keepdim=True)  # the reference's order, to the last bit

    def attention(self, pooled: torch.Tensor) -> torch.Tensor:
        """Map pooled splits to their weights, of shape (N, radix, out_channels, 1, 1).

        With radix >= 2 the weights sum to 1 over dimension 1. They are in fp32 under autocast and
        in a model of half precision.

        Raises:
            ConfigError: batch norm would be trained on one value a channel.
        """
        if self.training and pooled.shape[0] == 1:
            require_several_images(self.bn1)
        device = pooled.device.type
        is_autocast = device != "meta" and torch.is_autocast_enabled(device)
        if is_autocast or self.fc1.weight.dtype in HALF:
            with torch.autocast(device, enabled=False):  # large activations overflow fp16
                x = in_fp32(self.fc1, pooled.float())
                x = F.relu(x if self.bn1 is None else in_fp32(self.bn1, x))
                x = in_fp32(self.fc2, x)
        else:
            x = self.fc1(pooled.to(self.fc1.weight.dtype))
            x = self.fc2(F.relu(x if self.bn1 is None else self.bn1(x)))
        # fc2 is grouped by cardinality, so its output is cardinal-major; the splits are not.
        per_group = self.channels // self.groups
        x = x.view(x.shape[0], self.groups, self.radix, per_group).transpose(1, 2)
        x = torch.sigmoid(x) if self.radix == 1 else F.softmax(x, dim=1)
        return x.reshape(x.shape[0], self.radix, self.channels, 1, 1)

    def weighted_sum(self, splits: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Sum of the splits by their attention, of shape (N, out_channels, H, W)."""
        return (splits * attention).sum(1)


HALF = (torch.float16, torch.bfloat16)


def attention_channels(in_channels: int, radix: int, groups: int) -> int:
    """Hidden width of the attention: a quarter of ``in_channels * radix``, 32 at the least.

    The paper's section 3.1 and its published weights have these numbers. The width is rounded up
    to a multiple of ``groups``.
    """
    width = max(in_channels * radix // 4, 32)
    return -(-width // groups) * groups


def in_fp32(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Output of a layer in fp32, also if its weights are in half precision.

    In training such a layer runs in its own precision: a cast copy would lose its running
    statistics.
    """
    state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    half = next((value.dtype for value in state.values() if value.dtype in HALF), None)
    if half is None:
        return layer(x)
    if layer.training:
        return layer(x.to(half)).float()
    wide = {name: value.float() if value.dtype in HALF else value for name, value in state.items()}
    return torch.func.functional_call(layer, wide, (x,))
