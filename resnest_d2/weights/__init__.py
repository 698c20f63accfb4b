"""Published weights: what exists and where, fetching it, and converting its names."""

from .convert import convert
from .handler import register_handlers
from .loading import UntrainedParametersError, load_weights

__all__ = ["UntrainedParametersError", "convert", "load_weights", "register_handlers"]
