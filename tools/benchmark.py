#!/usr/bin/env python3
"""Measure speed and memory side by side, in one process; prints tables and writes JSON."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from resnest_d2.benchmark import SECTIONS, detectors
from resnest_d2.benchmark.amp import HEADS
from resnest_d2.benchmark.peers import TIMM
from resnest_d2.benchmark.timing import environment
from resnest_d2.engine import one_line_errors
from resnest_d2.files import write_text


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write JSON too")
    parser.add_argument("--compile", action="store_true", help="measure compiled models too")
    parser.add_argument("--depth", type=int, default=50, choices=sorted(TIMM))
    parser.add_argument("--height", type=int, default=480, help="of images at inference")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--detectors", nargs="+", default=list(detectors.DETECTORS), metavar="NAME")
    parser.add_argument("--batch", type=int, default=2, help="images of a training step")
    parser.add_argument("--train-size", type=int, default=320, help="their height and width")
    parser.add_argument("--amp", action="store_true", help="training steps in bf16")
    parser.add_argument("--heads", nargs="+", choices=HEADS, help="of the section amp")
    parser.add_argument("--iterations", type=int, default=200, help="of the section amp")
    parser.add_argument("--images", type=int, default=2000, help="of the section coco")
    parser.add_argument("--detections", type=int, default=100, help="of each of its images")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2, 4], help="of the section loading"
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="of the section growth")
    parser.add_argument("--schedule-batches", type=int, nargs="+", default=[2], help="images a GPU")
    parser.add_argument("--schedule-height", type=int, default=800)
    parser.add_argument("--schedule-width", type=int, default=1344)
    return parser


def check(args: argparse.Namespace) -> None:
    """Numbers that only a section would trip over, and late.

    Raises:
        ValueError: one is too small.
    """
    sizes = ("height", "width", "batch", "train_size", "iterations")
    sizes += ("schedule_height", "schedule_width", "schedule_batches")
    for name, least in {**dict.fromkeys(sizes, 1), "workers": 0}.items():
        value = getattr(args, name)
        smallest = min(value) if isinstance(value, list) else value
        if smallest < least:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} must be at least {least}, got {smallest}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 if something is not installed or not possible."""
    args = make_parser().parse_args(arguments)
    with one_line_errors():
        check(args)
        report: dict[str, Any] = {"environment": environment(args.device)}
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
