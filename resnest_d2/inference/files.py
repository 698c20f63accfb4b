"""Predictions for image files, folders and videos."""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import count
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..config import InputError
from ..data.images import IMAGE_ENDINGS, read_header, read_image
from .drawing import import_to_draw
from .predictor import Predictor

logger = logging.getLogger(__name__)

VIDEO_ENDINGS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"}
DEFAULT_FPS = 25.0
# A file that is damaged, too large or of an odd shape raises these; PyTorch says by a RuntimeError
# that memory does not suffice.
FAILURES = (OSError, ValueError, RuntimeError, MemoryError)


def list_inputs(paths: Sequence[str]) -> list[Path]:
    """Files to run on: those named, and all images and videos in the folders named.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image or video.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            endings = IMAGE_ENDINGS | VIDEO_ENDINGS
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in endings)
            if not found:
                raise FileNotFoundError(f"--input: folder {path} holds no image or video")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"--input: there is no file or folder {path}")
    return files


def output_paths(files: Sequence[Path], folder: Path) -> list[Path]:
    """A path below ``folder`` for each file, different even where names are the same.

    Raises:
        ValueError: an output would overwrite one of the inputs, or the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output: {folder} is not a folder")
    inputs = {file.resolve() for file in files}
    taken: dict[Path, None] = {}
    for file in files:
        ending = ".mp4" if _is_video(file) else ".png"
        if file.suffix.lower() in IMAGE_ENDINGS:
            ending = file.suffix
        target = folder / f"{file.stem}{ending}"
        numbers = count(2)
        while target in taken:
            target = folder / f"{file.stem}_{next(numbers)}{ending}"
        if target.resolve() in inputs:
            raise ValueError(f"--output: {target} is an input and would be overwritten")
        taken[target] = None
    return list(taken)


def _is_video(file: Path) -> bool:
    return file.suffix.lower() in VIDEO_ENDINGS


def predict_inputs(predictor: Predictor, files: Sequence[Path], folder: Path) -> list[Path]:
    """Write a picture or video with the detections for each file.

    A file that cannot be read, or on which the model fails, is named in the log and skipped. Of
    pictures with several pages the first is read, which the log says.

    Args:
        predictor: the detector.
        files: images and videos.
        folder: where the results go; it is made if need be.

    Returns:
        the files that were skipped, and videos that were cut short.

    Raises:
        ValueError: an output would overwrite one of the inputs.
        ImportError: as :func:`import_to_draw`.
    """
    targets = output_paths(files, folder)
    folder.mkdir(parents=True, exist_ok=True)
    skipped = []
    pairs = list(zip(files, targets, strict=True))
    with logging_redirect_tqdm([logging.getLogger("resnest_d2")]):
        for file, target in tqdm(pairs, unit="file", disable=len(pairs) < 2):
            try:
                predict = _predict_video if _is_video(file) else _predict_image
                is_whole = predict(predictor, file, target)
            except FAILURES as error:
                reason = str(error).removeprefix(f"{file} ") or type(error).__name__
                logger.error("Skipped %s: %s", file, reason)
                is_whole = False
            if not is_whole:
                skipped.append(file)
    return skipped


def _predict_image(predictor: Predictor, file: Path, target: Path) -> bool:
    if (pages := read_header(file).pages) > 1:
        logger.warning("%s has %d pages, of which the first is read", file, pages)
    image = read_image(file)
    try:
        output = predictor(image)
        drawn = predictor.draw(image, output)
    except FAILURES as error:
        size = f"{image.shape[1]} x {image.shape[0]} pixels"
        raise InputError(f"{file} has {size}, on which the model fails: {error}") from error
    Image.fromarray(drawn).save(target)
    if "instances" in output:
        logger.info("%s: %d instances", file, len(output["instances"]))
    return True


def _predict_video(predictor: Predictor, file: Path, target: Path) -> bool:
    cv2 = import_to_draw("cv2")
    capture = cv2.VideoCapture(str(file))
    writer = None
    done = 0
    frames = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    with ExitStack() as stack:
        stack.callback(capture.release)
        progress = stack.enter_context(
            tqdm(total=max(frames, 0) or None, desc=file.name, unit="frame")
        )
        while True:
            read, frame = capture.read()
            if not read:
                break
            image = np.ascontiguousarray(frame[:, :, ::-1])  # OpenCV decodes to BGR
            drawn = predictor.draw(image, predictor(image))
            if writer is None:
                rate = capture.get(cv2.CAP_PROP_FPS) or DEFAULT_FPS
                codec = cv2.VideoWriter_fourcc(*"mp4v")
                writer = cv2.VideoWriter(str(target), codec, rate, frame.shape[1::-1])
                stack.callback(writer.release)
                if not writer.isOpened():
                    raise OSError(f"cannot write the video {target}")
            writer.write(np.ascontiguousarray(drawn[:, :, ::-1]))
            progress.update()
            done += 1
    if writer is None:
        logger.error("Skipped %s, which cannot be read as a video", file)
    elif done < frames:
        logger.error("%s is damaged: only %d of its %d frames were read", file, done, frames)
    return writer is not None and done >= frames
