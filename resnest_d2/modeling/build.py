"""The registered builders: from a Detectron2 config to ResNeSt backbones."""

import inspect
import re
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from torch import nn

from ..config import ConfigError
from .check_config import warn_of_defaults
from .resnest import ResNeSt, make_resnest

# A key of MODEL.RESNETS is the upper case of an argument of make_resnest, these apart.
ARGUMENTS = set(inspect.signature(make_resnest).parameters)
ARGUMENTS -= {"in_channels", "num_classes", "freeze_at"}
# Keys of Detectron2's project DeepLab. Other projects add them with other values in mind, so only
# the DeepLab builder reads them.
DEEPLAB_ARGUMENTS = {"res4_dilation", "res5_multi_grid"}
KEYS = {name: f"MODEL.RESNETS.{name.upper()}" for name in ARGUMENTS}
KEYS |= {"freeze_at": "MODEL.BACKBONE.FREEZE_AT", "groups": "MODEL.RESNETS.NUM_GROUPS"}


@BACKBONE_REGISTRY.register()
def build_resnest_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNeSt:
    """Build the ResNeSt that ``cfg.MODEL.RESNETS`` describes.

    A key that the config lacks takes :func:`make_resnest`'s default. ``STRIDE_IN_1X1`` has no
    meaning for ResNeSt and is not read.

    Args:
        cfg: a Detectron2 config.
        input_shape: shape of the image, whose channels are used.

    Raises:
        ConfigError: a setting that is not possible; the message names the key.
    """
    return _build(cfg, input_shape, ARGUMENTS - DEEPLAB_ARGUMENTS)


@BACKBONE_REGISTRY.register()
def build_resnest_deeplab_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> ResNeSt:
    """As :func:`build_resnest_backbone`, with ``RES4_DILATION`` and ``RES5_MULTI_GRID``.

    These are keys of ``detectron2.projects.deeplab``, whose ``build_resnet_deeplab_backbone`` reads
    them likewise.
    """
    return _build(cfg, input_shape, ARGUMENTS)


def _build(cfg: CfgNode, input_shape: ShapeSpec, names: set[str]) -> ResNeSt:
    resnets = cfg.MODEL.RESNETS
    arguments: dict[str, Any] = {n: resnets[n.upper()] for n in names if n.upper() in resnets}
    arguments |= {"in_channels": input_shape.channels, "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT}
    warn_of_defaults(cfg)
    try:
        return make_resnest(**arguments)
    except ConfigError as error:
        text = re.sub(r"\b[a-z_0-9]+\b", lambda word: KEYS.get(word[0], word[0]), str(error))
        raise ConfigError(text) from error


@BACKBONE_REGISTRY.register()
def build_resnest_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build ResNeSt-FPN with a max-pooled P6, for Faster, Mask and Cascade R-CNN.

    Raises:
        ConfigError: as in :func:`build_resnest_backbone`, and for wrong ``MODEL.FPN.IN_FEATURES``.
    """
    return _build_fpn(cfg, build_resnest_backbone(cfg, input_shape), LastLevelMaxPool())


@BACKBONE_REGISTRY.register()
def build_retinanet_resnest_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build ResNeSt-FPN with P6 and P7 convolved from res5, for RetinaNet and FCOS.

    Raises:
        ConfigError: as in :func:`build_resnest_fpn_backbone`.
    """
    bottom_up = build_resnest_backbone(cfg, input_shape)
    channels = bottom_up.output_shape()["res5"].channels
    return _build_fpn(cfg, bottom_up, LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS))


def _build_fpn(cfg: CfgNode, bottom_up: ResNeSt, top: nn.Module) -> FPN:
    fpn, available = cfg.MODEL.FPN, list(bottom_up.output_shape())
    if set(fpn.IN_FEATURES) - set(available):
        raise ConfigError(
            f"MODEL.FPN.IN_FEATURES {list(fpn.IN_FEATURES)} must name features of "
            f"MODEL.RESNETS.OUT_FEATURES {available}"
        )
    return FPN(bottom_up, fpn.IN_FEATURES, fpn.OUT_CHANNELS, fpn.NORM, top, fpn.FUSE_TYPE)
