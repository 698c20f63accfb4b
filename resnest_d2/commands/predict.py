"""Run a trained detector on images, folders and videos: drawings, COCO's results, crops."""

import argparse
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .. import data  # noqa: F401  (class names of the data sets that come with the package)
from ..config import FileError, InputError, require_between, require_int
from ..data.coco_json import read_coco
from ..data.images import set_max_pixels
from ..data.options import Options
from ..data.schema import plain, some
from ..files import check_writable, make_folder, write_text
from ..inference import Predictor, Result
from ..inference.drawing import import_supervision, write_picture
from ..inference.sources import Pixels, Video, fetch, is_video, list_folder, require_pictures
from . import add_max_pixels, add_model_arguments, load_predictor, running

logger = logging.getLogger(__name__)

# Endings that drawings keep; others become PNG.
DRAWN = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

MPEG4_CLOCK = 2**16  # ticks a second that MPEG-4's clock stays below


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--input", required=True, nargs="+", metavar="PATH", help="images, folders or videos")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    text = "least score of a detection, 0 to 1 (default: 0.5 in drawings and crops, the model's in "
    text += "JSON)"
    add("--confidence-threshold", type=float, metavar="SCORE", help=text)
    add("--json", type=Path, metavar="FILE", help="write all detections as COCO's results")
    add("--json-per-image", action="store_true", help="write a JSON file for each input")
    text = "run on the images of this COCO file, which --input is the folder of, and take ids of "
    text += "images and classes from it"
    add("--input-json", type=Path, metavar="FILE", help=text)
    add("--no-draw", action="store_true", help="draw nothing")
    add("--no-labels", action="store_true", help="draw no names and scores")
    add("--masks-only", action="store_true", help="draw masks, without boxes and labels")
    add("--line-width", type=int, metavar="PIXELS", help="of boxes (default: by size)")
    add("--save-crops", action="store_true", help="write each detection's part of the picture")
    add("--batch-size", type=int, default=1, metavar="N", help="images at once (default: 1)")
    add("--tile", type=int, metavar="PIXELS", help="run on tiles of this size")
    add("--overlap", type=float, help="of tiles, 0 to 0.9 (default: 0.2)")
    add("--optimize", action="store_true", help="fold norms first, which takes less time an image")
    text = "cpu, cuda or cuda:1, say (default: the config's, or the CPU where there is no GPU)"
    add("--device", help=text)
    add("--half", action="store_true", help="compute in half precision: float16, on CPUs bfloat16")
    add_max_pixels(parser)
    add_model_arguments(parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if an input had to be skipped, 2 if the arguments are wrong."""
    args = make_parser().parse_args(arguments)
    with running():
        set_max_pixels(args.max_pixels)
        check(args)
        outputs, unreadable = inputs(args)
        options = {name: getattr(args, name) for name in ("device", "optimize", "half", "tile")}
        options["overlap"] = 0.2 if args.overlap is None else args.overlap
        predictor = load_predictor(args, **options)
        if args.confidence_threshold is not None:
            predictor.set_score_threshold(args.confidence_threshold)
        elif not (args.json or args.json_per_image):  # masks that nobody sees take time
            predictor.set_score_threshold(outputs.least, only_raise=True)
        for problem in unreadable:
            logger.error("Skipped: %s", problem)
        skipped = predict_inputs(predictor, outputs, args.batch_size)
    what, number = "drawn" if outputs.draw else "written", len(outputs.targets)
    total = number + len(unreadable)
    print(f"{number - len(skipped)} of {total} inputs {what} to {args.output}")
    if skipped:
        print(f"Not {what}, or not to their end: {', '.join(map(str, skipped))}")
    return 1 if skipped or unreadable else 0


def check(args: argparse.Namespace) -> None:
    """Check what can be told before a file is read.

    Raises:
        InputError: a number is out of range, or nothing would be written.
        FileError: a file cannot be written.
    """
    if args.confidence_threshold is not None:
        require_between("--confidence-threshold", args.confidence_threshold, 0, 1)
    require_int("--batch-size", args.batch_size, least=1)
    if args.line_width is not None:
        require_int("--line-width", args.line_width, least=1)
    if args.no_draw and not (args.json or args.json_per_image or args.save_crops):
        raise InputError("--no-draw leaves nothing to write: add --json FILE or --json-per-image")
    if args.overlap is not None and args.tile is None:
        raise InputError("--overlap is of tiles: add --tile PIXELS")
    if args.json:
        make_folder(args.json.parent)
        check_writable(args.json)


def inputs(args: argparse.Namespace) -> tuple["Outputs", list[str]]:
    """Plan what is written of which files; return it, and what is wrong with listed pictures.

    Raises:
        InputError, FileError: as :func:`list_inputs`, :meth:`Outputs.plan` and :func:`read_coco`.
    """
    least = 0.5 if args.confidence_threshold is None else 0.0  # the model keeps to the option
    kinds = {"draw": not args.no_draw, "per_image": args.json_per_image, "crops": args.save_crops}
    style = {"labels": not args.no_labels, "masks_only": args.masks_only}
    style["line_width"] = args.line_width
    outputs = Outputs(args.output, **kinds, style=style, least=least, json=args.json)
    if not args.input_json:
        outputs.plan(list_inputs(args.input))
        return outputs, []
    if len(args.input) != 1:
        raise InputError("--input-json needs one --input, the folder of its images")
    reading = Options(merge_classes=True, skip_bad_images=True, has_range=True)
    listed = read_coco(args.input_json, args.input[0], annotated=False, options=reading)
    outputs.annotations = args.input_json
    outputs.image_ids = {Path(image["file_name"]): image["id"] for image in listed.images}
    outputs.category_ids = {name: number for number, name in listed.categories.items()}
    outputs.plan(outputs.image_ids)
    if outputs.as_read:
        listed.write(outputs.as_read)
        logger.info("Evaluate the results on %s, %s as it was read", outputs.as_read, listed.file)
    return outputs, listed.unreadable


def list_inputs(paths: Sequence[str]) -> list[Path]:
    """Files to run on: those named, and all images and videos in the folders named, each once.

    Raises:
        MissingFileError: a path does not exist, or a folder holds no image or video.
        InputError: it is a stream, or an address that cannot be fetched.
    """
    files: list[Path] = []
    for name in paths:
        require_pictures(name)
        path = Path(fetch(name))
        files += list_folder(path) if path.is_dir() else [path]
    return list(dict.fromkeys(files))


@dataclass
class Outputs:
    """The choice of what is written for each file."""

    folder: Path
    draw: bool = True
    """Pictures and videos with the detections."""
    style: Mapping[str, Any] = field(default_factory=dict)
    """Options of :meth:`~resnest_d2.inference.Result.plot`."""
    per_image: bool = False
    """A JSON file for each picture and each video."""
    crops: bool = False
    """Each detection's part of the picture, in folders of their classes."""
    least: float = 0.0
    """Least score in drawings and crops; JSON has all that the model finds."""
    json: Path | None = None
    """One file of COCO's results."""
    annotations: Path | None = None
    """The annotation file that the ids are from."""
    image_ids: Mapping[Path, int] | None = None
    """Ids of pictures; None numbers them."""
    category_ids: Mapping[str, int] | None = None
    """Ids of classes by their names; None takes the model's."""
    targets: dict[Path, Path] = field(default_factory=dict)
    """The drawing of each file; JSON and crops are called alike."""
    results: list[dict[str, Any]] = field(default_factory=list)
    """What the one file of results will hold."""
    _numbers: Iterator[int] = field(default_factory=lambda: count(1))

    @property
    def as_read(self) -> Path | None:
        """Where the annotations go as they were read, which the results are for."""
        if not (self.json and self.annotations):
            return None
        return self.json.with_name(f"{self.json.stem}_annotations.json")

    def plan(self, files: Iterable[Path]) -> None:
        """Find a drawing's path for each file, different even where names are the same.

        Raises:
            InputError: the folder is a file or holds an input, or a file would be written over an
                input or another output.
            MissingPackageError: supervision, which draws and reads videos, is not installed.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"--output: {self.folder} is not a folder")
        folder, stems = self.folder.resolve(), set()
        kinds = {file.resolve(): "an input" for file in (*files, self.annotations) if file}
        for file in files:
            parents = file.resolve().parents
            if folder == parents[0] or (self.crops and folder / "crops" in parents):
                raise InputError(f"--output: {self.folder} holds {file}: take another folder")
            stem, numbers = file.stem, count(2)
            while stem in stems:
                stem = f"{file.stem}_{next(numbers)}"
            stems.add(stem)
            ending = file.suffix if file.suffix.lower() in DRAWN else ".png"
            self.targets[file] = self.folder / f"{stem}{'.mp4' if is_video(file) else ending}"
        drawings = self.targets.values()
        notes = [_note_of(drawing) for drawing in drawings if self.per_image]
        for path in filter(None, (*drawings, *notes, self.json, self.as_read)):
            if kind := kinds.get(path.resolve()):
                raise InputError(f"{path} is {kind} and would be overwritten: take another name")
            kinds[path.resolve()] = "another output"
        if self.draw or any(map(is_video, files)):
            import_supervision()

    def check_model(self, predictor: Predictor) -> None:
        """See that a model finds what is asked for, and classes that the annotation file has.

        Raises:
            InputError: it finds no instances, or the two have no class in common.
        """
        if not predictor.finds_instances and (self.json or self.per_image or self.crops):
            raise InputError(
                "the model finds no instances: leave out --json, --json-per-image and --save-crops"
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
        self.category_ids = {name: number for name, number in numbers.items() if number is not None}
        if others:
            logger.warning(
                "Detections of %d classes that --input-json lacks are not in the JSON: %s",
                *(len(others), some(others)),
            )

    def write(self, results: Iterable[Result], rate: float) -> bool:
        """Write what was found in a picture, or in the frames of a video of this rate.

        Returns:
            whether all was drawn; the log says why not, and JSON and crops are written still.

        Raises:
            InputError: detections are asked for, and the model finds no instances.
            FileError: JSON or a crop cannot be written.
        """
        found, number, sink, is_drawn = [], 0, None, True
        with ExitStack() as stack:
            for result in results:
                target = self.targets[result.source]
                if self.json or self.per_image:
                    found += self._entries(result)
                shown = result.above(self.least)
                number += len(shown)
                if self.crops:
                    self._write_crops(shown, target)
                if not (self.draw and is_drawn):
                    continue
                drawn = shown.plot(threshold=self.least, **self.style)
                try:
                    if result.frame is None:
                        write_picture(Image.fromarray(drawn), target)
                        continue
                    sink = sink or _open_sink(target, drawn.shape, rate, stack)
                except FileError as error:
                    logger.error("Not drawn: %s", error)
                    is_drawn = False
                else:
                    sink.write_frame(np.ascontiguousarray(drawn[:, :, ::-1]))  # in BGR
        if self.per_image:
            height, width = result.image.shape[:2]
            facts = {"file_name": str(result.source), "width": width, "height": height}
            write_text(_note_of(target), json.dumps({**facts, "annotations": found}, indent=1))
        if "instances" in result:
            logger.info("%s: %d instances", result.source, number)
        return is_drawn

    def _entries(self, result: Result) -> list[dict[str, Any]]:
        number = next(self._numbers) if self.image_ids is None else self.image_ids[result.source]
        which, ids = {"file_name": str(result.source)}, self.category_ids
        which |= {} if result.frame is None else {"frame": result.frame}
        found = []
        for entry, name in zip(result.to_coco(number), result.names, strict=True):
            if ids is None or name in ids:
                entry["category_id"] = ids[name] if ids else entry["category_id"]
                found.append({**entry, "category_name": name, **which})
        self.results += found if self.json else []
        return found

    def _write_crops(self, shown: Result, target: Path) -> None:
        start = target.stem if shown.frame is None else f"{target.name}_{shown.frame:06d}"
        for index, (name, crop) in enumerate(zip(shown.names, shown.crops(), strict=True)):
            safe = "".join(c if c.isalnum() or c in " -_" else "_" for c in name)
            write_picture(crop, self.folder / "crops" / safe / f"{start}_{index}.png")


def _note_of(target: Path) -> Path:
    return target.with_suffix(".json")


def _open_sink(target: Path, shape: tuple[int, ...], rate: float, stack: ExitStack) -> Any:
    """Open supervision's writer of a video, which the stack closes; an odd side loses a pixel."""
    library = import_supervision()
    # OpenCV writes a rate as a fraction with a power of ten below.
    decimals = next(places for places in (3, 2, 1) if rate * 10**places < MPEG4_CLOCK)
    info = library.VideoInfo(shape[1], shape[0], round(rate, decimals))
    sink = library.VideoSink(str(target), info)
    try:
        return stack.enter_context(sink)
    except RuntimeError as error:  # supervision's, where the file cannot be opened
        raise FileError(f"cannot write the video {target}") from error


def predict_inputs(predictor: Predictor, outputs: Outputs, batch_size: int = 1) -> list[Path]:
    """Run on the files that are planned for, and write what is wanted of them.

    A file that cannot be read is named in the log and skipped.

    Args:
        predictor: the detector.
        outputs: what is written, and where.
        batch_size: pictures, or frames, that the model takes at once.

    Returns:
        the files that were skipped, and videos that were cut short.

    Raises:
        InputError: as :meth:`Outputs.check_model` and :meth:`Outputs.write`.
    """
    outputs.check_model(predictor)
    make_folder(outputs.folder)
    skipped: list[Path] = []
    rates: dict[Path, float] = {}

    def pictures() -> Iterator[Pixels]:
        for file in tqdm(outputs.targets, unit="file", disable=len(outputs.targets) < 2):
            try:
                if is_video(file):
                    video = Video(file)
                    rates[file], frames = video.rate, video.frames or None
                    yield from tqdm(video, total=frames, desc=file.name, unit="frame")
                    skipped.extend([file] * video.is_cut)
                else:
                    yield Pixels(predictor.read(file), file)
            except InputError as error:
                logger.error("Skipped: %s", error)
                skipped.append(file)

    with logging_redirect_tqdm([logging.getLogger("resnest_d2")]):
        try:
            results = predictor.run_each(pictures(), batch_size)
            for file, of_file in groupby(results, lambda result: result.source):
                is_drawn = outputs.write(of_file, rates.get(file, 0))
                skipped.extend([file] * (not is_drawn and file not in skipped))
        finally:  # Ctrl-C, too, leaves what was found so far
            if outputs.json:
                write_text(outputs.json, json.dumps(outputs.results))
    return skipped
