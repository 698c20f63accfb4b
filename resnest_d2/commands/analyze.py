"""Write a page about predictions: AP, errors, confusions, calibration, worst and best images."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..analysis import Analysis, analyze, read_predictions, write_report
from ..analysis.report import headline
from ..config import require_between, require_int
from ..data.coco_json import read_coco
from ..data.repair import Options
from ..inference.drawing import import_to_draw
from . import setting_up, warnings_again


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
    with setting_up("resnest_d2"):
        check_arguments(args)
        analyses = read(args.predictions, args.json, args)
        file = write_report(analyses, args.output, args.title, args.max_images)
    print(f"{headline(analyses)}\n{file}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that ``analyze`` and ``compare`` have in common."""
    add = parser.add_argument
    add("--images", metavar="DIR", help="folder of the images (default: none are drawn)")
    add("--output", required=True, type=Path, metavar="DIR", help="folder for the page")
    add("--max-images", type=int, default=12, metavar="N", help="images to draw (default: 12)")
    text = "least score in confusions and images, 0 to 1 (default: 0.5); AP takes all predictions"
    add("--confidence-threshold", type=float, default=0.5, metavar="SCORE", help=text)
    text = "predictions that count in an image (default: COCO's 100)"
    add("--max-detections", type=int, default=100, metavar="N", help=text)
    Options.add_arguments(parser)


def check_arguments(args: argparse.Namespace) -> None:
    """Check these options, and that what draws is installed.

    Raises:
        InputError: the message names the option and its value.
        ImportError: as :func:`import_to_draw`.
    """
    require_between("--confidence-threshold", args.confidence_threshold, 0, 1)
    require_int("--max-images", args.max_images, 0)
    require_int("--max-detections", args.max_detections, 11)  # above that of AR10
    import_to_draw("detectron2.utils.visualizer")


def read(predictions: str | Path, json: str | Path, args: argparse.Namespace) -> list[Analysis]:
    """Read a file of predictions and one of annotations, and evaluate.

    Raises:
        FileNotFoundError, InputError: as ``read_coco``, ``read_predictions`` and ``analyze``.
    """
    data = read_coco(json, args.images, options=Options.of(args))
    found = read_predictions(predictions, data)
    return analyze(data, found, args.confidence_threshold, args.max_detections)
