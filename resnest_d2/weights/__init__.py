"""Published weights: what exists and where, fetching it, and converting its names."""

from .convert import convert
from .handler import register_handlers
from .loading import (
    CLASSES_KEY,
    RecordingCheckpointer,
    UntrainedParametersError,
    checkpoint_errors,
    load_detector,
    load_weights,
    parts,
    read_classes,
)

__all__ = [
    "CLASSES_KEY",
    "RecordingCheckpointer",
    "UntrainedParametersError",
    "checkpoint_errors",
    "convert",
    "load_detector",
    "load_weights",
    "parts",
    "read_classes",
    "register_handlers",
]
