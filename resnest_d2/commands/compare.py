"""Compare two models on one data set: AP, errors, settings, training, images that differ most."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from detectron2.utils.logger import setup_logger
from tabulate import tabulate

from ..analysis import Run, analyze, read_predictions, write_comparison
from ..analysis.comparison import compare_metrics
from ..analysis.results import TASKS
from ..config import InputError
from ..config.keys import read_yaml
from ..data.coco_json import read_coco
from ..processes import require_alone
from . import one_line_errors, warnings_again
from .analyze import add_arguments, check_arguments
from .demo import read_metrics

PREDICTIONS = "inference/coco_instances_results.json"


@warnings_again()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 on wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    text = "output folders of training, or files of COCO's results"
    add("runs", nargs=2, type=Path, metavar="RUN", help=text)
    add("--names", nargs=2, metavar="NAME", help="what the page calls them")
    add(
        "--json",
        metavar="FILE",
        help="annotations in COCO's format (default: annotations_val.json of each folder)",
    )
    add_arguments(parser)
    args = parser.parse_args(arguments)
    setup_logger(name="resnest_d2")
    with one_line_errors():
        require_alone()
        check_arguments(args)
        names = args.names or [str(path) for path in args.runs]
        first, second = (
            read_run(path, name, args) for path, name in zip(args.runs, names, strict=True)
        )
        tests = [run.config.get("DATASETS", {}).get("TEST") for run in (first, second)]
        if None not in tests and tests[0] != tests[1]:
            raise InputError(
                f"the runs are on different data: DATASETS.TEST {tests[0]}, {tests[1]}"
            )
        file = write_comparison(first, second, args.output, args.max_images)
    for one, other in zip(first.analyses, second.analyses, strict=False):
        rows, _, _ = compare_metrics(one, other)
        headers = [TASKS[one.task], *names, "difference", "95% interval"]
        print(tabulate(rows, headers, disable_numparse=True, colalign=("left",) + ("right",) * 4))
    print(file)
    return 0


def read_run(path: Path, name: str, args: argparse.Namespace) -> Run:
    """Read a run and evaluate it.

    Raises:
        FileNotFoundError: the folder has no predictions, or nothing tells the annotations.
        InputError: as :func:`read_coco` and :func:`read_predictions`.
    """
    predictions, annotations, config, series = path, args.json, {}, {}
    if path.is_dir():
        predictions = path / PREDICTIONS
        annotations = annotations or path / "annotations_val.json"
        if (path / "config.yaml").is_file():
            config = read_yaml(str(path / "config.yaml"))
        if (path / "metrics.json").is_file():
            series = read_metrics(path / "metrics.json")
    if annotations is None or not Path(annotations).is_file():
        raise FileNotFoundError(f"{path}: its annotations are not known; name them with --json")
    data = read_coco(annotations, args.images)
    found = read_predictions(predictions, data)
    analyses = analyze(data, found, args.confidence_threshold, args.max_detections)
    # Before training, or of a data set without objects, AP is NaN.
    series = {k: [p for p in v if not math.isnan(p[1])] for k, v in series.items()}
    return Run(name, analyses, config, series)
