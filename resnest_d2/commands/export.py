"""Export a trained detector to a file that runs without this package: ONNX or torch.export."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from .. import data  # noqa: F401  (class names of the data sets that come with the package)
from ..config import InputError
from ..export import export_model
from ..export.runtimes import RUNTIMES
from ..export.writer import Comparison, check_target
from . import add_model_arguments, load_predictor, running


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="resnest-d2 export", description=__doc__)
    add = parser.add_argument
    add("--output", required=True, type=Path, metavar="FILE", help="ends in .onnx or .pt2")
    text = "pictures to compare file and model on (default: noise)"
    add("--check-images", nargs="+", type=Path, default=[], metavar="FILE", help=text)
    text = "a checkpoint, the folder of a training or a name of the zoo"
    add_model_arguments(parser, text)
    return parser


def table(comparisons: Sequence[Comparison]) -> str:
    """Write what was compared, one line an image; a dash where nothing could be."""
    names = list(dict.fromkeys(name for one in comparisons for name in one.differences))
    rows = []
    for one in comparisons:
        given = (one.differences.get(name) for name in names)
        cells = ["-" if value is None else f"{value:.1e}" for value in given]
        rows.append(["x".join(map(str, one.size)), one.expected, one.actual, *cells])
    return tabulate(rows, ["image", "model", "file", *names], disable_numparse=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Export; the exit code is 2 if something cannot be exported."""
    args = make_parser().parse_args(arguments)
    with running():
        check_target(args.output)
        if Path(args.model).suffix in RUNTIMES:
            raise InputError(f"--model {args.model} is exported already: give its checkpoint")
        predictor = load_predictor(args, device="cpu")
        images = [predictor.read(file) for file in args.check_images]
        comparisons = export_model(predictor, args.output, images)
    print("Largest differences between the file and the model:")
    print(table(comparisons))
    print(f"{args.output} written, {args.output.stat().st_size / 2**20:.1f} MiB")
    return 0
