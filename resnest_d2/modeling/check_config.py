"""Warnings of settings that build, and then find nothing."""

import logging
from contextvars import ContextVar

from detectron2.config import CfgNode
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.utils.logger import log_first_n

# Whether weights will be loaded by this package's loader, which knows what a file was made for.
IS_OUR_LOADER = ContextVar("IS_OUR_LOADER", default=False)
WITHOUT_REGIONS = ("FCOS", "ProposalNetwork", "RetinaNet", "SemanticSegmentor")


def warn_of_defaults(cfg: CfgNode) -> None:
    """Warn of Detectron2's own settings that published weights, by name or converted, do not fit.

    It is the builder that warns, because other projects load weights by other code than ours.
    """
    model = cfg.MODEL
    is_default = cfg.INPUT.FORMAT == "BGR" or list(model.PIXEL_STD) == [1, 1, 1]
    if model.WEIGHTS and is_default and not IS_OUR_LOADER.get():
        message = (
            f"INPUT.FORMAT {cfg.INPUT.FORMAT} and MODEL.PIXEL_STD {list(model.PIXEL_STD)}: "
            "published ResNeSt weights, and files converted from them, are for RGB with PIXEL_MEAN "
            "[123.68, 116.779, 103.939] and PIXEL_STD [58.393, 57.12, 57.375], and find nothing "
            "otherwise. Only a model that was trained with other settings is right with them"
        )
        log_first_n(logging.WARNING, message, name=__name__, key="message")
    heads = model.get("ROI_HEADS", {}).get("NAME", "")
    has_regions = heads in ROI_HEADS_REGISTRY and model.META_ARCHITECTURE not in WITHOUT_REGIONS
    if has_regions and "res5" not in model.RESNETS.OUT_FEATURES:
        build = getattr(ROI_HEADS_REGISTRY.get(heads), "_build_res5_block", None)
        if build is None or build.__module__.startswith("resnest_d2."):
            return
        message = (
            f"MODEL.ROI_HEADS.NAME {heads} has a plain ResNet's res5, half of which stays random "
            "with ResNeSt's weights: ResNeStRes5ROIHeads has ResNeSt's"
        )
        log_first_n(logging.WARNING, message, name=__name__, key="message")
