"""Inference of whole detectors: as they are, optimised and compiled; over many sizes of image."""

import argparse
import random

import torch
import torch._dynamo.utils
from torch import nn

from resnest_d2 import model_zoo
from resnest_d2.modeling.detector import build_detector
from resnest_d2.optimize import optimize_for_inference

from .cost import count_call
from .timing import (
    MATMUL_SIZE,
    Report,
    Times,
    as_json,
    matrix_product,
    measure,
    synchronize,
    table,
)

EAGER = "resnest_d2"
DETECTORS = ("mask_resnest50", "cascade_resnest101")
SIZES = 50


def make_detector(name: str, device: str) -> nn.Module:
    """A model of the zoo with random weights, which lets through as many detections as it may."""
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    return build_detector(cfg).eval()


def measure_detector(
    name: str, size: tuple[int, int], rounds: int, device: str, compiled: bool, half: bool
) -> tuple[dict[str, Times], int, float]:
    """Time a detector from an image to its detections and pasted masks.

    Args:
        name: of the zoo.
        size: height and width of the image.
        rounds: how often.
        device: "cpu" or "cuda".
        compiled: measure ``compile=True`` too.
        half: measure half precision too, float16 on GPUs and bfloat16 on CPUs.

    Returns:
        times by competitor, how many objects were detected, and seconds that a matrix product takes
        for as many multiply-adds in fp32.
    """
    eager = make_detector(name, device)
    inputs = [{"image": torch.rand(3, *size) * 255, "height": size[0], "width": size[1]}]
    with torch.no_grad():
        models = {EAGER: eager, f"{EAGER}, optimised": optimize_for_inference(eager)}
        if compiled:
            models[f"{EAGER}, compiled"] = optimize_for_inference(eager, compile=True)
        if half:
            dtype = torch.bfloat16 if device == "cpu" else torch.float16
            models[f"{EAGER}, {dtype}"] = optimize_for_inference(eager, dtype=dtype)
        runs = {key: (lambda model=model: model(inputs)) for key, model in models.items()}
        runs["matrix product"] = matrix_product(device)
        times = measure(runs, rounds, warmup=1, device=device)
        macs, (output,) = count_call(models[f"{EAGER}, optimised"], inputs)
    limit = times.pop("matrix product").median * macs / MATMUL_SIZE**3
    return times, len(output["instances"]), limit


def coco_like_sizes(count: int, short: int) -> list[tuple[int, int]]:
    """Padded sizes as a multi-scale loader gives them, no two alike.

    Short sides are up to 1.5 times ``short``, shapes mostly 4:3 and 3:2, lying or standing.

    Raises:
        ValueError: there are not so many, as the short sides are too small.
    """
    draw = random.Random(0)
    sizes: dict[tuple[int, int], None] = {}
    for _ in range(100 * count):
        if len(sizes) == count:
            return list(sizes)
        ratio = draw.choice([4 / 3, 4 / 3, 3 / 2, 1.0, draw.uniform(1, 5 / 3)])
        side = draw.randint(short, short * 3 // 2)
        sides = (side, int(side * ratio))
        height, width = sides if draw.random() < 0.7 else sides[::-1]
        sizes[-(-height // 32) * 32, -(-width // 32) * 32] = None
    raise ValueError(f"--height {short} is too small for {count} sizes that differ; take 320")


def count_compilations() -> int:
    """How many graphs Dynamo has compiled in this process."""
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def run_detectors(args: argparse.Namespace) -> Report:
    """The section "detectors" of ``python -m benchmarks``."""
    lines: list[str] = []
    report = {}
    for name in args.detectors:
        size = (args.height, args.width)
        choice = (args.device, args.compile, args.half)
        times, detected, limit = measure_detector(name, size, args.rounds, *choice)
        title = f"Detector {name}, {size[0]}x{size[1]}, one image, {detected} detections"
        lines += ["", *table(title, times, EAGER), ""]
        lines.append(f"A matrix product of as many multiply-adds takes {limit:.4f} s in fp32:")
        shares = [f"{limit / one.median:.0%} of the time of {key}" for key, one in times.items()]
        lines[-1] += f" {', '.join(shares)}."
        report[name] = as_json(times, EAGER)
    return lines[1:], report


def run_sizes(args: argparse.Namespace) -> Report:
    """The section "sizes" of ``python -m benchmarks``: compilations over many sizes of image."""
    backbone = make_detector(args.detectors[0], args.device).backbone
    compiled = optimize_for_inference(backbone, compile=True)
    sizes = coco_like_sizes(SIZES, args.height)
    before = count_compilations()
    counts = []
    with torch.no_grad():
        for height, width in sizes:
            compiled(torch.rand(1, 3, height, width, device=args.device))
            synchronize(args.device)
            counts.append(count_compilations() - before)
    lines = [
        f"## Compilations of {args.detectors[0]}'s backbone",
        "",
        f"{counts[-1]} for images of {len(sizes)} sizes; the last came with image "
        f"{counts.index(counts[-1]) + 1}.",
    ]
    return lines, {"sizes": sizes, "compilations": counts}
