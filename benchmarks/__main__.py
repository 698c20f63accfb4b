"""Measure speed and memory side by side; prints tables and writes JSON."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import backbones, claim, coco, detectors, runtimes, training
from benchmarks.peers import TIMM
from benchmarks.timing import Found, Section, environment
from resnest_d2.commands import one_line_errors
from resnest_d2.files import check_writable, write_text

# What --sections names.
SECTIONS: dict[str, Section] = {
    "backbones": backbones.SECTION,
    "detectors": detectors.SECTION,
    "training": training.STEPS,
    "memory": training.MEMORY,
    "coco": coco.SECTION,
    "runtimes": runtimes.SECTION,
    "claim": claim.SECTION,
}
LONG = ("runtimes", "claim")  # sections that take long, and are to be asked for


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog="The peers do not come with the package: `make setup`, or pip install timm and "
        "pip install --no-deps resnest==0.0.6b20230402.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    names = {"choices": SECTIONS, "metavar": "NAME"}
    names["default"] = [name for name in SECTIONS if name not in LONG]
    add("--sections", nargs="+", help=f"of {', '.join(SECTIONS)}", **names)
    add("--device", default="cpu", choices=["cpu", "cuda"], help="cpu or cuda")
    add("--rounds", type=int, default=7, help="how often each competitor is timed")
    add("--output", type=Path, metavar="FILE", help="write JSON too, after each section")
    add("--compile", action="store_true", help="measure compiled models, too")
    add("--depth", type=int, default=50, choices=sorted(TIMM), help="of backbones")
    add("--height", type=int, default=480, help="of images at inference")
    add("--width", type=int, default=640, help="of images at inference")
    for name, section in SECTIONS.items():
        group = parser.add_argument_group(name) if section.options else parser
        for option, given in section.options.items():
            group.add_argument(option, **{"help": "of images", **given})
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 if the output cannot be written."""
    args = make_parser().parse_args(arguments)
    with one_line_errors():
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        report: Found = {"environment": environment(args.device), "settings": settings}
        if args.output:
            check_writable(args.output)
        torch.manual_seed(0)
        print(", ".join(f"{key} {value}" for key, value in report["environment"].items()))
        for name in args.sections:
            report[name] = SECTIONS[name].measure(args)
            print("\n" + "\n".join(SECTIONS[name].render(report[name])), flush=True)
            if args.output:
                write_text(args.output, json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
