"""Published weights: what exists and where, fetching it, and converting its names."""

from .convert import convert, describe_conversion
from .fetch import MIRROR_VARIABLE, FetchError, hash_problem, promised_hash
from .handler import read_note, register_handlers
from .input_format import of_model, warn_if_it_differs
from .loading import (
    CLASS_METADATA,
    CLASSES_KEY,
    RecordingCheckpointer,
    UntrainedParametersError,
    checkpoint_errors,
    classes_in,
    load_detector,
    load_weights,
    parts,
    read_classes,
    require_file,
)
from .reading import UnreadableError, read_checkpoint

__all__ = [
    "CLASSES_KEY",
    "CLASS_METADATA",
    "MIRROR_VARIABLE",
    "FetchError",
    "RecordingCheckpointer",
    "UnreadableError",
    "UntrainedParametersError",
    "checkpoint_errors",
    "classes_in",
    "convert",
    "describe_conversion",
    "hash_problem",
    "load_detector",
    "load_weights",
    "of_model",
    "parts",
    "promised_hash",
    "read_checkpoint",
    "read_classes",
    "read_note",
    "register_handlers",
    "require_file",
    "warn_if_it_differs",
]
