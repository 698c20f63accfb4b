"""From a Detectron2 config to ResNeSt backbones: the registered builders."""

from collections.abc import Callable
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from omegaconf import DictConfig
from torch import nn

from ..config.keys import RESNEST_DEFAULTS
from ..config.lazy import build_lazy_detector
from .norm import NORMS, convert_sync_batchnorm
from .resnest import (
    ARCHITECTURES,
    NUM_STAGES,
    STAGE_NAMES,
    ResNeSt,
    group_width,
    make_resnest,
)

# Called with the config of every ResNeSt that any project builds; weights check colours here.
CONFIG_CHECKS: list[Callable[[CfgNode], None]] = []


def _register(builder: Callable) -> Callable:
    name = builder.__name__
    if name in BACKBONE_REGISTRY and BACKBONE_REGISTRY.get(name).__module__ != __name__:
        raise ImportError(
            f"{name} is already registered by {BACKBONE_REGISTRY.get(name).__module__}; a process "
            "can import that package or resnest_d2, which replaces it"
        )
    if name not in BACKBONE_REGISTRY:  # it is there if this module is reloaded
        BACKBONE_REGISTRY.register(builder)
    return builder


@_register
def build_resnest_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNeSt:
    """Build the ResNeSt that ``cfg.MODEL.RESNETS`` describes.

    A config without ResNeSt's own keys gets their defaults. ``STRIDE_IN_1X1`` has no meaning for
    ResNeSt and is not read; ``STEM_OUT_CHANNELS`` is read only without ``DEEP_STEM``. Of the keys
    of Detectron2's project DeepLab, ``RES4_DILATION`` and ``RES5_MULTI_GRID`` are read where they
    are there; ``STEM_TYPE`` is not, ``DEEP_STEM`` being that stem.

    Args:
        cfg: a Detectron2 config.
        input_shape: of the image; its channels are used.

    Raises:
        ValueError: a setting that is not possible; the message names the key.
    """
    resnets = cfg.MODEL.RESNETS
    own = {key: resnets.get(key, default) for key, default in RESNEST_DEFAULTS.items()}
    _check(resnets, own, cfg.MODEL.BACKBONE.FREEZE_AT)
    for check in CONFIG_CHECKS:
        check(cfg)
    try:
        return make_resnest(
            resnets.DEPTH,
            in_channels=input_shape.channels,
            radix=own["RADIX"],
            num_groups=resnets.NUM_GROUPS,
            width_per_group=resnets.WIDTH_PER_GROUP,
            bottleneck_width=own["BOTTLENECK_WIDTH"],
            res2_out_channels=resnets.RES2_OUT_CHANNELS,
            deep_stem=own["DEEP_STEM"],
            stem_out_channels=resnets.STEM_OUT_CHANNELS,
            avd=own["AVD"],
            avd_first=own["AVD_FIRST"],
            avg_down=own["AVG_DOWN"],
            norm=resnets.NORM,
            res4_dilation=resnets.get("RES4_DILATION", 1),
            res5_dilation=resnets.RES5_DILATION,
            res5_multi_grid=_multi_grid(resnets),
            deform_on_per_stage=resnets.DEFORM_ON_PER_STAGE,
            deform_modulated=resnets.DEFORM_MODULATED,
            deform_num_groups=resnets.DEFORM_NUM_GROUPS,
            grad_checkpoint=own["GRAD_CHECKPOINT"],
            out_features=resnets.OUT_FEATURES,
            freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        )
    except ValueError as error:  # all else was checked: GN and a number of channels
        raise ValueError(f"MODEL.RESNETS.NORM: {error}") from error


@_register
def build_resnest_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build ResNeSt-FPN with a max-pooled P6, for Faster, Mask and Cascade R-CNN.

    Raises:
        ValueError: as in :func:`build_resnest_backbone`, and for wrong ``MODEL.FPN`` keys.
    """
    bottom_up = build_resnest_backbone(cfg, input_shape)
    return _build_fpn(cfg, bottom_up, LastLevelMaxPool())


@_register
def build_retinanet_resnest_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build ResNeSt-FPN with P6 and P7 convolved from res5, for RetinaNet and FCOS.

    Raises:
        ValueError: as in :func:`build_resnest_fpn_backbone`, and if res5 is no output feature.
    """
    bottom_up = build_resnest_backbone(cfg, input_shape)
    shapes = bottom_up.output_shape()
    if "res5" not in shapes:
        raise ValueError(
            f"MODEL.RESNETS.OUT_FEATURES {list(shapes)} must hold 'res5', from which "
            "build_retinanet_resnest_fpn_backbone makes P6 and P7"
        )
    top_block = LastLevelP6P7(shapes["res5"].channels, cfg.MODEL.FPN.OUT_CHANNELS)
    return _build_fpn(cfg, bottom_up, top_block)


def build_detector(cfg: CfgNode | DictConfig) -> nn.Module:
    """``detectron2.modeling.build_model``, with SyncBN that works on any device in the heads too.

    Args:
        cfg: a config of either kind, from YAML or a LazyConfig.

    Raises:
        ValueError: a setting of the backbone that is not possible.
    """
    if isinstance(cfg, CfgNode):
        return convert_sync_batchnorm(build_model(cfg))
    return build_lazy_detector(cfg)


