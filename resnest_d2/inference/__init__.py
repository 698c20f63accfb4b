"""Running trained detectors on pictures of every kind."""

from .predictor import Predictor
from .result import Result

__all__ = ["Predictor", "Result"]
