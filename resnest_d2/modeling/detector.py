"""Building whole detectors from configs of both kinds."""

from detectron2.config import instantiate
from detectron2.modeling import build_model
from torch import nn

from ..config.settings import Config, Settings
from . import build, roi_heads  # noqa: F401  (they register what a config may name)


def build_detector(cfg: Config) -> nn.Module:
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
