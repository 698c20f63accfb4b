"""Detectors as files that run elsewhere: ONNX and torch.export."""

from .graph import DetectorGraph
from .runtimes import ExportedModel, load_exported
from .writer import export_model

__all__ = ["DetectorGraph", "ExportedModel", "export_model", "load_exported"]
