"""Building whole detectors from configs of both kinds."""

from detectron2.config import instantiate
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from torch import nn

from ..config import ConfigError, did_you_mean
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
    check_builder(settings)
    return build_model(settings.cfg)


def check_builder(settings: Settings) -> None:
    """See that the backbone's builder is registered.

    Raises:
        ConfigError: it is not; the message suggests one of a similar name.
    """
    name = settings.get("MODEL.BACKBONE.NAME")
    if not settings.is_lazy and name not in BACKBONE_REGISTRY:
        hint = did_you_mean(name, (known for known, _ in BACKBONE_REGISTRY))
        raise ConfigError(f"MODEL.BACKBONE.NAME: no builder is called {name!r}{hint}")
