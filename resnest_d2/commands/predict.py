"""Run a trained detector on images, folders and videos: drawings, COCO's results, crops."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from .. import data  # noqa: F401  (class names of the data sets that come with the package)
from ..config import FileError, InputError, require_between, require_int
from ..data.coco_json import read_coco
from ..data.images import set_max_pixels
from ..data.options import Options
from ..files import check_writable
from ..inference import Outputs, list_inputs, predict_inputs
from . import add_max_pixels, add_model_arguments, load_predictor, running

logger = logging.getLogger(__name__)


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--input", required=True, nargs="+", metavar="PATH", help="images, folders or videos")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the results")
    text = "least score of a detection, 0 to 1 (default: the config's; of drawings and crops 0.5 "
    text += "if that is lower)"
    add("--confidence-threshold", type=float, metavar="SCORE", help=text)
    add("--json", type=Path, metavar="FILE", help="write all detections as COCO's results")
    add("--json-per-image", action="store_true", help="write a JSON file for each input")
    text = "run on the images of this COCO file, which --input is the folder of, and take ids of "
    text += "images and classes from it"
    add("--input-json", type=Path, metavar="FILE", help=text)
    add("--no-draw", action="store_true", help="draw nothing")
    add("--save-crops", action="store_true", help="write each detection's part of the picture")
    add("--batch-size", type=int, default=1, metavar="N", help="images at once (default: 1)")
    add("--tile", type=int, metavar="PIXELS", help="run on tiles of this size")
    add("--overlap", type=float, help="of tiles, 0 to 0.9 (default: 0.2)")
    add("--optimize", action="store_true", help="fold norms first, which takes less time an image")
    add("--half", action="store_true", help="compute in half precision: float16, on CPUs bfloat16")
    add_max_pixels(parser)
    add_model_arguments(parser)
    return parser


def check(args: argparse.Namespace) -> None:
    """Check what can be told before a model is loaded.

    Raises:
        InputError: a number is out of range, or nothing would be written.
        FileError: a file cannot be written.
    """
    if args.confidence_threshold is not None:
        require_between("--confidence-threshold", args.confidence_threshold, 0, 1)
    require_int("--batch-size", args.batch_size, least=1)
    if args.no_draw and not (args.json or args.json_per_image or args.save_crops):
        raise InputError("--no-draw leaves nothing to write: add --json FILE or --json-per-image")
    if args.overlap is not None and args.tile is None:
        raise InputError("--overlap is of tiles: add --tile PIXELS")
    if args.json:
        try:
            args.json.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FileError(f"--json: cannot make {args.json.parent}: {error.strerror}") from error
        check_writable(args.json)
    for written in (args.json, as_read(args.json)) if args.json and args.input_json else ():
        if written.resolve() == args.input_json.resolve():
            raise InputError(f"--json: {written} is --input-json's file and would be overwritten")


def as_read(results: Path) -> Path:
    """Where the annotations of --input-json go as they were read, which the results are for."""
    return results.with_name(f"{results.stem}_annotations.json")


def inputs(args: argparse.Namespace) -> tuple[list[Path], Outputs, list[str]]:
    """List the files, what is written of them, and what is wrong with listed ones left out.

    Raises:
        InputError, FileError: as :func:`list_inputs` and :func:`read_coco`.
    """
    outputs = Outputs(
        args.output,
        draw=not args.no_draw,
        crops=args.save_crops,
        per_image=args.json_per_image,
        json=args.json,
    )
    if not args.input_json:
        return list_inputs(args.input), outputs, []
    if len(args.input) != 1:
        raise InputError("--input-json needs one --input, the folder of its images")
    reading = Options(merge_classes=True, skip_bad_images=True, offered=False)
    listed = read_coco(args.input_json, args.input[0], annotated=False, options=reading)
    if args.json:
        listed.write(as_read(args.json))
        logger.info(
            "Evaluate the results on %s, %s as it was read", *(as_read(args.json), listed.file)
        )
    outputs.image_ids = {Path(image["file_name"]): image["id"] for image in listed.images}
    outputs.category_ids = {name: number for number, name in listed.categories.items()}
    return list(outputs.image_ids), outputs, listed.unreadable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if an input had to be skipped, 2 if the arguments are wrong."""
    args = make_parser().parse_args(arguments)
    with running():
        set_max_pixels(args.max_pixels)
        check(args)
        files, outputs, unreadable = inputs(args)
        options = {name: getattr(args, name) for name in ("optimize", "half", "tile")}
        options["overlap"] = 0.2 if args.overlap is None else args.overlap
        outputs.check(files)  # what is wrong here is said before the model is loaded
        predictor = load_predictor(args, **options)
        if args.confidence_threshold is not None:
            predictor.set_score_threshold(args.confidence_threshold)
        elif args.json or args.json_per_image:  # drawings would be cluttered
            outputs.least = 0.5
        else:
            predictor.set_score_threshold(0.5, only_raise=True)
        for problem in unreadable:
            logger.error("Skipped %s", problem)
        skipped = predict_inputs(predictor, files, outputs, args.batch_size)
    what = "drawn" if outputs.draw else "written"
    number = len(files) + len(unreadable)
    print(f"{len(files) - len(skipped)} of {number} inputs {what} to {args.output}")
    if skipped:
        print(f"Not {what}, or not to their end: {', '.join(map(str, skipped))}")
    return 1 if skipped or unreadable else 0
