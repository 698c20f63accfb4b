"""Export a trained detector to a file that runs without this package: ONNX or torch.export."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from .. import data  # noqa: F401  (class names of the data sets that come with the package)
from ..export import export_model
from ..export.writer import check_target
from . import add_model_arguments, load_predictor, running


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="resnest-d2 export", description=__doc__)
    add = parser.add_argument
    add("--output", required=True, type=Path, metavar="FILE", help="ends in .onnx or .pt2")
    text = "pictures to compare file and model on (default: noise)"
    add("--check-images", nargs="+", type=Path, default=[], metavar="FILE", help=text)
    add("--device", choices=["cpu"], default="cpu", help="exporting runs on the CPU (default: cpu)")
    text = "a checkpoint, the folder of a training or a name of the zoo"
    add_model_arguments(parser, text)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; the exit code is 2 if something cannot be exported."""
    args = make_parser().parse_args(arguments)
    with running():
        check_target(args.output)
        predictor = load_predictor(args, device=args.device)
        images = [predictor.read(file) for file in args.check_images]
        comparisons = export_model(predictor, args.output, images)
    print("Largest differences between the file and the model:")
    # An image on which nothing is found has no differences.
    print(tabulate(comparisons, "keys", floatfmt=".1e", missingval="-"))
    print(f"{args.output} written, {args.output.stat().st_size / 2**20:.1f} MiB")
    return 0
