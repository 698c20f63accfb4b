"""Run a trained detector on images, folders and videos: drawings and COCO's results."""

import argparse
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from itertools import count, groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from .. import data  # noqa: F401  (class names of the data sets that come with the package)
from ..config import FileError, InputError, require_int
from ..data.coco_json import read_coco
from ..data.images import set_max_pixels
from ..data.options import Options
from ..data.schema import plain, some
from ..files import check_writable, make_folder, write_text
from ..inference import Predictor, Result
from ..inference.drawing import import_supervision, write_picture
from ..inference.sources import (
    each_picture,
    fetch,
    is_video,
    kind_of,
    list_folder,
    video_info,
)
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
    text = "least score of a detection, 0 to 1 (default: 0.5 in drawings, the model's in JSON)"
    add("--confidence-threshold", type=float, metavar="SCORE", help=text)
    add("--json", type=Path, metavar="FILE", help="write all detections as COCO's results")
    text = "run on the images of this COCO file, which --input is the folder of, and take ids of "
    text += "images and classes from it"
    add("--input-json", type=Path, metavar="FILE", help=text)
    add("--no-draw", action="store_true", help="draw nothing")
    add("--no-labels", action="store_true", help="draw no names and scores")
    add("--masks-only", action="store_true", help="draw masks, without boxes and labels")
    add("--line-width", type=int, metavar="PIXELS", help="of boxes (default: by size)")
    add("--batch-size", type=int, default=1, metavar="N", help="images at once (default: 1)")
    add("--tile", type=int, metavar="PIXELS", help="run on tiles of this size")
    add("--overlap", type=float, help="of tiles, 0 to 0.9 (default: 0.2)")
    text = "take less time an image: fold norms first; compile the backbone too; or run in OpenVINO"
    ways = ("compile", "openvino")
    add("--optimize", nargs="?", default=False, const=True, choices=ways, help=text)
    text = "openvino or onnxruntime, of an ONNX file (default: the first of these that is there)"
    add("--runtime", default="auto", metavar="NAME", help=text)
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
        outputs = Outputs(args)
        outputs.plan(outputs.image_ids if args.input_json else list_inputs(args.input))
        names = ("device", "optimize", "half", "runtime", "tile")
        options = {name: getattr(args, name) for name in names}
        options["overlap"] = 0.2 if args.overlap is None else args.overlap
        predictor = load_predictor(args, **options)
        if args.confidence_threshold is not None:
            predictor.set_score_threshold(args.confidence_threshold)
        elif not args.json:  # masks that nobody sees take time
            predictor.set_score_threshold(outputs.least, only_raise=True)
        outputs.check_model(predictor)
        for problem in outputs.unreadable:
            logger.error("Skipped: %s", problem)
        skipped = predict_inputs(predictor, outputs)
    what, number = "written" if args.no_draw else "drawn", len(outputs.targets)
    total = number + len(outputs.unreadable)
    print(f"{number - len(skipped)} of {total} inputs {what} to {args.output}")
    if skipped:
        print(f"Not {what}, or not to their end: {', '.join(map(str, skipped))}")
    return 1 if skipped or outputs.unreadable else 0


def check(args: argparse.Namespace) -> None:
    """Check what can be told before a file is read.

    Raises:
        InputError: a number is out of range, or nothing would be written.
        FileError: a file cannot be written.
    """
    require_int("--batch-size", args.batch_size, least=1)
    if args.line_width is not None:
        require_int("--line-width", args.line_width, least=1)
    if args.no_draw and not args.json:
        raise InputError("--no-draw leaves nothing to write: add --json FILE")
    if args.overlap is not None and args.tile is None:
        raise InputError("--overlap is of tiles: add --tile PIXELS")
    if args.input_json and len(args.input) != 1:
        raise InputError("--input-json needs one --input, the folder of its images")
    if args.output.exists() and not args.output.is_dir():
        raise InputError(f"--output: {args.output} is not a folder")
    if args.json:
        make_folder(args.json.parent)
        check_writable(args.json)


def list_inputs(paths: Sequence[str]) -> list[Path]:
    """Files to run on: those named, and all images and videos in the folders named, each once.

    Raises:
        MissingFileError: a path does not exist, or a folder holds no image or video.
        InputError: it is a stream, or an address that cannot be fetched.
    """
    files: list[Path] = []
    for name in paths:
        is_folder = kind_of(name) == "folder"
        files += list_folder(Path(name)) if is_folder else [Path(fetch(name))]
    return list(dict.fromkeys(files))


