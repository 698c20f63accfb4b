"""ResNeSt's stem and bottleneck block."""

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d
from torch import nn

from .deform_conv import DeformConv2d, offset_channels
from .grad_checkpoint import checkpoint_block
from .norm import NormFactory, norm_factory
from .split_attention import SplitAttentionConv2d


class ResNeStStem(CNNBlockBase):
    """Deep stem: three 3x3 convolutions and a max pooling, stride 4 in all (ResNet-C).

    Args:
        in_channels: channels of the image.
        stem_width: channels of the first two convolutions; the output has ``2 * stem_width``.
        norm: as in :class:`SplitAttentionConv2d`.
    """

    def __init__(
        self, in_channels: int = 3, stem_width: int = 32, norm: str | NormFactory | None = "BN"
    ) -> None:
        super().__init__(in_channels, 2 * stem_width, 4)
        make_norm = norm_factory(norm)

        def conv(inputs: int, outputs: int, stride: int) -> Conv2d:
            layer = Conv2d(
                inputs,
                outputs,
                kernel_size=3,
                stride=stride,
                padding=1,
                bias=False,
                norm=make_norm(outputs),
            )
            weight_init.c2_msra_fill(layer)
            return layer

        self.conv1_1 = conv(in_channels, stem_width, 2)
        self.conv1_2 = conv(stem_width, stem_width, 1)
        self.conv1_3 = conv(stem_width, 2 * stem_width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (N, in_channels, H, W) to (N, 2 * stem_width, ceil(H/4), ceil(W/4))."""
        x = F.relu_(self.conv1_1(x))
        x = F.relu_(self.conv1_2(x))
        x = F.relu_(self.conv1_3(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class ResNeStBlock(CNNBlockBase):
    """Bottleneck block whose 3x3 convolution is split attention, plain or deformable.

    Args:
        in_channels, out_channels: of the block.
        bottleneck_channels: input and output channels of the 3x3 convolution: the group width
            ``int(planes * bottleneck_width / 64) * num_groups``.
        stride: of the block.
        num_groups: cardinality.
        norm: as in :class:`SplitAttentionConv2d`.
        dilation: of the 3x3 convolution.
        radix: splits; 0 makes the 3x3 a convolution without attention.
        avd: carry the stride in a 3x3 average pooling and not in the 3x3 convolution.
        avd_first: pool before the 3x3 convolution, not after it.
        is_first: pool also at stride 1. The ImageNet network does so in the first block of a stage
            whose stride was traded for dilation (``resnest/torch/models/resnet.py``).
        avg_down: average pooling in front of a projection shortcut, in place of its stride.
        deformable, deform_modulated, deform_num_groups: DCN v1 or v2 in the 3x3 convolution.
        grad_checkpoint: recompute the block in the backward pass to save its activations.

    Raises:
        ValueError: a negative radix, or channels that radix, num_groups or deform_num_groups do not
            divide.
    """

    grad_checkpoint: bool
    radix: torch.jit.Final[int]
    deformable: torch.jit.Final[bool]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: str | NormFactory | None = "BN",
        dilation: int = 1,
        radix: int = 2,
        avd: bool = True,
        avd_first: bool = False,
        is_first: bool = False,
        avg_down: bool = True,
        deformable: bool = False,
        deform_modulated: bool = False,
        deform_num_groups: int = 1,
        grad_checkpoint: bool = False,
    ) -> None:
        super().__init__(in_channels, out_channels, stride)
        if radix < 0:
            raise ValueError(f"radix must be at least 0, got {radix}")
        self.radix = radix
        self.deformable = deformable
        self.grad_checkpoint = grad_checkpoint
        make_norm = norm_factory(norm)

        def conv1x1(inputs: int, outputs: int, stride: int = 1) -> Conv2d:
            layer = Conv2d(
                inputs, outputs, kernel_size=1, stride=stride, bias=False, norm=make_norm(outputs)
            )
            weight_init.c2_msra_fill(layer)
            return layer

        self.shortcut_avgpool: nn.Module | None = None
        self.shortcut: nn.Module | None = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = conv1x1(in_channels, out_channels, 1 if avg_down else stride)
            if avg_down and stride != 1:
                self.shortcut_avgpool = nn.AvgPool2d(
                    stride, stride, ceil_mode=True, count_include_pad=False
                )

        pool = avd and (stride > 1 or is_first)
        conv2_stride = 1 if pool else stride
        self.conv1 = conv1x1(in_channels, bottleneck_channels)
        conv2_args = {
            "kernel_size": 3,
            "stride": conv2_stride,
            "padding": dilation,
            "dilation": dilation,
            "bias": False,
        }
        if deformable:
            _require_multiple(bottleneck_channels, deform_num_groups, "deform_num_groups")
            # Grouped like the reference's, unlike Detectron2's own deformable block.
            self.conv2_offset = Conv2d(
                bottleneck_channels,
                offset_channels(3, deform_num_groups, deform_modulated),
                kernel_size=3,
                stride=conv2_stride,
                padding=dilation,
                dilation=dilation,
                groups=deform_num_groups,
            )
            nn.init.zeros_(self.conv2_offset.weight)
            nn.init.zeros_(self.conv2_offset.bias)
        if radix > 0:
            self.conv2: nn.Module = SplitAttentionConv2d(
                bottleneck_channels,
                bottleneck_channels,
                groups=num_groups,
                radix=radix,
                norm=norm,
                deformable=deformable,
                deform_modulated=deform_modulated,
                **conv2_args,
            )
        else:
            _require_multiple(bottleneck_channels, num_groups, "num_groups")
            conv_class = DeformConv2d if deformable else Conv2d
            modulated = {"modulated": deform_modulated} if deformable else {}
            self.conv2 = conv_class(
                bottleneck_channels,
                bottleneck_channels,
                groups=num_groups,
                norm=make_norm(bottleneck_channels),
                **modulated,
                **conv2_args,
            )
            weight_init.c2_msra_fill(self.conv2)
        pool_layer = nn.AvgPool2d(3, stride, padding=1) if pool else None
        self.avd_layer_before = pool_layer if avd_first else None
        self.avd_layer = None if avd_first else pool_layer
        self.conv3 = conv1x1(bottleneck_channels, out_channels)

    def freeze(self) -> "ResNeStBlock":
        """Make the block constant; there is then nothing left that checkpointing could save."""
        self.grad_checkpoint = False
        return super().freeze()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ceil(H/stride), ceil(W/stride))."""
        if not torch.jit.is_scripting():  # noqa: SIM102  (TorchScript drops only a lone condition)
            if self.grad_checkpoint and self.training and torch.is_grad_enabled():
                return checkpoint_block(self, x)
        return self.compute(x)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """The block itself, without checkpointing; shapes as in :meth:`forward`."""
        out = F.relu_(self.conv1(x))
        if self.avd_layer_before is not None:
            out = self.avd_layer_before(out)
        if self.deformable:  # noqa: SIM108  (TorchScript compiles both arms of an expression)
            out = self.conv2(out, self.conv2_offset(out))
        else:
            out = self.conv2(out)
        if self.radix == 0:
            out = F.relu_(out)
        if self.avd_layer is not None:
            out = self.avd_layer(out)
        out = self.conv3(out)
        if self.shortcut is not None:
            if self.shortcut_avgpool is not None:
                x = self.shortcut_avgpool(x)
            x = self.shortcut(x)
        out += x
        return F.relu_(out)


def _require_multiple(channels: int, divisor: int, name: str) -> None:
    if divisor < 1 or channels % divisor:
        raise ValueError(f"{name} {divisor} must divide the bottleneck's {channels} channels")
