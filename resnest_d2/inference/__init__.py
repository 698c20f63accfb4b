"""Running trained detectors on images and videos."""

from .predictor import Predictor
from .run import predict_inputs
from .settings import set_score_threshold

__all__ = ["Predictor", "predict_inputs", "set_score_threshold"]
