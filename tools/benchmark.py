#!/usr/bin/env python3
"""Measure speed side by side: backbones against their peers, COCO evaluation by implementation."""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resnest_d2.benchmark import backbones, coco
from resnest_d2.benchmark.timing import environment, table
from resnest_d2.engine import one_line_errors
from resnest_d2.files import write_text


def run_backbones(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Inference of one image."""
    size = (args.height, args.width)
    times, facts = backbones.measure_backbones(
        args.depth, size, args.rounds, args.device, args.compile
    )
    title = f"Backbone of depth {args.depth}, {size[0]}x{size[1]}, batch 1, fp32"
    lines = table(title, times, backbones.REFERENCE)
    lines += [
        "",
        f"Matrix product: {facts['matmul'] / 1e9:.1f} G multiply-adds a second. Outputs differ by "
        f"{facts['difference']:.1e} of their largest value.",
    ]
    seconds = {name: found.seconds for name, found in times.items()}
    return lines, {"seconds": seconds, **facts}


def run_coco(args: argparse.Namespace) -> tuple[list[str], dict[str, Any]]:
    """Boxes and masks of a random set."""
    data = coco.RandomSet(args.images, args.detections)
    times, metrics = coco.measure_evaluation(data, args.rounds)
    around = coco.measure_surroundings(min(args.images, 50), args.detections)
    parts = list(next(iter(times.values()))[0])
    medians = {
        name: {part: statistics.median(r[part] for r in rounds) for part in parts}
        for name, rounds in times.items()
    }
    lines = [f"## COCO evaluation, {args.images} images of {args.detections} detections", ""]
    lines += [f"| seconds | {' | '.join(times)} |", f"|---|{'---:|' * len(times)}"]
    for part in parts:
        cells = " | ".join(f"{medians[name][part]:.3f}" for name in times)
        lines.append(f"| {part} | {cells} |")
    plain = [sum(v for k, v in r.items() if "evaluate" in k) for r in times["pycocotools"]]
    for name, rounds in times.items():
        own = [sum(v for k, v in r.items() if "evaluate" in k) for r in rounds]
        ratio = statistics.median(a / b for a, b in zip(plain, own, strict=True))
        gap = np.abs(np.array(metrics[name]) - np.array(metrics["pycocotools"])).max()
        lines += ["", f"{name}: evaluates {ratio:.1f} times as fast as pycocotools; the greatest"]
        lines[-1] += f" difference of its 24 metrics is {gap:.1e}."
    factor = args.images / min(args.images, 50)
    scaled = {name: seconds * factor for name, seconds in around.items()}
    listed = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in scaled.items())
    lines += ["", f"Around it, for as many images: {listed}."]
    return lines, {"seconds": times, "metrics": metrics, "around": scaled}


SECTIONS = {"backbones": run_backbones, "coco": run_coco}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; the exit code is 2 if something is not installed or not possible."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write JSON too")
    parser.add_argument("--depth", type=int, default=50, choices=sorted(backbones.TIMM))
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--compile", action="store_true", help="measure compiled backbones too")
    parser.add_argument("--images", type=int, default=2000, help="of the COCO section")
    parser.add_argument("--detections", type=int, default=100, help="of each of its images")
    args = parser.parse_args(arguments)
    with one_line_errors():
        report: dict[str, Any] = {"environment": environment(args.device)}
        torch.manual_seed(0)
        print(", ".join(f"{key} {value}" for key, value in report["environment"].items()))
        for name in args.sections:
            lines, report[name] = SECTIONS[name](args)
            print("\n" + "\n".join(lines), flush=True)
        if args.output:
            write_text(args.output, json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
