"""Published weights: what exists and where, fetching it, and converting its names."""

from .convert import convert
from .fetch import FetchError, register_handlers
from .files import Checkpoint, UnreadableError, read_checkpoint
from .loading import (
    UntrainedParametersError,
    WeightsCheckpointer,
    load_weights,
    open_weights,
)

__all__ = [
    "Checkpoint",
    "FetchError",
    "UnreadableError",
    "UntrainedParametersError",
    "WeightsCheckpointer",
    "convert",
    "load_weights",
    "open_weights",
    "read_checkpoint",
    "register_handlers",
]
