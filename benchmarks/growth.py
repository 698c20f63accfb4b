"""How time and memory of a training step grow with image area, batch and depth."""

import argparse

import numpy as np
import torch

from .timing import Found, Progress, Section, measure, summarize
from .training import make_step, step_bytes, training_backbone

SIDES = (160, 224, 320, 448, 640)
BATCHES = (2, 4, 8, 16)  # the attention's batch norm is not trained on one
DEPTHS = (50, 101, 200, 269)
# What is held while the others vary.
SIDE, BATCH, DEPTH = 224, 2, 50
# Sides on a GPU are so many times as large: small images take the time of starting kernels.
GPU_SCALE = 3


def fit_exponent(x: list[float], y: list[float]) -> float:
    """The b of ``y = a * x ** b``, by least squares of the logarithms."""
    slope, _ = np.polyfit(np.log(x), np.log(y), 1)
    return float(slope)


def measure_growth(args: argparse.Namespace, _: Progress) -> Found:
    """Time training steps of backbones over area, batch and depth.

    Returns:
        by what varies: its values ("x": pixels, images, depth), median "seconds" of a step,
        "bytes" as :func:`~benchmarks.training.step_bytes`, their fitted "exponents", and "times".
    """
    scale = 1 if args.device == "cpu" else GPU_SCALE
    settings = {
        "area": [((scale * side) ** 2, DEPTH, BATCH, scale * side) for side in SIDES],
        "batch": [(batch, DEPTH, batch, scale * SIDE) for batch in BATCHES],
        "depth": [(depth, depth, BATCH, scale * SIDE) for depth in DEPTHS],
    }
    found: Found = {}
    for name, cases in settings.items():
        models = {depth: training_backbone(depth).to(args.device) for _, depth, _, _ in cases}
        steps, sizes = {}, []
        for x, depth, batch, side in cases:
            image = torch.rand(batch, 3, side, side, device=args.device)
            steps[x] = make_step(models[depth], image)
            sizes.append(step_bytes(models[depth], image))
        times = measure(steps, args.rounds, warmup=2, device=args.device)
        one = {"x": list(steps), "seconds": [t.median for t in times.values()], "bytes": sizes}
        one["exponents"] = {k: fit_exponent(one["x"], one[k]) for k in ("seconds", "bytes")}
        found[name] = {**one, "times": {str(x): t for x, t in summarize(times).items()}}
    return found


def render(found: Found) -> list[str]:
    """A table of exponents."""
    lines = ["## Growth of a training step, backbone, fp32, FREEZE_AT 2", ""]
    lines += ["| with | exponent of time | exponent of memory |", "|---|---:|---:|"]
    for name, data in found.items():
        time, memory = data["exponents"]["seconds"], data["exponents"]["bytes"]
        lines.append(f"| {name} | {time:.2f} | {memory:.2f} |")
    return lines


SECTION = Section(measure_growth, render)
