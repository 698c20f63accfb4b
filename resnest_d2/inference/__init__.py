"""Running trained detectors on pictures of every kind."""

from .outputs import Outputs, list_inputs, predict_inputs
from .predictor import Predictor, set_score_threshold
from .result import Result

__all__ = [
    "Outputs",
    "Predictor",
    "Result",
    "list_inputs",
    "predict_inputs",
    "set_score_threshold",
]
