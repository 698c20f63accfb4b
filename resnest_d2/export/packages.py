"""The packages of the extra ``export``."""

import importlib
from types import ModuleType


def import_for_onnx(name: str) -> ModuleType:
    """Import onnx, onnxscript or onnxruntime, or a module of these.

    Raises:
        ImportError: it is not installed; the message names it and the extra.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.partition(".")[0]:
            raise
        raise ImportError(
            f"ONNX files need {error.name}, which is not installed: "
            "pip install 'resnest_d2[export]'"
        ) from error
