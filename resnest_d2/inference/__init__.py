"""Running trained detectors on images and videos."""

from .files import predict_inputs
from .predictor import Predictor, set_score_threshold

__all__ = ["Predictor", "predict_inputs", "set_score_threshold"]
