"""Looking into predictions: pages that show where a detector is right and where it errs."""

from .comparison import Run, write_comparison
from .report import write_report
from .results import Analysis, analyze, read_predictions

__all__ = ["Analysis", "Run", "analyze", "read_predictions", "write_comparison", "write_report"]
