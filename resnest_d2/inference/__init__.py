"""Running trained detectors on images and videos."""

from .predictor import Predictor
from .run import predict_inputs

__all__ = ["Predictor", "predict_inputs"]
