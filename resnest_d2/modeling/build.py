"""The registered builders: from a Detectron2 config to ResNeSt backbones."""

import inspect
import logging
import re
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool, LastLevelP6P7
from detectron2.utils.logger import log_first_n
from torch import nn

from ..config import ConfigError
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
    _warn_of_defaults(cfg)
    try:
        return make_resnest(**arguments)
    except ConfigError as error:
        text = re.sub(r"\b[a-z_0-9]+\b", lambda word: KEYS.get(word[0], word[0]), str(error))
        raise ConfigError(text) from error


def _warn_of_defaults(cfg: CfgNode) -> None:
    """Warn of Detectron2's own settings that published weights, by name or converted, do not fit.

    It is the builder that warns, because other projects load weights by other code than ours.
    """
    model = cfg.MODEL
    if model.WEIGHTS and (cfg.INPUT.FORMAT == "BGR" or list(model.PIXEL_STD) == [1, 1, 1]):
        message = (
            f"INPUT.FORMAT {cfg.INPUT.FORMAT} and MODEL.PIXEL_STD {list(model.PIXEL_STD)}: "
            "published ResNeSt weights, and files converted from them, are for RGB with PIXEL_MEAN "
            "[123.68, 116.779, 103.939] and PIXEL_STD [58.393, 57.12, 57.375], and find nothing "
            "otherwise. Only a model that was trained with other settings is right with them"
        )
        log_first_n(logging.WARNING, message, name=__name__, key="message")
    heads = model.ROI_HEADS.NAME
    if heads in ROI_HEADS_REGISTRY and "res5" not in model.RESNETS.OUT_FEATURES:
        build = getattr(ROI_HEADS_REGISTRY.get(heads), "_build_res5_block", None)
        if build is None or build.__module__.startswith("resnest_d2."):
            return
        message = (
            f"MODEL.ROI_HEADS.NAME {heads} has a plain ResNet's res5, half of which stays random "
            "with ResNeSt's weights: ResNeStRes5ROIHeads has ResNeSt's"
        )
        log_first_n(logging.WARNING, message, name=__name__, key="message")


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
