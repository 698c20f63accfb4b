"""Published weights: what exists and where, fetching it, and converting its names."""

from .convert import convert
from .handler import register_handlers
from .loading import UntrainedParametersError, checkpoint_errors, load_weights

__all__ = [
    "UntrainedParametersError",
    "checkpoint_errors",
    "convert",
    "load_weights",
    "register_handlers",
]