class Outputs:
    """What is written for each file.

    Attributes:
        least: least score in drawings; JSON has all that the model finds.
        targets: the drawing of each file.
        image_ids: of the pictures of ``--input-json``; others are numbered.
        unreadable: what is wrong with other pictures of that file.
        category_ids: of classes in that file by their names; without it the model's count.
        results: what the one file of results will hold.

    Raises:
        InputError: as :func:`read_coco`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.least = 0.5 if args.confidence_threshold is None else 0.0  # the model keeps to it
        self.targets: dict[Path, Path] = {}
        self.image_ids: dict[Path, int] = {}
        self.category_ids: Mapping[str, int] | None = None
        self.results: list[dict[str, Any]] = []
        self.unreadable: list[str] = []
        self._listed, self._numbers = None, count(1)
        if args.input_json:
            reading = Options(merge_classes=True, skip_bad_images=True, has_range=True)
            listed = read_coco(args.input_json, args.input[0], annotated=False, options=reading)
            self._listed, self.unreadable = listed, listed.unreadable
            self.image_ids = {Path(image["file_name"]): image["id"] for image in listed.images}
            self.category_ids = {name: number for number, name in listed.categories.items()}

    def plan(self, files: Iterable[Path]) -> None:
        """Find a drawing's path for each file, different even where names are the same.

        The annotations that results of ``--input-json`` are for are written as they were read.

        Raises:
            InputError: the folder holds an input, or a file would be written over an input or
                another output.
            MissingPackageError: supervision, which draws and reads videos, is not installed.
        """
        args, folder, stems = self.args, self.args.output.resolve(), set()
        for file in files:
            if folder == file.resolve().parent:
                raise InputError(f"--output: {args.output} holds {file}: take another folder")
            stem, numbers = file.stem, count(2)
            while stem in stems:
                stem = f"{file.stem}_{next(numbers)}"
            stems.add(stem)
            ending = file.suffix if file.suffix.lower() in DRAWN else ".png"
            self.targets[file] = args.output / f"{stem}{'.mp4' if is_video(file) else ending}"
        outputs = [*self.targets.values(), *([args.json] if args.json else [])]
        as_read = None
        if args.json and self._listed:
            as_read = args.json.with_name(f"{args.json.stem}_annotations.json")
            outputs.append(as_read)
        kinds = {file.resolve(): "an input" for file in (*files, args.input_json) if file}
        for path in outputs:
            if kind := kinds.get(path.resolve()):
                raise InputError(f"{path} is {kind} and would be overwritten: take another name")
            kinds[path.resolve()] = "another output"
        if not args.no_draw or any(map(is_video, files)):
            import_supervision()
        if as_read:
            self._listed.write(as_read)
            logger.info("Evaluate the results on %s, %s as it was read", as_read, args.input_json)

    def check_model(self, predictor: Predictor) -> None:
        """See that a model finds what is asked for, and classes that the annotation file has.

        Raises:
            InputError: it finds no instances, or the two have no class in common.
        """
        if self.args.json and not predictor.finds_instances:
            raise InputError("the model finds no instances: leave out --json")
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

    def write(self, results: Iterable[Result]) -> bool:
        """Draw what was found in a picture, or in the frames of a video, and keep it for the JSON.

        Returns:
            whether all was drawn; the log says why not, and JSON has all of it still.

        Raises:
            InputError: the output has nothing that can be drawn.
        """
        args, number, sink, is_drawn = self.args, 0, None, True
        style = {name: getattr(args, name) for name in ("masks_only", "line_width")}
        with ExitStack() as stack:
            for result in results:
                if args.json:
                    self._keep(result)
                shown, target = result.above(self.least), self.targets[result.source]
                number += len(shown)
                if args.no_draw or not is_drawn:
                    continue
                drawn = shown.plot(threshold=self.least, labels=not args.no_labels, **style)
                try:
                    if result.frame is None:
                        write_picture(Image.fromarray(drawn), target)
                        continue
                    sink = sink or _open_sink(result, target, stack)
                except FileError as error:
                    logger.error("Not drawn: %s", error)
                    is_drawn = False
                else:
                    sink.write_frame(np.ascontiguousarray(drawn[:, :, ::-1]))  # in BGR
        if "instances" in result:
            logger.info("%s: %d instances", result.source, number)
        return is_drawn

    def _keep(self, result: Result) -> None:
        """Add what was found in a picture or a frame to the results."""
        number = self.image_ids[result.source] if self.image_ids else next(self._numbers)
        ids, which = self.category_ids, {"file_name": str(result.source)}
        if result.frame is not None:
            which["frame"] = result.frame
        for entry in result.to_coco(number):
            if ids is not None:
                entry["category_id"] = ids.get(entry["category_name"])
            if entry["category_id"] is not None:
                self.results.append({**entry, **which})


def _open_sink(frame: Result, target: Path, stack: ExitStack) -> Any:
    """Open supervision's writer of a video, which the stack closes; an odd side loses a pixel.

    Raises:
        FileError: the file cannot be written.
    """
    library, rate = import_supervision(), video_info(frame.source).fps
    height, width = frame.image.shape[:2]
    # OpenCV writes a rate as a fraction with a power of ten below.
    decimals = next(places for places in (3, 2, 1) if rate * 10**places < MPEG4_CLOCK)
    sink = library.VideoSink(str(target), library.VideoInfo(width, height, round(rate, decimals)))
    try:
        return stack.enter_context(sink)
    except RuntimeError as error:  # supervision's, where the file cannot be opened
        raise FileError(f"cannot write the video {target}") from error


def predict_inputs(predictor: Predictor, outputs: Outputs) -> list[Path]:
    """Run on the files that are planned for, and write what is wanted of them.

    A file that cannot be read is named in the log and skipped.

    Returns:
        the files that were skipped, and videos that were cut short.

    Raises:
        InputError: as :meth:`Outputs.write`.
    """
    args = outputs.args
    make_folder(args.output)
    skipped: list[Path] = []
    files = tqdm(outputs.targets, unit="file", disable=len(outputs.targets) < 2)
    with logging_redirect_tqdm([logging.getLogger("resnest_d2")]):
        pictures = each_picture(files, predictor.read, skipped, show_progress=True)
        try:
            results = predictor.run_each(pictures, args.batch_size)
            for file, of_file in groupby(results, lambda result: result.source):
                if not outputs.write(of_file) and file not in skipped:
                    skipped.append(file)
        finally:  # Ctrl-C, too, leaves what was found so far
            if args.json:
                write_text(args.json, json.dumps(outputs.results))
    return skipped
