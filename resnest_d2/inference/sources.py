"""Pictures of every kind that the predictor takes: files, addresses, arrays, folders, videos."""

import logging
import os
import shutil
import tempfile
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..config import InputError
from ..data.images import IMAGE_ENDINGS, from_pil, read_image
from .drawing import import_to_draw

logger = logging.getLogger(__name__)

VIDEO_ENDINGS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
ADDRESSES = ("http://", "https://")
TIMEOUT = 30  # seconds without an answer

# A path or an address, an image of Pillow, or an array (H, W, 3), uint8.
Picture = str | Path | Image.Image | np.ndarray


def is_video(source: Any) -> bool:
    """Whether this is the path of a video, by its ending."""
    return isinstance(source, str | Path) and Path(source).suffix.lower() in VIDEO_ENDINGS


def is_picture(source: Any) -> bool:
    """Whether this is one picture, not a folder, a video or several."""
    if isinstance(source, str | Path):
        return not is_video(source) and not os.path.isdir(source)
    return isinstance(source, Image.Image | np.ndarray)


def require_pictures(source: Any) -> None:
    """See that a source may hold pictures, before any is read.

    Raises:
        ValueError: it is of another kind.
        FileNotFoundError: there is no such file or folder, or the folder holds none.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        if not str(source).startswith(ADDRESSES) and not path.exists():
            raise FileNotFoundError(f"there is no file or folder {source}")
        if path.is_dir() and not list_folder(path):
            raise FileNotFoundError(f"folder {source} holds no image or video")
    elif not isinstance(source, Iterable | Image.Image) or isinstance(source, torch.Tensor):
        raise ValueError(f"a {type(source).__name__} holds no pictures")


def read_picture(source: Picture, color: str = "RGB") -> np.ndarray:
    """Read one picture.

    Args:
        source: a file's path or address, an image of Pillow, or an array (H, W, 3), uint8.
        color: the order of an array's channels, "RGB" or "BGR".

    Returns:
        shape (H, W, 3), uint8, RGB.

    Raises:
        ValueError: an array is not (H, W, 3) uint8, or the colour or the kind of source is another.
        InputError, FileNotFoundError: as :func:`read_image`; an address does not answer.
    """
    if color not in ("RGB", "BGR"):
        raise ValueError(f'color must be "RGB" or "BGR", got {color!r}')
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
            found = f"{source.shape} {source.dtype}"
            raise ValueError(f"expected an {color} image (H, W, 3) uint8, got {found}")
        return source if color == "RGB" else np.ascontiguousarray(source[:, :, ::-1])
    if isinstance(source, Image.Image):
        return from_pil(source)
    if not isinstance(source, str | Path):
        kinds = "a path, an address, an image of Pillow or an array"
        raise ValueError(f"a picture is {kinds}, got {type(source).__name__}")
    if str(source).startswith(ADDRESSES):
        return _read_address(str(source))
    return read_image(source)


def _read_address(address: str) -> np.ndarray:
    with tempfile.NamedTemporaryFile() as file:
        try:
            quoted = urllib.parse.quote(address, safe="%/:=&?~#+!$,;'@()*[]")
            with urllib.request.urlopen(quoted, timeout=TIMEOUT) as answer:
                shutil.copyfileobj(answer, file)
            file.flush()
            return read_image(file.name)
        except (urllib.error.URLError, TimeoutError, ConnectionError, HTTPException) as error:
            raise InputError(f"{address} cannot be fetched: {error}") from error
        except InputError as error:
            raise InputError(str(error).replace(file.name, address)) from error


def list_folder(folder: Path) -> list[Path]:
    """Pictures and videos directly in a folder, in the order of their names."""
    endings = IMAGE_ENDINGS | VIDEO_ENDINGS
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in endings)


def each_picture(source: Any) -> Iterator[tuple[Any, Picture]]:
    """Take a folder, a video or an iterable apart, lazily.

    Yields:
        what a picture is called (a path, an address, a frame's number or None), and the picture.

    Raises:
        FileNotFoundError, ValueError: as :func:`require_pictures`, of the parts of an iterable.
    """
    if is_picture(source):
        yield source if isinstance(source, str | Path) else None, source
    elif is_video(source):
        with Video(Path(source)) as video:
            yield from enumerate(video)
    elif isinstance(source, str | Path):
        for file in list_folder(Path(source)):
            yield from each_picture(file)
    else:
        for part in source:
            require_pictures(part)
            yield from each_picture(part)


class Video:
    """The frames of a video, shape (H, W, 3), uint8, RGB; the log says if some are missing.

    Attributes:
        frames: their number, as the file has it or as its length says; 0 if it does not tell.
        rate: frames a second.
        read: frames that were read so far.

    Raises:
        ImportError: OpenCV is not installed.
        InputError: the file is no video.
    """

    DEFAULT_RATE = 25.0

    def __init__(self, file: Path) -> None:
        cv2 = import_to_draw("cv2")
        self._file, self._capture = file, cv2.VideoCapture(str(file))
        if not self._capture.isOpened():
            raise InputError(f"{file} cannot be read as a video")
        self.read = 0
        self.frames = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        self.rate = self._capture.get(cv2.CAP_PROP_FPS) or self.DEFAULT_RATE

    def __iter__(self) -> Iterator[np.ndarray]:
        while True:
            was_read, frame = self._capture.read()
            if not was_read:
                break
            self.read += 1
            yield np.ascontiguousarray(frame[:, :, ::-1])  # OpenCV decodes to BGR
        if not self.read:
            raise InputError(f"{self._file} cannot be read as a video")
        if self.is_cut:
            message = "%s is damaged: only %d of its %d frames were read"
            logger.error(message, self._file, self.read, self.frames)

    @property
    def is_cut(self) -> bool:
        """Whether far fewer frames were read than there are, of which some files tell roughly."""
        return self.read < 0.95 * self.frames - 1

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *error: object) -> None:
        self._capture.release()
