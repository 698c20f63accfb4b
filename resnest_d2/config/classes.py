"""How many classes of things a model tells apart, in configs and models of every kind."""

import copy
from collections.abc import Mapping
from typing import Any

from detectron2.config import CfgNode
from omegaconf import DictConfig, OmegaConf
from torch import nn


def num_classes_key(cfg: CfgNode | DictConfig) -> str:
    """The key that sets how many classes of things a config's model has."""
    if isinstance(cfg, CfgNode):
        is_retinanet = cfg.MODEL.META_ARCHITECTURE == "RetinaNet"
        return f"MODEL.{'RETINANET' if is_retinanet else 'ROI_HEADS'}.NUM_CLASSES"
    return "model.roi_heads.num_classes" if "roi_heads" in cfg.model else "model.num_classes"


def num_classes(model: nn.Module) -> int | None:
    """How many classes of things a detector tells apart; None if it detects none."""
    head = getattr(model, "roi_heads", model)
    return getattr(head, "num_classes", None)


def set_num_classes(cfg: CfgNode | DictConfig, number: int) -> None:
    """Set a config's number of classes of things, in every head that has one, in place."""
    if isinstance(cfg, CfgNode):
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = cfg.MODEL.RETINANET.NUM_CLASSES = number
        if "POINT_HEAD" in cfg.MODEL:
            cfg.MODEL.POINT_HEAD.NUM_CLASSES = number
    else:
        OmegaConf.update(cfg, num_classes_key(cfg), number)


def fit_to_classes(cfg: CfgNode | DictConfig, classes: Mapping[str, Any]) -> CfgNode | DictConfig:
    """A copy of a config with as many classes and keypoints as a checkpoint was trained on.

    Args:
        cfg: a config of either kind.
        classes: what the checkpoint tells of them, under the names of Detectron2's metadata;
            nothing leaves the config as it is.
    """
    cfg = copy.deepcopy(cfg)
    if isinstance(cfg, CfgNode):
        cfg.defrost()
    if classes.get("thing_classes"):
        set_num_classes(cfg, len(classes["thing_classes"]))
    if classes.get("keypoint_names"):
        set_num_keypoints(cfg, len(classes["keypoint_names"]))
    return cfg


def set_num_keypoints(cfg: CfgNode | DictConfig, number: int) -> None:
    """Set how many keypoints a config's model finds, in place; one that finds none has no use."""
    if isinstance(cfg, CfgNode):
        cfg.MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS = number
    elif OmegaConf.select(cfg, "model.roi_heads.keypoint_head") is not None:
        cfg.model.roi_heads.keypoint_head.num_keypoints = number
