"""Split attention, the operation that makes a ResNet a ResNeSt."""

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import Conv2d
from torch import nn

from .deform_conv import DeformConv2d
from .norm import NormFactory, check_batch_statistics, norm_factory

# Both from the paper's section 3.1 and its published weights: the attention's hidden width is
# in_channels * radix / 4, and never under 32.
REDUCTION_FACTOR = 4
MIN_ATTENTION_CHANNELS = 32


def is_half(x: torch.Tensor) -> bool:
    """Whether a tensor is in half precision, fp16 or bf16."""
    return x.dtype == torch.float16 or x.dtype == torch.bfloat16


def in_fp32(layer: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Output of a layer in fp32, also if its weights are in half precision.

    In training a layer of half precision computes in it, or its running statistics would be lost.
    """
    state = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
    halves = [value.dtype for value in state.values() if is_half(value)]
    if not halves:
        return layer(x)
    if layer.training:
        return layer(x.to(halves[0])).float()
    wide = {name: value.float() if is_half(value) else value for name, value in state.items()}
    return torch.func.functional_call(layer, wide, (x,))


def needs_fp32(pooled: torch.Tensor, fc1: nn.Conv2d) -> bool:
    """Whether attention would be computed in half precision: under autocast, or in half weights."""
    kind = pooled.device.type
    if is_half(fc1.weight):
        return True
    return kind != "meta" and torch.is_autocast_enabled(kind)


def logits_in_fp32(
    pooled: torch.Tensor, fc1: nn.Module, bn1: nn.Module | None, fc2: nn.Module
) -> torch.Tensor:
    """The attention branch of 1x1 maps in fp32, whose range sums of large activations stay in.

    Args:
        pooled: shape (N, channels, 1, 1).
        fc1: its layers, with weights of any type.
        bn1: likewise, or None.
        fc2: likewise.

    Returns:
        ``fc2``'s output in fp32, (N, radix * channels, 1, 1).
    """
    with torch.autocast(pooled.device.type, enabled=False):
        x = in_fp32(fc1, pooled.float())
        if bn1 is not None:
            check_batch_statistics(bn1, x.shape[0])
            x = in_fp32(bn1, x)
        return in_fp32(fc2, F.relu(x))


def attention_channels(channels: int, radix: int, groups: int) -> int:
    """Hidden width of the attention branch, rounded up so that it divides into ``groups``."""
    width = max(channels * radix // REDUCTION_FACTOR, MIN_ATTENTION_CHANNELS)
    return -(-width // groups) * groups


class SplitAttentionConv2d(nn.Module):
    """A convolution into ``radix`` splits, summed with weights that the splits' mean decides.

    ResNeSt, Zhang et al. 2020 (arXiv:2004.08955), section 3.1, in the radix-major layout of its
    section 3.2: the convolution has ``groups * radix`` groups and its output holds all channels of
    split 0, then all of split 1, and so on. Radix 1 gates the channels with a sigmoid (the
    squeeze-and-excitation case); radix >= 2 takes a softmax over the splits.

    State-dict names are those of the published weights: ``conv``, ``bn0``, ``fc1``, ``bn1``,
    ``fc2``.

    Args:
        in_channels: input channels, a multiple of ``groups * radix``.
        channels: output channels, a multiple of ``groups``.
        kernel_size, stride, padding, dilation: of the convolution.
        groups: cardinality.
        bias: whether the convolution has a bias.
        radix: splits per cardinal group, at least 1.
        norm: a name that Detectron2's ``get_norm`` knows, a callable, or "" for none.
        deformable: make the convolution deformable; ``forward`` then needs offsets.
        deform_modulated: whether the offsets carry a mask (DCNv2).

    Raises:
        ValueError: radix or groups below 1, channels that they do not divide, an unknown norm.
    """

    deformable: torch.jit.Final[bool]

    def __init__(
        self,
        in_channels: int,
        channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = False,
        *,
        radix: int = 2,
        norm: str | NormFactory | None = "BN",
        deformable: bool = False,
        deform_modulated: bool = False,
    ) -> None:
        super().__init__()
        if radix < 1 or groups < 1:
            raise ValueError(f"radix and groups must be at least 1, got {radix} and {groups}")
        if in_channels % (groups * radix) or channels % groups:
            raise ValueError(
                f"in_channels {in_channels} must be a multiple of groups * radix = "
                f"{groups} * {radix}, and channels {channels} one of groups"
            )
        self.radix = radix
        self.groups = groups
        self.channels = channels
        self.deformable = deformable
        make_norm = norm_factory(norm)
        conv_args = {
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups * radix,
            "bias": bias,
        }
        if deformable:
            self.conv: nn.Module = DeformConv2d(
                in_channels, channels * radix, kernel_size, modulated=deform_modulated, **conv_args
            )
        else:
            self.conv = Conv2d(in_channels, channels * radix, kernel_size, **conv_args)
        self.bn0 = make_norm(channels * radix)
        hidden = attention_channels(in_channels, radix, groups)
        self.fc1 = Conv2d(channels, hidden, 1, groups=groups)
        self.bn1 = make_norm(hidden)
        self.fc2 = Conv2d(hidden, channels * radix, 1, groups=groups)
        for layer in (self.conv, self.fc1, self.fc2):
            weight_init.c2_msra_fill(layer)

    def attention(self, pooled: torch.Tensor) -> torch.Tensor:
        """Weights of the splits.

        Args:
            pooled: mean over H and W of the splits' sum, of shape (N, channels, 1, 1), in fp32 if
                the splits are in half precision.

        Returns:
            shape (N, radix, channels, 1, 1); with radix >= 2 they sum to 1 over dimension 1. In
            fp32 under autocast and in a model of half precision.
        """
        if not torch.jit.is_scripting():  # noqa: SIM102  (TorchScript drops only a lone condition)
            if needs_fp32(pooled, self.fc1):
                return self.softmax(logits_in_fp32(pooled, self.fc1, self.bn1, self.fc2))
        x = self.fc1(pooled.to(self.fc1.weight.dtype))
        if self.bn1 is not None:
            if not torch.jit.is_scripting():
                check_batch_statistics(self.bn1, x.shape[0])
            x = self.bn1(x)
        return self.softmax(self.fc2(F.relu(x)))

    def softmax(self, x: torch.Tensor) -> torch.Tensor:
        """From ``fc2``'s output, (N, radix * channels, 1, 1), to (N, radix, channels, 1, 1)."""
        # fc2 is grouped by cardinality, so its output is cardinal-major; the splits are not.
        per_group = self.channels // self.groups
        x = x.view(x.shape[0], self.groups, self.radix, per_group).transpose(1, 2)
        x = torch.sigmoid(x) if self.radix == 1 else F.softmax(x, dim=1)
        return x.reshape(x.shape[0], self.radix, self.channels, 1, 1)

    def forward(self, x: torch.Tensor, offset: torch.Tensor | None = None) -> torch.Tensor:
        """Convolve, and sum the splits by their attention.

        Args:
            x: shape (N, in_channels, H, W).
            offset: as in :class:`DeformConv2d`; required if deformable, else not allowed.

        Returns:
            shape (N, channels, H', W'), after the activation.
        """
        x = self.convolve(x, offset)
        if self.bn0 is not None:
            x = self.bn0(x)
        x = F.relu_(x)
        splits = x.view(x.shape[0], self.radix, self.channels, x.shape[2], x.shape[3])
        if is_half(x):  # the sum of a few splits can leave fp16's range
            pooled = splits.mean((3, 4), keepdim=True, dtype=torch.float32).sum(1)
        else:
            # Summed, then pooled: the reference's order, and with it the same bits.
            pooled = splits.sum(1).mean((2, 3), keepdim=True)
        return (splits * self.attention(pooled).to(x.dtype)).sum(1)

    def convolve(self, x: torch.Tensor, offset: torch.Tensor | None) -> torch.Tensor:
        """The grouped convolution: (N, in_channels, H, W) to (N, radix * channels, H', W')."""
        if self.deformable:
            if offset is None:
                raise ValueError("a deformable SplitAttentionConv2d needs an offset")
            return self.conv(x, offset)
        if offset is not None:
            raise ValueError("offset given to a SplitAttentionConv2d that is not deformable")
        return self.conv(x)
