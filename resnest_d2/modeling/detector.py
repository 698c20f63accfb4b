"""Building whole detectors from configs of both kinds."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from detectron2.config import get_cfg, instantiate
from detectron2.modeling import BACKBONE_REGISTRY, build_model
from torch import nn

from ..config import ConfigError, did_you_mean, require_int
from ..config.keys import flat_items
from ..config.settings import Config, Settings
from . import build, roi_heads  # noqa: F401  (they register what a config may name)

# The keys that messages of Detectron2 are about, by words of these.
ABOUT = {
    "anchor": ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.RPN.IN_FEATURES"),
    "form a pyramid": ("MODEL.ROI_HEADS.IN_FEATURES",),
}


def build_detector(cfg: Config) -> nn.Module:
    """Build the model of a config, with random weights, on its device.

    Args:
        cfg: a config of either kind, or its ``Settings``.

    Raises:
        ConfigError: a setting that is not possible.
    """
    settings = Settings.of(cfg)
    if settings.is_lazy:
        return instantiate(settings.cfg.model).to(settings.device)
    with checked(settings):
        return build_model(settings.cfg)


@contextmanager
def checked(settings: Settings) -> Iterator[None]:
    """See that settings are possible, and name the key where Detectron2 builds and does not.

    Raises:
        ConfigError: no builder has the backbone's name, as the building of the model, and where
            Detectron2 trips over a setting.
    """
    if settings.is_lazy:
        yield
        return
    name = settings.get("MODEL.BACKBONE.NAME")
    if name not in BACKBONE_REGISTRY:
        hint = did_you_mean(name, (known for known, _ in BACKBONE_REGISTRY))
        raise ConfigError(f"MODEL.BACKBONE.NAME: no builder is called {name!r}{hint}")
    require_int(settings.num_classes_key, settings.get(settings.num_classes_key), 1)
    ours = dict(flat_items(settings.cfg.MODEL, "MODEL."))
    for key, default in flat_items(get_cfg().MODEL, "MODEL."):
        value = ours.get(key, default)
        if value is None and default is not None:
            raise ConfigError(f"{key} is None, and must be of the kind of {default!r}")
        if key.endswith(".IN_FEATURES") and not value and default:
            raise ConfigError(f"{key} is empty, and must name features")
    try:
        yield
    except (AssertionError, KeyError) as error:
        if isinstance(error, KeyError):
            keys = [key for key, value in ours.items() if _holds(value, error.args[0])]
            text = f"there is nothing named {error.args[0]!r}"
        else:
            keys = [key for words, found in ABOUT.items() if words in str(error) for key in found]
            text = str(error)
        if not keys:
            raise
        said = " or ".join(f"{key} {ours[key]!r}" for key in keys)
        raise ConfigError(f"{said} does not fit: {text}") from error


def _holds(value: Any, wrong: Any) -> bool:
    values = [value, *value] if isinstance(value, list | tuple) else [value]
    return any(type(one) is type(wrong) and one == wrong for one in values)  # 1 is not True
