"""Pictures of every kind that the predictor takes: files, arrays, folders, videos."""

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from ..config import InputError, MissingFileError, import_extra
from ..data.images import IMAGE_ENDINGS, PixelRange, from_pil, read_image
from ..files import PathManager

if TYPE_CHECKING:
    import supervision

logger = logging.getLogger(__name__)

VIDEO_ENDINGS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
STREAMS = ("mms", "rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp")
DEFAULT_RATE = 25.0  # frames a second, of videos that do not tell
GREATEST_RATE = 1000.0  # above it a file tells the rate of its clock

# A path or an address, an image of Pillow, or an array (H, W, 3) or (H, W), uint8.
Picture = str | Path | Image.Image | np.ndarray


class Pixels(NamedTuple):
    """A picture that has been read."""

    image: np.ndarray
    """Shape (H, W, 3), uint8, RGB."""
    source: str | Path | None = None
    """The path or address of the picture or video; None for an array or an image of Pillow."""
    frame: int | None = None
    """Its number in a video, from 0."""


def is_video(source: str | Path) -> bool:
    """Whether this is the path or address of a video, by its ending."""
    return Path(source).suffix.lower() in VIDEO_ENDINGS


def kind_of(source: Any) -> Literal["picture", "video", "folder", "several"]:
    """Tell what a source is, before any of it is read.

    Raises:
        InputError: it is of another kind, a stream or the number of a camera.
        MissingFileError: there is no such file or folder, or the folder holds no picture.
    """
    name = str(source) if isinstance(source, str | int) else ""
    if name.partition("://")[0].lower() in STREAMS or (name.isdigit() and not Path(name).exists()):
        raise InputError(
            f"{name} is a stream or a camera, which has no end: record a part of it to a file, say "
            "by ffmpeg -t 10"
        )
    if isinstance(source, str | Path):
        path = Path(source)
        if "://" not in str(source) and not path.exists():
            raise MissingFileError(f"there is no file or folder {source}")
        if not path.is_dir():
            return "video" if is_video(path) else "picture"
        if not any(map(_is_found, path.iterdir())):
            raise MissingFileError(f"folder {source} holds no image or video")
        return "folder"
    if isinstance(source, Image.Image | np.ndarray):
        return "picture"
    if not isinstance(source, Iterable) or isinstance(source, torch.Tensor):
        raise InputError(f"a {type(source).__name__} holds no pictures")
    return "several"


def read_picture(
    source: Picture, color: str = "RGB", pixel_range: PixelRange | None = None
) -> np.ndarray:
    """Read one picture.

    Args:
        source: a file's path; an address, which Detectron2's PathManager fetches once and keeps;
            an image of Pillow; or an array, (H, W, 3) or grey (H, W), uint8.
        color: the order of an array's channels, "RGB" or "BGR".
        pixel_range: of pictures of more than 8 bits.

    Returns:
        shape (H, W, 3), uint8, RGB.

    Raises:
        InputError: an array has another shape or type, the colour is another, or as
            :func:`~resnest_d2.data.images.read_image`.
        MissingFileError: there is no such file.
    """
    if color not in ("RGB", "BGR"):
        raise InputError(f'color must be "RGB" or "BGR", got {color!r}')
    if isinstance(source, np.ndarray):
        is_grey = source.ndim == 2 or source.shape[2:] == (1,)
        if source.dtype != np.uint8 or not source.size or not (is_grey or source.shape[2:] == (3,)):
            found = f"{source.shape} {source.dtype}"
            raise InputError(f"expected an {color} image (H, W, 3) or (H, W) uint8, got {found}")
        if is_grey:
            return np.repeat(source.reshape(*source.shape[:2], 1), 3, axis=2)
        return source if color == "RGB" else np.ascontiguousarray(source[:, :, ::-1])
    if isinstance(source, Image.Image):
        return from_pil(source, pixel_range=pixel_range)
    return read_image(source, pixel_range=pixel_range)