def _build_fpn(cfg: CfgNode, bottom_up: ResNeSt, top_block: nn.Module) -> FPN:
    fpn = cfg.MODEL.FPN
    available = list(bottom_up.output_shape())
    missing = [name for name in fpn.IN_FEATURES if name not in available]
    if missing or not fpn.IN_FEATURES:
        raise ValueError(
            f"MODEL.FPN.IN_FEATURES {list(fpn.IN_FEATURES)} must name features of "
            f"MODEL.RESNETS.OUT_FEATURES {available}"
        )
    if not isinstance(fpn.OUT_CHANNELS, int) or fpn.OUT_CHANNELS < 1:
        raise ValueError(f"MODEL.FPN.OUT_CHANNELS must be at least 1, got {fpn.OUT_CHANNELS}")
    _require_one_of("MODEL.FPN.NORM", fpn.NORM, NORMS)
    _require_one_of("MODEL.FPN.FUSE_TYPE", fpn.FUSE_TYPE, ("sum", "avg"))
    try:
        backbone = FPN(
            bottom_up=bottom_up,
            in_features=fpn.IN_FEATURES,
            out_channels=fpn.OUT_CHANNELS,
            norm=fpn.NORM,
            top_block=top_block,
            fuse_type=fpn.FUSE_TYPE,
        )
    except (AssertionError, ValueError) as error:  # strides with a gap; GN and OUT_CHANNELS
        raise ValueError(
            f"MODEL.FPN cannot be built with IN_FEATURES {list(fpn.IN_FEATURES)}, OUT_CHANNELS "
            f"{fpn.OUT_CHANNELS} and NORM {fpn.NORM!r}: {error}"
        ) from error
    return convert_sync_batchnorm(backbone)


def _check(resnets: CfgNode, own: dict[str, Any], freeze_at: int) -> None:
    """Name the key of a setting that cannot work, before anything is built."""
    prefix = "MODEL.RESNETS."
    _require_one_of(prefix + "DEPTH", resnets.DEPTH, tuple(ARCHITECTURES))
    _require_one_of(prefix + "NORM", resnets.NORM, NORMS)
    _check_dilations(resnets)
    _require_one_of("MODEL.BACKBONE.FREEZE_AT", freeze_at, tuple(range(NUM_STAGES + 2)))
    for key in ("DEEP_STEM", "AVD", "AVD_FIRST", "AVG_DOWN", "GRAD_CHECKPOINT"):
        _require_one_of(prefix + key, own[key], (True, False))

    numbers = {**resnets, **own}
    minima = {"RADIX": 0, "NUM_GROUPS": 1, "WIDTH_PER_GROUP": 1, "BOTTLENECK_WIDTH": 1}
    minima |= {"DEFORM_NUM_GROUPS": 1, "STEM_OUT_CHANNELS": 1, "RES2_OUT_CHANNELS": 1}
    for key, least in minima.items():
        value = numbers[key]
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"{prefix}{key} must be an integer of at least {least}, got {value!r}")

    allowed = ("stem", *STAGE_NAMES)
    features = resnets.OUT_FEATURES
    unknown = [name for name in features if name not in allowed]
    if unknown or not features:
        raise ValueError(
            f"{prefix}OUT_FEATURES must name one or more of {', '.join(allowed)}, "
            f"got {list(features)}"
        )
    deform = resnets.DEFORM_ON_PER_STAGE
    if len(deform) != NUM_STAGES:
        raise ValueError(
            f"{prefix}DEFORM_ON_PER_STAGE must have {NUM_STAGES} entries, one each for res2 to "
            f"res5, got {len(deform)}: {list(deform)}"
        )

    splits = resnets.NUM_GROUPS * max(own["RADIX"], 1)
    for index, name in enumerate(STAGE_NAMES):
        planes = resnets.WIDTH_PER_GROUP * 2**index
        width = group_width(planes, own["BOTTLENECK_WIDTH"], resnets.NUM_GROUPS)
        if width < splits or width % splits:
            raise ValueError(
                f"{prefix}NUM_GROUPS {resnets.NUM_GROUPS} times {prefix}RADIX {own['RADIX']} must "
                f"divide {name}'s group width {width} (int(WIDTH_PER_GROUP * 2^stage * "
                "BOTTLENECK_WIDTH / 64) * NUM_GROUPS)"
            )
        if deform[index] and width % resnets.DEFORM_NUM_GROUPS:
            raise ValueError(
                f"{prefix}DEFORM_NUM_GROUPS {resnets.DEFORM_NUM_GROUPS} must divide {name}'s "
                f"group width {width}"
            )


def _multi_grid(resnets: CfgNode) -> list[int] | None:
    """Only a dilated res5 has one; DeepLab's key is there with a default for every model."""
    return resnets.get("RES5_MULTI_GRID", None) if resnets.RES5_DILATION > 1 else None


def _check_dilations(resnets: CfgNode) -> None:
    res4 = resnets.get("RES4_DILATION", 1)
    _require_one_of("MODEL.RESNETS.RES4_DILATION", res4, (1, 2))
    beside = " with MODEL.RESNETS.RES4_DILATION 2" if res4 == 2 else ""
    allowed = (4,) if res4 == 2 else (1, 2)
    _require_one_of(f"MODEL.RESNETS.RES5_DILATION{beside}", resnets.RES5_DILATION, allowed)
    grid = _multi_grid(resnets)
    blocks = ARCHITECTURES[resnets.DEPTH].blocks[-1]
    if grid is not None and (len(grid) != blocks or min(grid) < 1):
        raise ValueError(
            f"MODEL.RESNETS.RES5_MULTI_GRID must have {blocks} factors of at least 1, one for "
            f"each block of res5, got {list(grid)}"
        )


def _require_one_of(key: str, value: Any, allowed: tuple) -> None:
    if value not in allowed:
        raise ValueError(f"{key} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
