"""Running trained detectors on pictures of every kind."""

from .files import Outputs, predict_inputs
from .predictor import Predictor, set_score_threshold
from .result import Result

__all__ = ["Outputs", "Predictor", "Result", "predict_inputs", "set_score_threshold"]
