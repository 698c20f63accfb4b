"""Running trained detectors on images and videos."""

from .optimize import optimize_for_inference
from .predictor import Predictor
from .run import predict_inputs
from .settings import set_score_threshold

__all__ = ["Predictor", "optimize_for_inference", "predict_inputs", "set_score_threshold"]
