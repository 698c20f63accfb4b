"""Channel order and normalisation: what weights were made for, and what a model is fed."""

import logging
import math
from dataclasses import asdict, dataclass
from itertools import zip_longest
from typing import Any

from detectron2.utils.logger import log_first_n
from torch import nn

# In steps of 0 to 255. ImageNet's own mean differs by up to 0.5 from what Detectron2's RGB models
# are given, a hundredth of the deviation: not worth a warning.
TOLERANCE = 1.0


@dataclass(frozen=True)
class InputFormat:
    """Images as a network sees them, in values from 0 to 255."""

    channels: str
    """``INPUT.FORMAT``; "" where it is not known."""
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __str__(self) -> str:
        mean, std = (" ".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return f"{self.channels or 'images'} with mean {mean} and std {std}"

    def fits(self, other: "InputFormat") -> bool:
        """Return whether weights for one of them work with the other."""
        if self.channels and other.channels and self.channels != other.channels:
            return False
        pairs = zip_longest(self.mean + self.std, other.mean + other.std, fillvalue=math.inf)
        return all(abs(a - b) <= TOLERANCE for a, b in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for a checkpoint."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


# The authors' and timm's files for ImageNet, in torchvision's constants times 255.
IMAGENET_RGB = InputFormat("RGB", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
# The reference's and MMDetection's detectors.
DETECTRON2_RGB = InputFormat("RGB", (123.68, 116.779, 103.939), (58.393, 57.12, 57.375))
# Detectron2's defaults, with which its MSRA ResNets go.
MSRA_BGR = InputFormat("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
# Detectron2's files whose format is in its documentation, by the start of their names.
DETECTRON2_FILES = {
    "detectron2://ImageNetPretrained/MSRA/R-": MSRA_BGR,
    "detectron2://ImageNetPretrained/torchvision/": IMAGENET_RGB,
}


def from_dict(content: Any) -> InputFormat | None:
    """Read what ``to_dict`` returned; None for anything else."""
    try:
        mean, std = (tuple(map(float, content[key])) for key in ("mean", "std"))
        return InputFormat(str(content["channels"]), mean, std)
    except (LookupError, TypeError, ValueError):
        return None


def of_model(model: nn.Module) -> InputFormat | None:
    """Return what a model of Detectron2 is fed; None if it does not say."""
    mean, std = getattr(model, "pixel_mean", None), getattr(model, "pixel_std", None)
    if mean is None or std is None or mean.is_meta:
        return None
    # Six digits are the config's values; fp32 has added more.
    values = (tuple(float(f"{v:.6g}") for v in t.flatten().tolist()) for t in (mean, std))
    return InputFormat(getattr(model, "input_format", None) or "", *values)


def warn_if_it_differs(weights: str, theirs: InputFormat | None, ours: InputFormat | None) -> None:
    """Log once that weights made for images of ``theirs`` will see those of ``ours``."""
    if theirs and ours and not theirs.fits(ours):
        message = (
            f"{weights} was made for {theirs}, but INPUT.FORMAT, MODEL.PIXEL_MEAN and "
            f"MODEL.PIXEL_STD are those of {ours}: results will be worse than they could be"
        )
        log_first_n(logging.WARNING, message, name=__name__, key="message")
