"""Building whole detectors."""

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from torch import nn

from ..config import ConfigError, did_you_mean
from . import build, roi_heads  # noqa: F401  (they register what a config may name)
from .check_config import IS_OUR_LOADER


def build_detector(cfg: CfgNode) -> nn.Module:
    """Detectron2's ``build_model``: the model of a config, with random weights, on its device.

    PointRend's mask head is one that trains on batches without objects, too.

    Raises:
        ConfigError: no builder has the name in ``MODEL.BACKBONE.NAME``; or, as the builders of this
            package, a setting is not possible.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name not in BACKBONE_REGISTRY:
        hint = did_you_mean(name, (known for known, _ in BACKBONE_REGISTRY))
        raise ConfigError(f"MODEL.BACKBONE.NAME: no builder is called {name!r}{hint}")
    if cfg.MODEL.ROI_MASK_HEAD.NAME == "PointRendMaskHead":
        from .pointrend import AnyBatchPointRendMaskHead

        cfg = cfg.clone()
        cfg.merge_from_list(["MODEL.ROI_MASK_HEAD.NAME", AnyBatchPointRendMaskHead.__name__])
    ours = IS_OUR_LOADER.set(True)
    try:
        return build_model(cfg)
    finally:
        IS_OUR_LOADER.reset(ours)
