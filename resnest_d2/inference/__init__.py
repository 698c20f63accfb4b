"""Running trained detectors on images and videos."""

from ..config.settings import set_score_threshold
from ..optimize.optimize import optimize_for_inference
from .files import predict_inputs
from .predictor import Predictor

__all__ = ["Predictor", "optimize_for_inference", "predict_inputs", "set_score_threshold"]
