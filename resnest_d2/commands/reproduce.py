"""Evaluate published models on COCO val2017, and compare with the published figures."""

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path

import detectron2.utils.comm as comm
from detectron2.evaluation.testing import flatten_results_dict

from .. import model_zoo
from ..config import InputError
from ..config.load import choose_device, load_config
from ..engine.launch import join_torchrun
from ..engine.trainer import evaluate_model, load_for_evaluation
from ..evaluation import check_datasets
from ..files import make_folder, write_text
from ..model_zoo.published import PUBLICATIONS
from ..weights import open_weights
from . import running

# Figures are published with two decimals; other hardware and libraries move the rest.
TOLERANCE = 0.1


def choose_models(names: Sequence[str]) -> list[str]:
    """Names of models that can be measured, "all" standing for each of them.

    Raises:
        InputError: an unknown name, or a model without a figure that can be compared.
    """
    measurable = [n for n, p in PUBLICATIONS.items() if p.dataset == "coco_2017_val"]
    if list(names) == ["all"]:
        return measurable
    chosen = list(dict.fromkeys(name.removesuffix(".yaml") for name in names))
    for name in chosen:
        model_zoo.get_config_file(name)  # names a model that is not there
        if name not in measurable:
            raise InputError(f"{name!r} cannot be compared: it has no figure on COCO val2017")
    return chosen


def measure(name: str, output: Path, opts: Sequence[str]) -> list[dict]:
    """Evaluate a model, the published one unless the options name other MODEL.WEIGHTS.

    Returns:
        a row for each published metric: model, metric, published, measured or NaN, and whether a
        hash shows the checkpoint to be the published one.

    Raises:
        InputError: data or weights are not there.
    """
    weights = ["MODEL.WEIGHTS", f"resnest://COCO/{name}"]
    cfg = load_config(model_zoo.get_config_file(name), [*weights, *opts])
    cfg.OUTPUT_DIR, cfg.TEST.AUG.ENABLED = str(output / name), False  # published at one scale
    choose_device(cfg, required="MODEL.DEVICE" in opts[::2])
    join_torchrun(cfg.MODEL.DEVICE)
    check_datasets(cfg, train=False)
    checkpoint = open_weights(cfg.MODEL.WEIGHTS)
    metrics = flatten_results_dict(evaluate_model(cfg, load_for_evaluation(cfg, checkpoint)))
    verified = bool(checkpoint.source.get("verified"))
    row = {"model": name, "checkpoint": checkpoint.name, "verified": verified}
    return [
        {**row, "metric": metric, "published": value, "measured": metrics.get(metric, math.nan)}
        for metric, value in model_zoo.published(name).items()
    ]


def is_within(row: dict, tolerance: float) -> bool:
    """Whether a figure is reproduced."""
    return abs(row["measured"] - row["published"]) <= tolerance + 1e-9


def format_table(rows: Sequence[dict], tolerance: float) -> str:
    """A Markdown table with one row for each metric of each model."""
    lines = [
        f"| model | metric | published | measured | difference | within {tolerance:g} |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        within = "yes" if is_within(row, tolerance) else "no"
        figures = f"{row['published']:.2f} | {row['measured']:.2f} | "
        figures += f"{row['measured'] - row['published']:+.2f}"
        lines.append(f"| {row['model']} | {row['metric']} | {figures} | {within} |")
    others = sorted({row["model"] for row in rows if not row["verified"]})
    if others:
        names = ", ".join(others)
        lines += ["", f"No hash shows these checkpoints to be the published ones: {names}."]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 1 if a figure is outside, 2 if the arguments or the files are wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--models", nargs="+", required=True, metavar="NAME", help="names of the zoo, or all")
    text = "for results.json and the predictions"
    add("--output", type=Path, default=Path("output/reproduce"), metavar="DIR", help=text)
    add("--tolerance", type=float, default=TOLERANCE, metavar="POINTS", help="default: %(default)s")
    text = "KEY VALUE pairs for every config; MODEL.WEIGHTS FILE measures another checkpoint"
    add("--opts", default=[], nargs=argparse.REMAINDER, help=text)
    args = parser.parse_args(arguments)
    rows: list[dict] = []
    with running():
        for name in choose_models(args.models):
            rows += measure(name, args.output, args.opts)
            if comm.is_main_process():  # after each, for an error may end it at the next
                make_folder(args.output)
                write_text(args.output / "results.json", json.dumps(rows, indent=1) + "\n")
    if comm.is_main_process():
        print(format_table(rows, args.tolerance))
        return 0 if all(is_within(row, args.tolerance) for row in rows) else 1
    return 0
