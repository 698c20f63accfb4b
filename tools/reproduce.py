#!/usr/bin/env python3
"""Evaluate published models on COCO val2017, and compare with the published figures."""

import argparse
import sys
from pathlib import Path

from detectron2.utils.logger import setup_logger

from resnest_d2.commands.reproduce import (
    TOLERANCE,
    Options,
    all_reproduced,
    choose_models,
    format_table,
    reproduce,
)
from resnest_d2.engine import coco_evaluation, one_line_errors


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Define and read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="NAME", help="names of the zoo, or all"
    )
    parser.add_argument(
        "--weights-dir",
        type=Path,
        metavar="DIR",
        help="folder of checkpoints, by their published names or NAME.pth (default: download)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/reproduce"),
        metavar="DIR",
        help="for results.json, results.md and predictions; another run goes on from there",
    )
    parser.add_argument(
        "--tolerance", type=float, default=TOLERANCE, metavar="POINTS", help="default: %(default)s"
    )
    parser.add_argument(
        "--any-dataset", action="store_true", help="measure on data that are not val2017, too"
    )
    parser.add_argument("--num-gpus", type=int, default=1, metavar="N")
    coco_evaluation.add_argument(parser)
    parser.add_argument(
        "--opts", default=[], nargs=argparse.REMAINDER, help="KEY VALUE pairs for every config"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run; the exit code is 1 if a figure is missing or outside, 2 if the arguments are wrong."""
    args = parse_args(argv)
    with one_line_errors():
        names = choose_models(args.models)
        coco_evaluation.choose_implementation(args.coco_eval)
        if args.weights_dir is not None and not args.weights_dir.is_dir():
            raise FileNotFoundError(f"--weights-dir: there is no folder {args.weights_dir}")
        if not args.tolerance >= 0:
            raise ValueError(f"--tolerance must be 0 or more, got {args.tolerance}")
        setup_logger(name="resnest_d2")
        measurements = reproduce(
            names,
            Options(
                args.output,
                args.weights_dir,
                args.tolerance,
                args.any_dataset,
                args.num_gpus,
                tuple(args.opts),
            ),
        )
    print(format_table(measurements, args.tolerance))
    return 0 if all_reproduced(measurements, args.tolerance) else 1


if __name__ == "__main__":
    sys.exit(main())
