"""Detectors as files that run elsewhere: ONNX, torch.export, AOTInductor, TorchScript."""

from .reader import ExportedModel, load_exported
from .writers import Format, export_model

__all__ = ["ExportedModel", "Format", "export_model", "load_exported"]
