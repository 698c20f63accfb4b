"""Running trained detectors on pictures of every kind."""

from ..config import known_warnings  # noqa: F401  (it silences them)
from .predictor import Predictor
from .result import Result

__all__ = ["Predictor", "Result"]
