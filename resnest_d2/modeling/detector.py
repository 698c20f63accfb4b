"""Building whole detectors."""

from detectron2.config import CfgNode
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from torch import nn

from ..config import ConfigError, did_you_mean
from . import build, roi_heads  # noqa: F401  (they register what a config may name)


def build_detector(cfg: CfgNode) -> nn.Module:
    """Detectron2's ``build_model``: the model of a config, with random weights, on its device.

    Raises:
        ConfigError: no builder has the name in ``MODEL.BACKBONE.NAME``; or, as the builders of this
            package, a setting is not possible.
    """
    name = cfg.MODEL.BACKBONE.NAME
    if name not in BACKBONE_REGISTRY:
        hint = did_you_mean(name, (known for known, _ in BACKBONE_REGISTRY))
        raise ConfigError(f"MODEL.BACKBONE.NAME: no builder is called {name!r}{hint}")
    return build_model(cfg)
