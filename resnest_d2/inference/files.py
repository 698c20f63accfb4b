"""Predictions for image files, folders and videos, drawn or written as JSON."""

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count, groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..config import InputError
from ..data.images import IMAGE_ENDINGS, read_header, read_image
from ..data.notes import some
from ..data.categories import plain
from ..files import write_text
from .drawing import import_to_draw
from .predictor import Predictor
from .result import Result
from .sources import Video, is_video, list_folder, require_pictures

logger = logging.getLogger(__name__)

# A file that is damaged, too large or of an odd shape raises these; PyTorch says by a RuntimeError
# that memory does not suffice.
FAILURES = (OSError, ValueError, RuntimeError, MemoryError)


@dataclass
class Outputs:
    """The choice of what is written for each file."""

    folder: Path
    draw: bool = True
    """Pictures and videos with the detections."""
    per_image: bool = False
    """A JSON file for each picture and video."""
    crops: bool = False
    """Each detection's part of the picture, in folders of their classes."""
    least: float = 0.0
    """Least score in drawings and crops; JSON has all that the model finds."""
    json: Path | None = None
    """One file of COCO's results."""
    image_ids: Mapping[Path, int] | None = None
    """Ids of pictures in an annotation file."""
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    """Ids of pictures without such a file."""
    category_ids: Mapping[str, int] | None = None
    """Ids of classes in an annotation file by their names."""
    results: list[dict[str, Any]] = field(default_factory=list)

    def check(self, files: Sequence[Path]) -> list[Path]:
        """Find the path of each file's drawing, before anything is computed.

        Raises:
            ValueError, ImportError: as :func:`output_paths`, :func:`import_to_draw`.
        """
        targets = output_paths(files, self.folder, self.draw)
        if self.json and self.json.resolve() in {file.resolve() for file in files}:
            raise InputError(f"--json: {self.json} is an input and would be overwritten")
        notes = {target.with_suffix(".json").resolve() for target in targets if self.per_image}
        if self.json and self.json.resolve() in notes:
            raise InputError(f"--json: {self.json} is one of --json-per-image: take another name")
        beside = {file.parent.resolve() for file in files if self.per_image}
        for target in targets if self.folder.resolve() in beside else ():
            if (file := target.with_suffix(".json")).exists():  # labelme's, for example
                raise InputError(
                    f"--output: {file} is there beside the inputs: take another folder"
                )
        if self.draw:
            import_to_draw("detectron2.utils.visualizer")
        return targets

    def add(self, result: Result, target: Path, frame: int | None) -> Result:
        """Keep what is wanted of a picture or a frame of a video, but for the drawing.

        Returns:
            what is drawn.
        """
        if self.json or self.per_image:
            self._note(result, target, frame)
        if "instances" in result and self.least:
            result = result.above(self.least)
        if self.crops:
            first = f"{target.stem}_" if frame is None else f"{target.stem}_{frame:06d}_"
            for index, (name, crop) in enumerate(zip(result.names, result.crops(), strict=True)):
                safe = "".join(c if c.isalnum() or c in " -_" else "_" for c in name)
                path = self.folder / "crops" / safe / f"{first}{index}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                crop.save(path)
        return result

    def check_classes(self, names: Sequence[str]) -> None:
        """Compare the model's classes with those of the annotation file that ids are taken from.

        Raises:
            InputError: they have none in common.
        """
        ids = self.category_ids or {}
        for name in names:  # another case of it is the same class, as in training
            same = [number for known, number in ids.items() if plain(known) == plain(name)]
            if name not in ids and len(same) == 1:
                self.category_ids = {**self.category_ids, name: same[0]}
        others = [name for name in names if name not in (self.category_ids or names)]
        if others and len(others) == len(names):
            raise InputError(
                f"--input-json has none of the model's classes ({some(names)}): it has "
                f"{some(list(self.category_ids or ()))}"
            )
        if others:
            logger.warning(
                "Detections of %d classes that --input-json lacks are not in the JSON: %s",
                *(len(others), some(others)),
            )

    def _note(self, result: Result, target: Path, frame: int | None) -> None:
        ids = self.image_ids
        number = next(self.numbers) if ids is None else ids[result.source]
        if self.category_ids is not None:
            result = result.of_classes(self.category_ids)
        which = {"file_name": str(result.source)} | ({} if frame is None else {"frame": frame})
        entries = result.to_coco(number, self.category_ids)
        found = [
            {**entry, "category_name": name, **which}
            for entry, name in zip(entries, result.names, strict=True)
        ]
        self.results += found if self.json else []
        if self.per_image:
            height, width = result.image.shape[:2]
            content = {**which, "width": width, "height": height, "annotations": found}
            ending = ".json" if frame is None else f"_{frame:06d}.json"
            write_text(target.with_name(target.stem + ending), json.dumps(content, indent=1))

    def finish(self) -> None:
        """Write the one file of all results."""
        if self.json:
            self.json.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.json, json.dumps(self.results))


def list_inputs(paths: Sequence[str]) -> list[Path]:
    """Files to run on: those named, and all images and videos in the folders named.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image or video.
    """
    files: list[Path] = []
    for path in map(Path, paths):
        try:
            require_pictures(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"--input: {error}") from None
        files += list_folder(path) if path.is_dir() else [path]
    return files


