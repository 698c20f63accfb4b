"""Backbones to compare: the reference, timm's and Detectron2's ResNet, beside ours."""

from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import nn

from resnest_d2.config.keys import add_resnest_config

STAGES = ["res2", "res3", "res4", "res5"]
# Depths that all of them have.
TIMM = {50: "resnest50d", 101: "resnest101e", 200: "resnest200e", 269: "resnest269e"}
REFERENCE = "reference (resnest.d2)"


def config(depth: int) -> CfgNode:
    """Of a backbone with plain batch norm that puts out all stages."""
    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = STAGES
    return cfg


def timm_backbone(depth: int) -> nn.Module:
    """timm's, with the same four stages."""
    import timm

    return timm.create_model(TIMM[depth], features_only=True, out_indices=(1, 2, 3, 4))


def reference_backbone(depth: int) -> nn.Module:
    """That of PyPI's ``resnest``."""
    names = ("build_resnest_backbone", "build_resnest_fpn_backbone")
    # It registers the names that ours register, and a registry has no public way to take one out.
    ours = {name: BACKBONE_REGISTRY._obj_map.pop(name) for name in names}
    try:
        from resnest.d2.config import add_resnest_config as add_theirs
        from resnest.d2.resnest import build_resnest_backbone as build_theirs
    finally:
        BACKBONE_REGISTRY._obj_map.update(ours)
    cfg = get_cfg()
    add_theirs(cfg)
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.NORM", "BN"])
    cfg.merge_from_list(["MODEL.RESNETS.RADIX", 2, "MODEL.RESNETS.OUT_FEATURES", STAGES])
    return build_theirs(cfg, ShapeSpec(channels=3))
