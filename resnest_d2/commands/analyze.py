"""Write a page about predictions: AP, errors, confusions, calibration, worst and best images."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger

from ..analysis import analyze, read_predictions, write_report
from ..analysis.report import headline
from ..config import InputError
from ..data.coco_json import read_coco
from ..inference.drawing import import_to_draw
from ..processes import require_alone
from . import one_line_errors, warnings_again


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``analyze`` and ``compare`` have in common."""
    add = parser.add_argument
    add("--images", metavar="DIR", help="folder of the images (default: none are drawn)")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the page")
    add("--max-images", type=int, default=12, metavar="N", help="images to draw (default: 12)")
    add(
        "--confidence-threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="least score in confusions and pictures, 0 to 1 (default: 0.5); AP takes all",
    )
    add(
        "--max-detections",
        type=int,
        default=100,
        metavar="N",
        help="predictions that count in an image (default: COCO's 100)",
    )


def check_arguments(args: argparse.Namespace) -> None:
    """See that these have sensible values, and that what draws is installed.

    Raises:
        InputError: one has not; the message names it.
        ImportError: as :func:`import_to_draw`.
    """
    if not 0 <= args.confidence_threshold <= 1:
        got = args.confidence_threshold
        raise InputError(f"--confidence-threshold must be between 0 and 1, got {got}")
    if args.max_images < 0:
        raise InputError(f"--max-images must be at least 0, got {args.max_images}")
    if args.max_detections <= 10:
        raise InputError(f"--max-detections must be greater than 10, got {args.max_detections}")
    if args.output.is_file():
        raise InputError(f"--output: {args.output} is a file, not a folder")
    import_to_draw("detectron2.utils.visualizer")


@warnings_again()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 on wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--predictions", required=True, metavar="FILE", help="COCO's results, boxes or masks")
    add("--json", required=True, metavar="FILE", help="annotations in COCO's format")
    add("--title", default="Predictions", help="heading of the page")
    add_arguments(parser)
    args = parser.parse_args(arguments)
    setup_logger(name="resnest_d2")
    with one_line_errors():
        require_alone()
        check_arguments(args)
        data = read_coco(args.json, args.images)
        found = read_predictions(args.predictions, data)
        analyses = analyze(data, found, args.confidence_threshold, args.max_detections)
        file = write_report(analyses, args.output, args.title, args.max_images)
    print(f"{headline(analyses)}\n{file}")
    return 0