def output_paths(files: Sequence[Path], folder: Path, drawn: bool = True) -> list[Path]:
    """A path below ``folder`` for each file, different even where names are the same.

    Args:
        files: the inputs.
        folder: of the outputs.
        drawn: whether these paths are written; else others are that differ in their endings.

    Raises:
        ValueError: an output would overwrite one of the inputs, or the folder is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output: {folder} is not a folder")
    inputs = {file.resolve() for file in files}
    taken: dict[str, Path] = {}  # by names without endings, which JSON and crops have too
    videos = "|".join(re.escape(file.stem) for file in files if is_video(file))
    for file in files:
        ending = ".mp4" if is_video(file) else ".png"
        if file.suffix.lower() in IMAGE_ENDINGS:
            ending = file.suffix
        stem, numbers = file.stem, count(2)
        while stem in taken or (videos and re.fullmatch(rf"({videos})_\d{{6,}}", stem)):  # a frame
            stem = f"{file.stem}_{next(numbers)}"
        taken[stem] = target = folder / f"{stem}{ending}"
        if drawn and target.resolve() in inputs:
            raise ValueError(f"--output: {target} is an input and would be overwritten")
    return list(taken.values())


def predict_inputs(
    predictor: Predictor, files: Sequence[Path], outputs: Outputs | Path, batch_size: int = 1
) -> list[Path]:
    """Run on files, and write what is wanted of them.

    A file that cannot be read, or on which the model fails, is named in the log and skipped. Of
    pictures with several pages the first is read, which the log says.

    Args:
        predictor: the detector.
        files: images and videos.
        outputs: what is written, and where; a folder stands for drawings in it.
        batch_size: pictures, or frames, that the model takes at once.

    Returns:
        the files that were skipped, and videos that were cut short.

    Raises:
        ValueError: an output would overwrite one of the inputs.
        ImportError: as :func:`import_to_draw`.
    """
    if not isinstance(outputs, Outputs):
        outputs = Outputs(outputs)
    pairs = list(zip(files, outputs.check(files), strict=True))
    outputs.folder.mkdir(parents=True, exist_ok=True)
    run = _Run(predictor, outputs, batch_size)
    with logging_redirect_tqdm([logging.getLogger("resnest_d2")]):
        bar = tqdm(total=len(pairs), unit="file", disable=len(pairs) < 2)
        try:
            for are_videos, group in groupby(pairs, lambda pair: is_video(pair[0])):
                while batch := list(islice(group, 1 if are_videos else batch_size)):
                    run.images(batch) if len(batch) > 1 else run.file(*batch[0])
                    bar.update(len(batch))
        finally:  # Ctrl-C, too, leaves what was found so far
            bar.close()
            outputs.finish()
    return run.skipped


@dataclass
class _Run:
    """One walk over files."""

    predictor: Predictor
    outputs: Outputs
    batch_size: int
    skipped: list[Path] = field(default_factory=list)

    def images(self, pairs: Sequence[tuple[Path, Path]]) -> None:
        """Run on a batch of pictures; where that fails, on each of them."""
        try:
            images = [read_image(file) for file, _ in pairs]
            results = self.predictor.run(images, [file for file, _ in pairs])
        except FAILURES:
            for pair in pairs:
                self.file(*pair)
            return
        for result, (file, target) in zip(results, pairs, strict=True):
            with self._skipping(file):
                self._finish(result, target)

    def file(self, file: Path, target: Path) -> None:
        """Run on one picture or video."""
        with self._skipping(file):
            self._video(file, target) if is_video(file) else self._image(file, target)

    @contextmanager
    def _skipping(self, file: Path) -> Iterator[None]:
        try:
            yield
        except FAILURES as error:
            reason = str(error).removeprefix(f"{file} ") or type(error).__name__
            logger.error("Skipped %s: %s", file, reason)
            self.skipped.append(file)

    def _image(self, file: Path, target: Path) -> None:
        image = read_image(file)
        try:
            (result,) = self.predictor.run([image], [file])
        except FAILURES as error:
            size = f"{image.shape[1]} x {image.shape[0]} pixels"
            raise InputError(f"{file} has {size}, on which the model fails: {error}") from error
        self._finish(result, target)

    def _finish(self, result: Result, target: Path) -> None:
        file = result.source
        if (pages := read_header(file).pages) > 1:
            logger.warning("%s has %d pages, of which the first is read", file, pages)
        result = self.outputs.add(result, target, None)
        if self.outputs.draw:
            result.save(target)
        if "instances" in result:
            logger.info("%s: %d instances", file, len(result.instances))

    def _video(self, file: Path, target: Path) -> None:
        with ExitStack() as stack:
            video = stack.enter_context(Video(file))
            bar = tqdm(total=video.frames or None, desc=file.name, unit="frame")
            progress = stack.enter_context(bar)
            writer = None
            results = self.predictor.stream(video, self.batch_size)
            for frame, result in enumerate(results):
                result.source = file
                result = self.outputs.add(result, target, frame)
                if self.outputs.draw:
                    writer = writer or _open_writer(target, video.rate, result.image, stack)
                    writer.write(np.ascontiguousarray(result.plot()[:, :, ::-1]))
                progress.update()
        if video.is_cut:
            self.skipped.append(file)


def _open_writer(target: Path, rate: float, image: np.ndarray, stack: ExitStack) -> Any:
    """Open OpenCV's writer of a video, which the stack closes."""
    cv2 = import_to_draw("cv2")
    codec = cv2.VideoWriter_fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(target), codec, rate, image.shape[1::-1])
    if not writer.isOpened():
        raise OSError(f"cannot write the video {target}")
    stack.callback(writer.release)
    return writer
