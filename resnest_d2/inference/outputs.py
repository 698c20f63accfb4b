"""Predictions for image files, folders and videos, drawn or written as JSON."""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..config import FileError, InputError, MissingFileError
from ..data.images import IMAGE_ENDINGS, read_header
from ..data.schema import plain, some
from ..files import write_text
from .drawing import import_supervision
from .predictor import Predictor
from .result import Result
from .sources import Video, is_video, list_folder, require_pictures, without_name

logger = logging.getLogger(__name__)


@dataclass
class Outputs:
    """The choice of what is written for each file."""

    folder: Path
    draw: bool = True
    """Pictures and videos with the detections."""
    per_image: bool = False
    """A JSON file for each picture and each video."""
    crops: bool = False
    """Each detection's part of the picture, in folders of their classes."""
    least: float = 0.0
    """Least score in drawings and crops; JSON has all that the model finds."""
    json: Path | None = None
    """One file of COCO's results."""
    image_ids: Mapping[Path, int] | None = None
    """Ids of pictures in an annotation file."""
    category_ids: Mapping[str, int] | None = None
    """Ids of classes in an annotation file by their names."""
    results: list[dict[str, Any]] = field(default_factory=list)
    _of_file: dict[str, Any] = field(default_factory=dict)
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def check(self, files: Sequence[Path]) -> dict[Path, Path]:
        """Find the path of each file's drawing, before anything is computed.

        Raises:
            InputError: as :func:`output_paths`, or --json would overwrite a file.
            MissingPackageError: supervision, which draws and reads videos, is not installed.
        """
        targets = output_paths(files, self.folder)
        if self.json and self.json.resolve() in {file.resolve() for file in files}:
            raise InputError(f"--json: {self.json} is an input and would be overwritten")
        notes = {_note_of(target).resolve() for target in targets.values() if self.per_image}
        if self.json and self.json.resolve() in notes:
            raise InputError(f"--json: {self.json} is one of --json-per-image: take another name")
        if self.draw or any(map(is_video, files)):
            import_supervision()
        return targets

    def check_model(self, predictor: Predictor) -> None:
        """See that a model finds what is asked for, and classes that the annotation file has.

        Raises:
            InputError: it finds no instances, or the two have no class in common.
        """
        if not predictor.finds_instances and (self.json or self.per_image or self.crops):
            raise InputError(
                "the model segments a picture's classes and finds no instances: it can be drawn, "
                "and --json, --json-per-image and --save-crops must be left out"
            )
        if self.category_ids is None:
            return
        names, ids = predictor.metadata.get("thing_classes", None) or (), self.category_ids
        in_any_case = {plain(name): number for name, number in ids.items()}  # as in training
        numbers = {name: ids.get(name, in_any_case.get(plain(name))) for name in names}
        others = [name for name, number in numbers.items() if number is None]
        if others and len(others) == len(numbers):
            raise InputError(
                f"--input-json has none of the model's classes ({some(others)}): it has "
                f"{some(list(ids))}"
            )
        self.category_ids = {**ids, **{name: numbers[name] for name in names if name not in others}}
        if others:
            logger.warning(
                "Detections of %d classes that --input-json lacks are not in the JSON: %s",
                *(len(others), some(others)),
            )

    def add(self, result: Result, target: Path, frame: int | None = None) -> Result:
        """Keep what is wanted of a picture or a frame of a video, but for the drawing.

        Returns:
            what is drawn.

        Raises:
            InputError: detections are asked for, and the model finds no instances.
            FileError: a file cannot be written.
        """
        if self.json or self.per_image:
            self._note(result, frame)
        shown = result.above(self.least)
        if self.crops:
            first = f"{target.stem}_" if frame is None else f"{target.name}_{frame:06d}_"
            for index, (name, crop) in enumerate(zip(shown.names, shown.crops(), strict=True)):
                safe = "".join(c if c.isalnum() or c in " -_" else "_" for c in name)
                path = self.folder / "crops" / safe / f"{first}{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                crop.save(path)
        return shown

    def _note(self, result: Result, frame: int | None) -> None:
        number = next(self._numbers) if self.image_ids is None else self.image_ids[result.source]
        ids = self.category_ids
        if ids is not None:
            result = result.where([name in ids for name in result.names])
        which = {"file_name": str(result.source)} | ({} if frame is None else {"frame": frame})
        found = [
            {**entry, "category_name": name, **which}
            for entry, name in zip(result.to_coco(number, ids), result.names, strict=True)
        ]
        self.results += found if self.json else []
        if not self._of_file:
            height, width = result.image.shape[:2]
            names = {"file_name": str(result.source), "width": width, "height": height}
            self._of_file = {**names, "annotations": []}
        self._of_file["annotations"] += found

    def end_file(self, target: Path) -> None:
        """Write what was found in a picture, or in the frames of a video that were read.

        Raises:
            FileError: it cannot be written.
        """
        if self.per_image and self._of_file:
            write_text(_note_of(target), json.dumps(self._of_file, indent=1))
        self._of_file = {}

    def finish(self) -> None:
        """Write the one file of all results.

        Raises:
            FileError: it cannot be written.
        """
        if self.json:
            write_text(self.json, json.dumps(self.results))


