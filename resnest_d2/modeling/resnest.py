"""ResNeSt on Detectron2's ResNet, and the published depths as data."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from detectron2.layers import CNNBlockBase
from detectron2.modeling.backbone.resnet import BasicStem, ResNet
from torch import nn

from .blocks import ResNeStBlock, ResNeStStem
from .norm import NormFactory, norm_factory

NUM_STAGES = 4
STAGE_NAMES = ("res2", "res3", "res4", "res5")


@dataclass(frozen=True)
class Architecture:
    """What sets one depth apart from another."""

    blocks: tuple[int, int, int, int]
    """Blocks in res2 to res5."""
    stem_width: int
    """Channels of the deep stem's first two convolutions; its output has twice as many."""


# 50 to 269 from the paper's published networks, 14 and 26 from GluonCV's (timm ships all of them).
ARCHITECTURES: dict[int, Architecture] = {
    14: Architecture((1, 1, 1, 1), 32),
    26: Architecture((2, 2, 2, 2), 32),
    50: Architecture((3, 4, 6, 3), 32),
    101: Architecture((3, 4, 23, 3), 64),
    152: Architecture((3, 8, 36, 3), 64),
    200: Architecture((3, 24, 36, 3), 64),
    269: Architecture((3, 30, 48, 8), 64),
}


