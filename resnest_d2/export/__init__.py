"""Detectors as files that run elsewhere: ONNX and torch.export."""

from .graph import DetectorGraph
from .runtimes import ExportedModel, Format, load_exported
from .writer import export_model, export_program

__all__ = [
    "DetectorGraph",
    "ExportedModel",
    "Format",
    "export_model",
    "export_program",
    "load_exported",
]
