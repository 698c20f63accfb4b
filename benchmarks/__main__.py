"""Measure speed and memory side by side, in one process; prints tables and writes JSON."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import SECTIONS, detectors, endurance, exported
from benchmarks.amp import HEADS
from benchmarks.peers import TIMM
from benchmarks.timing import environment
from resnest_d2 import model_zoo
from resnest_d2.commands import one_line_errors
from resnest_d2.files import check_writable, write_text


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="The peers do not come with the package: `make setup`, or pip install timm and "
        "pip install --no-deps resnest==0.0.6b20230402.",
    )
    parser.add_argument(
        "--sections",
        nargs="+",
        choices=SECTIONS,
        default=list(SECTIONS),
        metavar="NAME",
        help=f"default: all of {', '.join(SECTIONS)}",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write JSON too")

    group = parser.add_argument_group("backbones, detectors, sizes, training")
    group.add_argument("--half", action="store_true", help="detectors in half precision, too")
    group.add_argument(
        "--compile", action="store_true", help="measure compiled models too (not of sizes)"
    )
    group.add_argument("--depth", type=int, default=50, choices=sorted(TIMM), help="of backbones")
    group.add_argument("--height", type=int, default=480, help="of images at inference")
    group.add_argument("--width", type=int, default=640, help="of images at inference")
    group.add_argument(
        "--detectors",
        nargs="+",
        default=list(detectors.DETECTORS),
        metavar="NAME",
        help="of the zoo, for detectors, sizes (the first) and schedule",
    )

    group = parser.add_argument_group("training, schedule")
    group.add_argument("--batch", type=int, default=2, help="images of a training step")
    group.add_argument("--train-size", type=int, default=320, help="their height and width")
    group.add_argument("--amp", action="store_true", help="training steps in bf16")
    group.add_argument("--schedule-batches", type=int, nargs="+", default=[2], help="images a GPU")
    group.add_argument("--schedule-height", type=int, default=800)
    group.add_argument("--schedule-width", type=int, default=1344)

    group = parser.add_argument_group("amp")
    group.add_argument(
        "--heads",
        nargs="+",
        choices=HEADS,
        metavar="KIND",
        help=f"default: all of {', '.join(HEADS)}",
    )
    group.add_argument("--iterations", type=int, default=200, help="default: %(default)s")

    group = parser.add_argument_group("coco")
    group.add_argument("--images", type=int, default=2000, help="default: %(default)s")
    group.add_argument("--detections", type=int, default=100, help="of each image")

    group = parser.add_argument_group("loading")
    group.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])

    group = parser.add_argument_group("growth")
    group.add_argument("--plot", type=Path, metavar="PNG", help="draw it")

    group = parser.add_argument_group("endurance")
    group.add_argument(
        "--endurance", type=int, default=2000, metavar="N", help="iterations (default: %(default)s)"
    )

    group = parser.add_argument_group("kills")
    group.add_argument("--kills", type=int, default=4, help="of a run (default: %(default)s)")
    group.add_argument("--kill-runs", type=int, default=3, help="of either kind")
    group.add_argument("--kill-iterations", type=int, default=200, help="default: %(default)s")
    group.add_argument("--kill-after", type=float, default=20, help="seconds, on average")

    group = parser.add_argument_group("exported")
    text = "a checkpoint, or its folder (default: the demo's)"
    group.add_argument("--export-model", default="output/demo", metavar="MODEL", help=text)
    default = Path("datasets/digits/val")
    group.add_argument("--export-images", type=Path, default=default, metavar="DIR")
    group.add_argument(
        "--export-formats",
        nargs="+",
        choices=exported.FORMATS,
        default=list(exported.FORMATS),
        metavar="FORMAT",
    )
    return parser


def check(args: argparse.Namespace) -> None:
    """What only a section would trip over, and late.

    Raises:
        ValueError: a number is too small, or there is no such model.
        OSError: a file cannot be written.
    """
    sizes = ("rounds", "height", "width", "train_size", "iterations", "images", "detections")
    sizes += ("schedule_height", "schedule_width", "schedule_batches")
    sizes += ("kills", "kill_runs", "kill_iterations", "kill_after")
    least_of = {**dict.fromkeys(sizes, 1), "workers": 0, "endurance": endurance.PERIOD}
    # The attention's batch norm is not trained on one value a channel.
    least_of["batch"] = 2 if "training" in args.sections else 1
    for name, least in least_of.items():
        value = getattr(args, name)
        smallest = min(value) if isinstance(value, list) else value
        if smallest < least:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least {least}, got {smallest}")
    if {"detectors", "sizes", "schedule"} & set(args.sections):
        for name in args.detectors:
            model_zoo.get_config_file(name)
    if "sizes" in args.sections:
        detectors.coco_like_sizes(detectors.SIZES, args.height)
    for file in (args.output, args.plot):
        if file is not None:
            check_writable(file)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 if something is not installed or not possible."""
    args = make_parser().parse_args(arguments)
    with one_line_errors():
        check(args)
        report: dict[str, Any] = {"environment": environment(args.device)}
        report["settings"] = {
            name: str(value) if isinstance(value, Path) else value
            for name, value in vars(args).items()
        }
        torch.manual_seed(0)
        print(", ".join(f"{key} {value}" for key, value in report["environment"].items()))
        for name in args.sections:
            lines, report[name] = SECTIONS[name](args)
            print("\n" + "\n".join(lines), flush=True)
            if args.output:  # after each section, so that none is lost with a later one
                write_text(args.output, json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