def list_inputs(paths: Sequence[str]) -> list[Path]:
    """Files to run on: those named, and all images and videos in the folders named, each once.

    Raises:
        MissingFileError: a path does not exist, or a folder holds no image or video.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        try:
            require_pictures(path)
        except MissingFileError as error:
            raise MissingFileError(f"--input: {error}") from None
        files += list_folder(path) if path.is_dir() else [path]
    return list(dict.fromkeys(files))


def output_paths(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """A path below ``folder`` for each file, different even where names are the same.

    Raises:
        InputError: the folder holds an input, which could be overwritten, or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output: {folder} is not a folder")
    taken: dict[str, Path] = {}  # by names without endings, which JSON and crops have too
    for file in files:
        if file.resolve().parent == folder.resolve():
            raise InputError(f"--output: {folder} holds the input {file.name}: take another folder")
        ending = ".mp4" if is_video(file) else ".png"
        if file.suffix.lower() in IMAGE_ENDINGS:
            ending = file.suffix
        stem, numbers = file.stem, count(2)
        while stem in taken:
            stem = f"{file.stem}_{next(numbers)}"
        taken[stem] = folder / f"{stem}{ending}"
    return dict(zip(files, taken.values(), strict=True))


def _note_of(target: Path) -> Path:
    return target.with_suffix(".json")


def predict_inputs(
    predictor: Predictor, files: Sequence[Path], outputs: Outputs | Path, batch_size: int = 1
) -> list[Path]:
    """Run on files, and write what is wanted of them.

    A file that cannot be read is named in the log and skipped. Of pictures with several pages the
    first is read, which the log says.

    Args:
        predictor: the detector.
        files: images and videos.
        outputs: what is written, and where; a folder stands for drawings in it.
        batch_size: pictures, or frames, that the model takes at once.

    Returns:
        the files that were skipped, and videos that were cut short.

    Raises:
        InputError: as :meth:`Outputs.check` and :meth:`Outputs.add`.
    """
    if not isinstance(outputs, Outputs):
        outputs = Outputs(outputs)
    files = list(dict.fromkeys(files))
    targets = outputs.check(files)
    outputs.check_model(predictor)
    try:
        outputs.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FileError(f"--output: cannot make {outputs.folder}: {error.strerror}") from error
    skipped: list[Path] = []
    with logging_redirect_tqdm([logging.getLogger("resnest_d2")]):
        bar = tqdm(total=len(files), unit="file", disable=len(files) < 2)
        try:
            for are_videos, group in groupby(files, is_video):
                if are_videos:
                    for file in group:
                        _run_video(predictor, file, targets[file], outputs, batch_size, skipped)
                        bar.update()
                    continue
                pictures = _readable(predictor, group, skipped, bar)
                for result in predictor.run_each(pictures, batch_size):
                    shown = outputs.add(result, targets[result.source])
                    if outputs.draw:
                        shown.save(targets[result.source])
                    outputs.end_file(targets[result.source])
                    if "instances" in shown:
                        logger.info("%s: %d instances", result.source, len(shown))
                    bar.update()
        finally:  # Ctrl-C, too, leaves what was found so far
            bar.close()
            outputs.finish()
    return skipped


def _readable(
    predictor: Predictor, files: Iterable[Path], skipped: list[Path], bar: tqdm
) -> Iterator[tuple[Path, np.ndarray]]:
    for file in files:
        try:
            image, pages = predictor.read(file), read_header(file).pages
        except InputError as error:
            _skip(file, error, skipped)
            bar.update()
            continue
        if pages > 1:
            logger.warning("%s has %d pages, of which the first is read", file, pages)
        yield file, image


def _skip(file: Path, error: InputError, skipped: list[Path]) -> None:
    logger.error("Skipped %s: %s", file, without_name(error, file))
    skipped.append(file)


def _run_video(
    predictor: Predictor,
    file: Path,
    target: Path,
    outputs: Outputs,
    batch_size: int,
    skipped: list[Path],
) -> None:
    """Run on a video; one that is cut short counts as skipped."""
    try:
        video = Video(file)
    except InputError as error:
        _skip(file, error, skipped)
        return
    sink = None
    with ExitStack() as stack:
        results = predictor.run_each(_frames(video, file, skipped), batch_size)
        for result in tqdm(results, total=video.frames or None, desc=file.name, unit="frame"):
            frame, result.source = result.source, file
            shown = outputs.add(result, target, frame)
            if outputs.draw:
                sink = sink or _open_sink(target, video.rate, shown.image, stack)
                sink.write_frame(np.ascontiguousarray(shown.plot()[:, :, ::-1]))
    outputs.end_file(target)
    if video.read and video.is_cut:
        skipped.append(file)


def _frames(video: Video, file: Path, skipped: list[Path]) -> Iterator[tuple[int, np.ndarray]]:
    try:
        yield from enumerate(video)
    except InputError as error:
        _skip(file, error, skipped)


def _open_sink(target: Path, rate: float, image: np.ndarray, stack: ExitStack) -> Any:
    """Open supervision's writer of a video, which the stack closes."""
    library = import_supervision()
    height, width = image.shape[:2]
    sink = library.VideoSink(str(target), library.VideoInfo(width, height, rate))
    try:
        return stack.enter_context(sink)
    except RuntimeError as error:  # supervision's, where the file cannot be opened
        raise FileError(f"cannot write the video {target}") from error
