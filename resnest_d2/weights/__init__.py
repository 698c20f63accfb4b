"""Published weights: what exists and where, fetching it, and converting its names."""

from .convert import UnreadableError, convert
from .fetch import FetchError, hash_problem, promised_hash, read_note, register_handlers
from .files import read_checkpoint
from .loading import (
    RecordingCheckpointer,
    UntrainedParametersError,
    load_detector,
    load_weights,
    read_classes,
)

__all__ = [
    "FetchError",
    "RecordingCheckpointer",
    "UnreadableError",
    "UntrainedParametersError",
    "convert",
    "hash_problem",
    "load_detector",
    "load_weights",
    "promised_hash",
    "read_checkpoint",
    "read_classes",
    "read_note",
    "register_handlers",
]
