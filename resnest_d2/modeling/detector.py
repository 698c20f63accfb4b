"""Building whole detectors from configs of both kinds."""

from detectron2.config import CfgNode, instantiate
from detectron2.modeling import build_model
from omegaconf import DictConfig
from torch import nn

from ..config.settings import Settings
from . import build, roi_heads  # noqa: F401  (they register what a config may name)


def build_detector(cfg: CfgNode | DictConfig) -> nn.Module:
    """Build the model of a config, with random weights, on its device.

    Args:
        cfg: a config of either kind, or its ``Settings``.

    Raises:
        ConfigError: a setting of the backbone that is not possible.
    """
    settings = Settings.of(cfg)
    if settings.is_lazy:
        return instantiate(settings.cfg.model).to(settings.device)
    return build_model(settings.cfg)
