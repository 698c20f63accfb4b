"""Export a trained detector to a file that runs without this package: ONNX and three others."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from tabulate import tabulate

from .. import data  # noqa: F401  (class names of the data sets that come with the package)
from ..config import InputError
from ..data.images import IMAGE_ENDINGS, read_image
from ..export import Format, export_model
from ..export.check import Comparison
from ..export.graph import backbone_of, check_exportable
from ..export.writers import check_format
from ..inference.predictor import EXPORTED
from . import add_model_arguments, load_predictor, setting_up, warnings_again

MOST_CALIBRATED = 64  # images; more change the ranges little


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--format", choices=get_args(Format), default="onnx", help="(default: onnx)")
    add("--output", required=True, type=Path, metavar="FILE", help="ends in .onnx, .pt2 or .ts")
    add("--backbone", action="store_true", help="export the backbone and its pyramid alone")
    text = f"quantise to 8 bits; the ranges are those on up to {MOST_CALIBRATED} of these images"
    add("--int8", type=Path, metavar="DIR", help=text)
    text = "pictures to compare file and model on (default: noise)"
    add("--check-images", nargs="+", type=Path, default=[], metavar="FILE", help=text)
    add_model_arguments(parser)
    return parser


def list_calibration(folder: Path | None) -> list[Path]:
    """The images of a folder that ranges are measured on.

    Raises:
        InputError: there are none.
    """
    if folder is None:
        return []
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)
    if not found:
        raise InputError(f"--int8 {folder} holds no images")
    return found[:MOST_CALIBRATED]


def table(comparisons: Sequence[Comparison]) -> str:
    """Write what was compared, one line an image."""
    names = list(dict.fromkeys(name for one in comparisons for name in one.differences))
    rows = [
        ["x".join(map(str, one.size)), one.expected, one.actual]
        + [f"{one.differences.get(name, 0):.1e}" for name in names]
        for one in comparisons
    ]
    return tabulate(rows, ["image", "model", "file", *names], disable_numparse=True)


@warnings_again()
def main(arguments: Sequence[str] | None = None) -> int:
    """Export; the exit code is 2 if something cannot be exported."""
    args = make_parser().parse_args(arguments)
    with setting_up():
        check_format(args.format, args.output, bool(args.int8), args.backbone)
        calibration = list_calibration(args.int8)
        if Path(args.model or "").suffix in EXPORTED:
            raise InputError(f"--model {args.model} is exported already: give its checkpoint")
        predictor = load_predictor(args, device="cpu")
        (backbone_of if args.backbone else check_exportable)(predictor.model)
        images, ranges = (
            [predictor.prepare(read_image(file))["image"] for file in files]
            for files in (args.check_images, calibration)
        )
        comparisons = export_model(
            predictor.model,
            args.output,
            args.format,
            names=predictor.metadata,
            input_format=predictor.input_format,
            augmentation=predictor.augmentation,
            backbone=args.backbone,
            images=images,
            calibration=ranges,
        )
    print("Largest differences between the file and the model:")
    print(table(comparisons))
    print(f"{args.output} written, {args.output.stat().st_size / 2**20:.1f} MiB")
    return 0
