"""Matplotlib and OpenCV, with which pictures and videos are drawn: the extra ``draw``."""

from types import ModuleType

from ..config import import_extra

PACKAGES = ("cv2", "matplotlib")


def import_to_draw(name: str) -> ModuleType:
    """Import a module of these packages, or one of Detectron2 that imports them.

    Raises:
        ImportError: as :func:`import_extra`.
    """
    start = "detections are drawn with Matplotlib and OpenCV, and {}"
    return import_extra(name, start, "draw", PACKAGES)