def fetch(file: str | Path) -> str:
    """The path of a file, or of what Detectron2's PathManager fetches from an address and keeps.

    Raises:
        InputError: it cannot be fetched.
    """
    try:
        return PathManager.get_local_path(str(file))
    except OSError as error:
        raise InputError(f"{file} cannot be fetched: {error}") from error


def _is_found(path: Path) -> bool:
    is_hidden = path.name.startswith(".")
    return not is_hidden and path.suffix.lower() in IMAGE_ENDINGS | VIDEO_ENDINGS


def list_folder(folder: Path) -> list[Path]:
    """Pictures and videos directly in a folder, in the order of their names.

    The log says how many other files are left out, and their endings.
    """
    files = sorted(folder.iterdir())
    found = list(filter(_is_found, files))
    others = [p for p in files if p.is_file() and not (_is_found(p) or p.name.startswith("."))]
    if others:
        endings = ", ".join(sorted({path.suffix.lower() or "none" for path in others}))
        logger.warning("%s: left out %d files, by their endings (%s)", folder, len(others), endings)
    return found


def each_picture(
    source: Any,
    read: Callable[[Picture], np.ndarray] = read_picture,
    skipped: list[Any] | None = None,
    show_progress: bool = False,
) -> Iterator[Pixels]:
    """Read the pictures of a source as they are asked for.

    A picture or video of a folder that cannot be read is named in the log and left out. What a
    caller lists one by one must be readable, unless ``skipped`` is given.

    Args:
        source: a picture, a folder, a video or an iterable of these.
        read: reads one picture.
        skipped: gets what cannot be read, which is then no error, and videos that were cut short.
        show_progress: show a bar of the frames of each video.

    Raises:
        InputError, MissingFileError: as ``read`` and :func:`kind_of`.
    """
    kind = kind_of(source)
    if kind == "picture":
        yield Pixels(read(source), source if isinstance(source, str | Path) else None)
    elif kind == "video":
        yield from read_video(source, skipped, show_progress)
    else:
        if kind == "folder":
            source, skipped = list_folder(Path(source)), [] if skipped is None else skipped
        for part in source:
            try:
                yield from each_picture(part, read, skipped, show_progress)
            except InputError as error:
                if skipped is None:
                    raise
                logger.error("Skipped: %s", error)
                skipped.append(part)


def read_video(
    file: str | Path, skipped: list[Any] | None, show_progress: bool
) -> Iterator[Pixels]:
    """Read the frames of a video, see :func:`each_picture`; the log says if it was cut short.

    Raises:
        InputError, MissingPackageError: as :func:`video_info`, or there are no frames.
    """
    info, number = video_info(file), 0
    frames = import_extra("supervision", "draw", "reading a video").get_video_frames_generator
    bar = {"desc": Path(file).name, "unit": "frame", "total": info.total_frames}
    for frame in tqdm(frames(fetch(file)), disable=not show_progress, **bar):
        yield Pixels(np.ascontiguousarray(frame[:, :, ::-1]), file, number)  # from BGR
        number += 1
    if not number:
        raise InputError(f"{file} cannot be read as a video")
    if number < 0.95 * (info.total_frames or 0) - 1:  # some files tell roughly
        message = "%s is damaged: only %d of its %d frames were read"
        logger.error(message, file, number, info.total_frames)
        if skipped is not None:
            skipped.append(file)


def video_info(file: str | Path) -> "supervision.VideoInfo":
    """What a video tells of itself: ``fps``, and ``total_frames``, None if it does not tell.

    Raises:
        MissingPackageError: supervision is not installed.
        InputError: the file is no video, or its address cannot be fetched.
    """
    library, path = import_extra("supervision", "draw", "reading a video"), fetch(file)
    try:
        info = library.VideoInfo.from_video_path(path)
    except Exception as error:  # what supervision raises where a file cannot be opened
        raise InputError(f"{file} cannot be read as a video") from error
    fps = info.fps if 0 < info.fps <= GREATEST_RATE else DEFAULT_RATE
    return replace(info, fps=fps, total_frames=max(0, info.total_frames or 0) or None)
