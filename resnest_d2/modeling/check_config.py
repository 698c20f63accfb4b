"""Warnings of settings that build, and then find nothing."""

import logging

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.utils.logger import log_first_n


def warn_of_defaults(cfg: CfgNode) -> None:
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
