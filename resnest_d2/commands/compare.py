"""Compare two models on one data set: AP, errors, settings, training, images that differ most."""

import argparse
import logging
import math
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from ..analysis import Run, write_comparison
from ..analysis.results import TASKS
from ..config import ConfigError, InputError
from ..config.keys import read_yaml
from ..engine.watch import read_metrics
from . import setting_up, warnings_again
from .analyze import add_arguments, check_arguments, read

logger = logging.getLogger(__name__)

PREDICTIONS = "inference/coco_instances_results.json"
ANNOTATIONS = "annotations_val.json"


@warnings_again()
def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 on wrong input."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    text = "an output folder of training, or a file of COCO's results"
    add("runs", nargs=2, type=Path, metavar="RUN", help=text)
    add("--names", nargs=2, metavar="NAME", help="what to call them (default: their paths)")
    text = f"annotations in COCO's format (default: {ANNOTATIONS} of each folder)"
    add("--json", metavar="FILE", help=text)
    add_arguments(parser)
    args = parser.parse_args(arguments)
    with setting_up("resnest_d2"):
        check_arguments(args)
        names = args.names or [str(path) for path in args.runs]
        if names[0] == names[1]:
            raise InputError(f"both runs are called {names[0]!r}; --names tells them apart")
        first, second = (read_run(p, n, args) for p, n in zip(args.runs, names, strict=True))
        tests = [run.config.get("DATASETS", {}).get("TEST") for run in (first, second)]
        if None not in tests and tests[0] != tests[1]:
            raise InputError(
                f"{names[0]} and {names[1]} are on different data: DATASETS.TEST is {tests[0]} and "
                f"{tests[1]}"
            )
        file, metrics = write_comparison(first, second, args.output, args.max_images)
    for task, rows in metrics.items():
        headers = [TASKS[task], *names, "difference", "95% interval"]
        print(tabulate(rows, headers, "pipe", disable_numparse=True) + "\n")
    print(file)
    return 0


def read_run(path: Path, name: str, args: argparse.Namespace) -> Run:
    """Read a run and evaluate it.

    Raises:
        FileNotFoundError: the predictions or annotations are not there.
        InputError: as :func:`read`, or the annotations are not known.
    """
    if not path.is_dir():
        if args.json is None:
            raise InputError(f"{path} is no output folder of training; its annotations need --json")
        return Run(name, read(path, args.json, args))
    file, metrics, annotations = (path / n for n in ("config.yaml", "metrics.json", ANNOTATIONS))
    if args.json is None and not annotations.is_file():
        raise InputError(f"{path} has no {ANNOTATIONS}; --json names the annotations")
    analyses = read(path / PREDICTIONS, args.json or annotations, args)
    series = read_metrics(metrics) if metrics.is_file() else {}
    # AP is NaN where it is not defined.
    series = {k: [p for p in points if not math.isnan(p[1])] for k, points in series.items()}
    config = {}
    if file.is_file():
        try:
            config = read_yaml(str(file))
        except ConfigError as error:  # a LazyConfig may hold what YAML does not
            logger.warning("%s: the page compares no settings", error)
    return Run(name, analyses, config, series)
