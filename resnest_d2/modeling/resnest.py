"""ResNeSt on Detectron2's ResNet: stem, bottleneck block, and the published depths as data."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import fvcore.nn.weight_init as weight_init
import torch
import torch.nn.functional as F
from detectron2.layers import CNNBlockBase, Conv2d
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from torch import nn

from ..config import ConfigError, require_int, require_one_of
from .deform_conv import DeformConv2d
from .grad_checkpoint import checkpoint_block
from .norm import Norm, make_norm
from .split_attention import SplitAttentionConv2d

STAGE_NAMES = ("res2", "res3", "res4", "res5")


class Architecture(NamedTuple):
    """Blocks in res2 to res5, and channels of the deep stem's first two convolutions."""

    blocks: tuple[int, int, int, int]
    stem_width: int


# The paper published 50 to 269, GluonCV 14 and 26; timm ships all of them.
ARCHITECTURES: dict[int, Architecture] = {
    14: Architecture((1, 1, 1, 1), 32),
    26: Architecture((2, 2, 2, 2), 32),
    50: Architecture((3, 4, 6, 3), 32),
    101: Architecture((3, 4, 23, 3), 64),
    152: Architecture((3, 8, 36, 3), 64),
    200: Architecture((3, 24, 36, 3), 64),
    269: Architecture((3, 30, 48, 8), 64),
}


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int, norm: Norm) -> Conv2d:
    """A padded convolution without bias, and its norm."""
    settings = {"stride": stride, "padding": kernel // 2, "bias": False}
    conv = Conv2d(in_channels, out_channels, kernel, norm=make_norm(norm, out_channels), **settings)
    weight_init.c2_msra_fill(conv)
    return conv


class ResNeStStem(CNNBlockBase):
    """Deep stem (ResNet-C): three 3x3 convolutions and a max pooling, of stride 4 together."""

    def __init__(self, in_channels: int = 3, stem_width: int = 32, norm: Norm = "BN") -> None:
        super().__init__(in_channels, 2 * stem_width, 4)
        self.conv1_1 = _conv(in_channels, stem_width, 3, 2, norm)
        self.conv1_2 = _conv(stem_width, stem_width, 3, 1, norm)
        self.conv1_3 = _conv(stem_width, 2 * stem_width, 3, 1, norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map an image (N, in_channels, H, W) to (N, 2 * stem_width, ceil(H/4), ceil(W/4))."""
        for conv in (self.conv1_1, self.conv1_2, self.conv1_3):
            x = F.relu_(conv(x))
        return F.max_pool2d(x, kernel_size=3, stride=2, padding=1)


class ResNeStBlock(CNNBlockBase):
    """Bottleneck block whose 3x3 convolution is split attention, plain or deformable.

    Its arguments are those of :func:`make_resnest`, and ``bottleneck_channels`` of the 3x3
    convolution, its ``dilation``, and ``is_first``: pool at stride 1 too, as the ImageNet network
    does in the first block of a dilated stage (``resnest/torch/models/resnet.py``).

    Raises:
        ConfigError: channels that radix, num_groups or deform_num_groups do not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        bottleneck_channels: int,
        stride: int = 1,
        num_groups: int = 1,
        norm: Norm = "BN",
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
        self.radix, self.deformable, self.grad_checkpoint = radix, deformable, grad_checkpoint
        self.shortcut_avgpool = self.shortcut = None
        if in_channels != out_channels or stride != 1:
            self.shortcut = _conv(in_channels, out_channels, 1, 1 if avg_down else stride, norm)
            if avg_down and stride != 1:
                pool = nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False)
                self.shortcut_avgpool = pool
        width = bottleneck_channels
        self.conv1 = _conv(in_channels, width, 1, 1, norm)
        pool = nn.AvgPool2d(3, stride, padding=1) if avd and (stride > 1 or is_first) else None
        self.avd_layer_before, self.avd_layer = (pool, None) if avd_first else (None, pool)
        geometry = {"stride": 1 if pool else stride, "padding": dilation, "dilation": dilation}
        if deformable:
            _require_divisor("deform_num_groups", deform_num_groups, width)
            # Grouped like the reference's, unlike Detectron2's own deformable block.
            outputs = (3 if deform_modulated else 2) * 9 * deform_num_groups  # 9 taps
            self.conv2_offset = Conv2d(width, outputs, 3, groups=deform_num_groups, **geometry)
            nn.init.zeros_(self.conv2_offset.weight)
            nn.init.zeros_(self.conv2_offset.bias)
        conv: dict[str, Any] = {"groups": num_groups, "bias": False, **geometry}
        if radix > 0:
            conv |= {"radix": radix, "norm": norm, "deformable": deformable}
            conv["deform_modulated"] = deform_modulated
            self.conv2 = SplitAttentionConv2d(width, width, 3, **conv)
        else:
            _require_divisor("num_groups", num_groups, width)
            conv |= {"norm": make_norm(norm, width)}
            conv |= {"modulated": deform_modulated} if deformable else {}
            self.conv2 = (DeformConv2d if deformable else Conv2d)(width, width, 3, **conv)
            weight_init.c2_msra_fill(self.conv2)
        self.conv3 = _conv(width, out_channels, 1, 1, norm)

    def freeze(self) -> "ResNeStBlock":
        """Make the block constant; there is then nothing left that checkpointing could save."""
        self.grad_checkpoint = False
        return super().freeze()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, ceil(H/stride), ceil(W/stride))."""
        if self.grad_checkpoint and self.training and torch.is_grad_enabled():
            return checkpoint_block(self, x)
        return self.compute(x)

    def compute(self, x: torch.Tensor) -> torch.Tensor:
        """The block itself, without checkpointing; shapes as in :meth:`forward`."""
        out = F.relu_(self.conv1(x))
        if self.avd_layer_before is not None:
            out = self.avd_layer_before(out)
        out = self.conv2(out, self.conv2_offset(out)) if self.deformable else self.conv2(out)
        if self.radix == 0:
            out = F.relu_(out)
        if self.avd_layer is not None:
            out = self.avd_layer(out)
        out = self.conv3(out)
        if self.shortcut is not None:
            x = self.shortcut(x if self.shortcut_avgpool is None else self.shortcut_avgpool(x))
        out += x
        return F.relu_(out)


class ResNeSt(ResNet):
    """ResNeSt backbone, arXiv:2004.08955; a ``detectron2.modeling.ResNet`` in all else.

    Its arguments are those of Detectron2's class, whose mistakes it refuses.

    Raises:
        ConfigError: an output feature that does not exist, a classification head that is not put
            out, or a freeze_at outside 0 to 5.
    """

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        names = ("stem", *STAGE_NAMES[: len(stages)])
        if num_classes is not None:
            require_int("num_classes", num_classes, 1)
            names += ("linear",)
            if "linear" not in (out_features or names):
                raise ConfigError(f"num_classes needs 'linear' in out_features {out_features}")
        if out_features is not None and (not out_features or set(out_features) - set(names)):
            got = f"{', '.join(names)}, got {list(out_features)}"
            raise ConfigError(f"out_features must name one or more of {got}")
        require_one_of("freeze_at", freeze_at, range(6))
        kept = out_features
        if out_features and num_classes is not None:
            # Detectron2 keeps the stages up to the last one named, and the head needs all of them.
            kept = [*out_features, names[len(stages)]]
        super().__init__(stem, stages, num_classes, kept)
        self.freeze(freeze_at)  # Detectron2 0.3 has no argument for it
        if num_classes is not None:
            self._out_features = list(out_features or self._out_features)
            self._out_feature_channels["linear"] = num_classes  # for output_shape
            self._out_feature_strides["linear"] = None


LEAST = {"radix": 0, "num_groups": 1, "width_per_group": 1, "bottleneck_width": 1}
LEAST |= {"res2_out_channels": 1, "stem_out_channels": 1, "deform_num_groups": 1}
OF_BLOCKS = ("num_groups", "norm", "radix", "avd", "avd_first", "avg_down", "deform_modulated")
OF_BLOCKS += ("deform_num_groups",)


def make_resnest(
    depth: int = 50,
    *,
    in_channels: int = 3,
    radix: int = 2,
    num_groups: int = 1,
    width_per_group: int = 64,
    bottleneck_width: int = 64,
    res2_out_channels: int = 256,
    deep_stem: bool = True,
    stem_out_channels: int = 64,
    avd: bool = True,
    avd_first: bool = False,
    avg_down: bool = True,
    norm: Norm = "BN",
    res4_dilation: int = 1,
    res5_dilation: int = 1,
    res5_multi_grid: Sequence[int] | None = None,
    deform_on_per_stage: Sequence[bool] = (False, False, False, False),
    deform_modulated: bool = False,
    deform_num_groups: int = 1,
    grad_checkpoint: bool = False,
    num_classes: int | None = None,
    out_features: Sequence[str] | None = None,
    freeze_at: int = 0,
) -> ResNeSt:
    """Build a ResNeSt without a config; the defaults are those of the published ResNeSt-50.

    Args:
        depth: a key of :data:`ARCHITECTURES`.
        in_channels: channels of the image.
        radix: splits per cardinal group; 0 builds plain convolutions.
        num_groups: cardinality.
        width_per_group, res2_out_channels: planes and output channels of res2; each later stage
            has twice as many.
        bottleneck_width: the paper's "d"; the 3x3 convolution has ``int(planes *
            bottleneck_width / 64) * num_groups`` channels.
        deep_stem: three 3x3 convolutions in place of one 7x7 with ``stem_out_channels``.
        avd, avd_first: carry strides in a 3x3 average pooling, after or before the convolution.
        avg_down: average pooling in front of projection shortcuts.
        norm: see :data:`~resnest_d2.modeling.norm.Norm`, for the whole backbone.
        res4_dilation, res5_dilation: 1 and 2 keep res5 at stride 16, 2 and 4 both at stride 8. As
            in the ImageNet network, the first block of a dilated stage keeps its 3x3 pooling, at
            stride 1, and the dilation of the stage before.
        res5_multi_grid: factors of the dilations of res5's blocks (arXiv:1706.05587).
        deform_on_per_stage: which of res2 to res5 are deformable.
        deform_modulated, deform_num_groups: DCN v2 instead of v1; deformable groups.
        grad_checkpoint: recompute blocks in the backward pass to save their activations.
        num_classes: add a classification head, ``linear``, for so many classes.
        out_features: any of "stem", "res2" to "res5", "linear"; None for the last layer's output.
            Stages behind the last one are not built.
        freeze_at: 0 freezes nothing, 1 the stem, 2 also res2, up to 5 for the whole backbone.

    Raises:
        ConfigError: an argument that cannot be; the message names it.
    """
    arguments = locals()
    require_one_of("depth", depth, ARCHITECTURES)
    for name, least in LEAST.items():
        require_int(name, arguments[name], least)
    if width_per_group * bottleneck_width < 64:
        raise ConfigError(
            f"bottleneck_width {bottleneck_width} leaves no channel of width_per_group "
            f"{width_per_group}: their product must be at least 64"
        )
    if len(deform_on_per_stage) != 4:
        got = f"got {len(deform_on_per_stage)}: {list(deform_on_per_stage)}"
        raise ConfigError(f"deform_on_per_stage must have 4 entries, one a stage, {got}")
    blocks, stem_width = ARCHITECTURES[depth]
    dilations = _dilations(blocks, res4_dilation, res5_dilation, res5_multi_grid)
    stem_class, width = (ResNeStStem, stem_width) if deep_stem else (BasicStem, stem_out_channels)
    stem = stem_class(in_channels, width, norm)
    layers, last = ("stem", *STAGE_NAMES), 4
    if out_features and set(out_features) <= set(layers):
        last = max(map(layers.index, out_features))
    stages: list[list[CNNBlockBase]] = []
    for index, num_blocks in enumerate(blocks[:last]):
        dilated = (1, 1, res4_dilation, res5_dilation)[index] > 1  # and so of stride 1
        width = int(width_per_group * 2**index * bottleneck_width / 64) * num_groups
        stride = 1 if index == 0 or dilated else 2
        try:
            stage = ResNet.make_stage(
                ResNeStBlock,
                num_blocks,
                stride_per_block=[stride] + [1] * (num_blocks - 1),
                dilation_per_block=dilations.get(index, [1] * num_blocks),
                is_first_per_block=[dilated] + [False] * (num_blocks - 1),
                in_channels=stages[-1][-1].out_channels if stages else stem.out_channels,
                out_channels=res2_out_channels * 2**index,
                bottleneck_channels=width,
                deformable=bool(deform_on_per_stage[index]),
                # Backward frees the last stage's activations before the earlier ones' peak.
                grad_checkpoint=grad_checkpoint and index < last - 1,
                **{name: arguments[name] for name in OF_BLOCKS},
            )
        except ConfigError as error:
            raise ConfigError(
                f"{STAGE_NAMES[index]}: {error}; its 3x3 convolutions have {width} channels, of "
                f"width_per_group {width_per_group} and bottleneck_width {bottleneck_width}"
            ) from error
        stages.append(stage)
    return ResNeSt(stem, stages, num_classes, out_features, freeze_at)


def _dilations(
    blocks: Sequence[int], res4: int, res5: int, multi_grid: Sequence[int] | None
) -> dict[int, list[int]]:
    """Dilations of the blocks of each stage that has others than 1, by the stage's index."""
    require_one_of("res4_dilation", res4, (1, 2))
    beside = " with res4_dilation 2" if res4 == 2 else ""
    require_one_of(f"res5_dilation{beside}", res5, (4,) if res4 == 2 else (1, 2))
    if res5 == 1 and multi_grid is None:
        return {}
    grid = [1] * blocks[3] if multi_grid is None else list(multi_grid)
    if len(grid) != blocks[3] or min(grid) < 1:
        needed = f"{blocks[3]} factors of at least 1, one for each block of res5"
        raise ConfigError(f"res5_multi_grid must have {needed}, got {grid}")
    bases = [res4] + [res5] * (blocks[3] - 1)
    dilations = {3: [base * factor for base, factor in zip(bases, grid, strict=True)]}
    return dilations if res4 == 1 else {2: [1] + [2] * (blocks[2] - 1), **dilations}


def _require_divisor(name: str, divisor: int, channels: int) -> None:
    if divisor < 1 or channels < 1 or channels % divisor:
        raise ConfigError(f"{name} {divisor} must divide the bottleneck's {channels} channels")
