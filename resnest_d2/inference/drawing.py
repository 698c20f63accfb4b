"""Matplotlib and OpenCV, with which pictures and videos are drawn: the extra ``draw``."""

import importlib
from types import ModuleType

PACKAGES = ("cv2", "matplotlib")


def import_to_draw(name: str) -> ModuleType:
    """Import a module of these packages, or one of Detectron2 that imports them.

    Raises:
        ImportError: a package is not installed; the message names it and the extra.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in PACKAGES:
            raise
        raise ImportError(
            f"detections are drawn with Matplotlib and OpenCV, and {missing} is not installed: "
            "pip install 'resnest_d2[draw]'"
        ) from error
