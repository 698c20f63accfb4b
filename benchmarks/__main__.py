"""Measure speed and memory side by side; prints tables and writes JSON."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import backbones, coco, detectors, exported, training
from benchmarks.peers import TIMM
from benchmarks.timing import Found, Progress, Section, at_least, environment
from resnest_d2.commands import one_line_errors
from resnest_d2.config import InputError
from resnest_d2.files import check_writable, write_text

# What --sections names.
SECTIONS: dict[str, Section] = {
    "backbones": backbones.SECTION,
    "detectors": detectors.SECTION,
    "training": training.STEPS,
    "memory": training.MEMORY,
    "coco": coco.SECTION,
    "exported": exported.SECTION,
}


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
    listed = {"choices": SECTIONS, "default": list(SECTIONS), "metavar": "NAME"}
    add("--sections", nargs="+", help=f"of {', '.join(SECTIONS)}", **listed)
    add("--device", default="cpu", choices=["cpu", "cuda"], help="cpu or cuda")
    add("--rounds", type=at_least(1), default=7, help="how often each competitor is timed")
    add("--output", type=Path, metavar="FILE", help="write JSON too, also in between")
    text = "keep what the file of --output has from a call with these options, and measure the rest"
    add("--resume", action="store_true", help=text)
    add("--compile", action="store_true", help="measure compiled models, too")
    add("--depth", type=int, default=50, choices=sorted(TIMM), help="of backbones")
    add("--height", type=at_least(1), default=480, help="of images at inference")
    add("--width", type=at_least(1), default=640, help="of images at inference")
    for name, section in SECTIONS.items():
        group = parser.add_argument_group(name) if section.options else parser
        for option, given in section.options.items():
            group.add_argument(option, **{"help": "of images", **given})
    return parser


def read_earlier(file: Path, report: Found) -> Found:
    """What an earlier call with the same options has written, on this machine.

    Raises:
        InputError: its options, versions or machine were others.
    """
    if not file.is_file():
        return report
    earlier = json.loads(file.read_text(encoding="utf-8"))
    for part, free in (("settings", {"sections", "output", "resume"}), ("environment", {"date"})):
        for key in sorted((report[part].keys() | earlier[part].keys()) - free):
            before, now = earlier[part].get(key), report[part].get(key)
            if before != now:
                raise InputError(f"{file} was measured with {key} {before!r}, not {now!r}")
    return earlier


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 if something is not possible."""
    args = make_parser().parse_args(arguments)
    with one_line_errors():
        settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
        report: Found = {"environment": environment(args.device), "settings": settings, "done": []}
        if args.output:
            check_writable(args.output)
            report = read_earlier(args.output, report) if args.resume else report
        elif args.resume:
            raise InputError("--resume needs the --output of the call that it goes on with")
        torch.manual_seed(0)
        print(", ".join(f"{key} {value}" for key, value in report["environment"].items()))
        for name in args.sections:

            def keep(found: Found, name: str = name) -> None:
                report[name] = found
                if args.output:
                    write_text(args.output, json.dumps(report, indent=1) + "\n")

            if name not in report["done"]:
                found = SECTIONS[name].measure(args, Progress(report.get(name, {}), keep))
                report["done"].append(name)
                keep(json.loads(json.dumps(found)))
            print("\n" + "\n".join(SECTIONS[name].render(report[name])), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