class ResNeSt(ResNet):
    """ResNeSt backbone, arXiv:2004.08955; a ``detectron2.modeling.ResNet`` in all else.

    Args:
        stem: the stem, a ``CNNBlockBase``.
        stages: lists of blocks, res2 first.
        num_classes: add a classification head, ``linear``, for so many classes.
        out_features: what ``forward`` returns: any of "stem", "res2" to "res5", "linear"; None for
            the last layer's output. Stages behind the last one asked for are not built in.
        freeze_at: 0 freezes nothing, 1 the stem, 2 also res2, up to 5 for the whole backbone.

    Raises:
        ValueError: an output feature that is not there, a classification head that is not put out,
            or a freeze_at outside 0 to 5.
    """

    def __init__(
        self,
        stem: CNNBlockBase,
        stages: Sequence[Sequence[CNNBlockBase]],
        num_classes: int | None = None,
        out_features: Sequence[str] | None = None,
        freeze_at: int = 0,
    ) -> None:
        if num_classes is not None:
            if num_classes < 1:
                raise ValueError(f"num_classes must be at least 1, got {num_classes}")
            if out_features is not None and "linear" not in out_features:
                raise ValueError(f"num_classes needs 'linear' in out_features {out_features}")
        allowed = ("stem", *STAGE_NAMES[: len(stages)], *(["linear"] if num_classes else []))
        if out_features is not None:
            unknown = [name for name in out_features if name not in allowed]
            if unknown or not out_features:
                what = f"unknown output features {unknown}" if unknown else "no output features"
                raise ValueError(f"{what}; allowed are {', '.join(allowed)}")
        if freeze_at not in range(NUM_STAGES + 2):
            raise ValueError(f"freeze_at must be 0 to {NUM_STAGES + 1}, got {freeze_at}")
        if num_classes is not None and out_features is not None:
            # Detectron2 keeps the stages up to the last one named, and the head needs all of them.
            last = STAGE_NAMES[len(stages) - 1]
            super().__init__(stem, stages, num_classes, [*out_features, last], freeze_at)
            self._out_features = list(out_features)
        else:
            super().__init__(stem, stages, num_classes, out_features, freeze_at)
        if num_classes is not None:  # so that output_shape can tell of it; it has no stride
            self._out_feature_channels["linear"] = num_classes
            self._out_feature_strides["linear"] = None

    def __prepare_scriptable__(self) -> "ResNeSt":
        """What ``torch.jit.script`` compiles: TorchScript loops over a ModuleList, not a list."""
        scriptable = copy.copy(self)
        scriptable._modules = {k: v for k, v in self._modules.items() if k not in self.stage_names}
        scriptable.stages = nn.ModuleList(self.stages)
        # PyTorch leaves this copy in a module that holds a ResNeSt; its stages stay within reach.
        scriptable.__dict__.update(zip(self.stage_names, self.stages, strict=True))
        return scriptable


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
    norm: str | NormFactory | None = "BN",
    res4_dilation: int = 1,
    res5_dilation: int = 1,
    res5_multi_grid: Sequence[int] | None = None,
    deform_on_per_stage: Sequence[bool] = (False,) * NUM_STAGES,
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
        width_per_group: planes of res2; each later stage has twice as many.
        bottleneck_width: scales the group width, ``int(planes * bottleneck_width / 64) *
            num_groups`` (the paper's "d").
        res2_out_channels: output channels of res2; each later stage has twice as many.
        deep_stem: three 3x3 convolutions in place of one 7x7.
        stem_out_channels: only without ``deep_stem``; the deep stem's width comes with the depth.
        avd: carry strides in a 3x3 average pooling.
        avd_first: do so before the 3x3 convolution, not after it.
        avg_down: average pooling in front of projection shortcuts.
        norm: as in :class:`SplitAttentionConv2d`, for the whole backbone.
        res4_dilation: 2 keeps res4 at stride 8.
        res5_dilation: 2 keeps res5 at the stride of res4; with ``res4_dilation`` 2 it is 2 times
            that, 4. As in the ImageNet network, the first block of a dilated stage keeps its 3x3
            pooling, at stride 1, and the dilation of the stage before, since it sees the same
            input as ever; the later blocks are dilated.
        res5_multi_grid: factors of the dilations of a dilated res5, one a block (DeepLab v3,
            arXiv:1706.05587); None for none.
        deform_on_per_stage: which of res2 to res5 are deformable.
        deform_modulated: DCN v2, not v1.
        deform_num_groups: deformable groups.
        grad_checkpoint: recompute blocks in the backward pass to save their activations, but for
            those of the last stage, which are the first to be freed.
        num_classes: as in :class:`ResNeSt`.
        out_features: as in :class:`ResNeSt`.
        freeze_at: as in :class:`ResNeSt`.

    Raises:
        ValueError: an unknown depth or norm, or widths that do not divide.
    """
    if depth not in ARCHITECTURES:
        raise ValueError(f"unknown depth {depth}; allowed are {', '.join(map(str, ARCHITECTURES))}")
    dilations = _dilations(depth, res4_dilation, res5_dilation, res5_multi_grid)
    if len(deform_on_per_stage) != NUM_STAGES:
        raise ValueError(
            f"deform_on_per_stage needs {NUM_STAGES} entries, got {len(deform_on_per_stage)}"
        )
    architecture = ARCHITECTURES[depth]
    if deep_stem:
        stem: CNNBlockBase = ResNeStStem(in_channels, architecture.stem_width, norm)
    else:
        stem = BasicStem(in_channels, stem_out_channels, norm_factory(norm))

    stages = []
    stage_inputs = stem.out_channels
    wanted = _stages_needed(out_features)
    for index, num_blocks in enumerate(architecture.blocks[:wanted]):
        dilated = index in dilations
        rest = num_blocks - 1
        planes = width_per_group * 2**index
        outputs = res2_out_channels * 2**index
        stages.append(
            ResNet.make_stage(
                ResNeStBlock,
                num_blocks,
                stride_per_block=[1 if index == 0 or dilated else 2] + [1] * rest,
                dilation_per_block=dilations.get(index, [1] * num_blocks),
                is_first_per_block=[dilated] + [False] * rest,
                in_channels=stage_inputs,
                out_channels=outputs,
                bottleneck_channels=group_width(planes, bottleneck_width, num_groups),
                num_groups=num_groups,
                norm=norm,
                radix=radix,
                avd=avd,
                avd_first=avd_first,
                avg_down=avg_down,
                deformable=bool(deform_on_per_stage[index]),
                deform_modulated=deform_modulated,
                deform_num_groups=deform_num_groups,
                # Backward frees the last stage's activations before the earlier ones' peak.
                grad_checkpoint=grad_checkpoint and index < wanted - 1,
            )
        )
        stage_inputs = outputs
    return ResNeSt(stem, stages, num_classes, out_features, freeze_at)


def group_width(planes: int, bottleneck_width: int, num_groups: int) -> int:
    """Channels of a block's 3x3 convolution, as in the ImageNet network."""
    return int(planes * bottleneck_width / 64) * num_groups


def _dilations(
    depth: int, res4_dilation: int, res5_dilation: int, multi_grid: Sequence[int] | None
) -> dict[int, list[int]]:
    """Dilations of the blocks of each stage whose stride is traded for them, by stage index."""
    if (res4_dilation, res5_dilation) not in ((1, 1), (1, 2), (2, 4)):
        raise ValueError(
            "res4_dilation and res5_dilation must be 1 and 1, 1 and 2 or 2 and 4, "
            f"got {res4_dilation} and {res5_dilation}"
        )
    res4_blocks, res5_blocks = ARCHITECTURES[depth].blocks[2:]
    grid = [1] * res5_blocks if multi_grid is None else list(multi_grid)
    if len(grid) != res5_blocks or min(grid) < 1:
        raise ValueError(
            f"res5_multi_grid must have a factor of at least 1 for each of res5's {res5_blocks} "
            f"blocks, got {grid}"
        )
    dilations = {}
    if res4_dilation > 1:
        dilations[2] = [1] + [2] * (res4_blocks - 1)
    if res5_dilation > 1:
        bases = [res4_dilation] + [res5_dilation] * (res5_blocks - 1)
        dilations[3] = [base * factor for base, factor in zip(bases, grid, strict=True)]
    return dilations


def _stages_needed(out_features: Sequence[str] | None) -> int:
    """How many stages lead to the last feature; blocks behind it would get no gradient."""
    if out_features is None or not set(out_features) <= {"stem", *STAGE_NAMES}:
        return NUM_STAGES
    return max((STAGE_NAMES.index(f) + 1 for f in out_features if f != "stem"), default=0)
