"""How time and memory grow with image area, batch and depth: measured, fitted, drawn."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .timing import Report, as_json, measure
from .training import MIB, make_step, step_bytes, training_backbone

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


def measure_growth(rounds: int, device: str) -> dict[str, dict[str, list[float]]]:
    """Training steps of backbones over area, batch and depth.

    Returns:
        by what varies: its values ("x": pixels, images, depth), median seconds of a step
        ("seconds") and bytes ("bytes": on a GPU the peak of a step, else kept for backward).
    """
    scale = 1 if device == "cpu" else GPU_SCALE
    sides = [scale * side for side in SIDES]
    settings = {
        "area": [(side * side, DEPTH, BATCH, side) for side in sides],
        "batch": [(batch, DEPTH, batch, scale * SIDE) for batch in BATCHES],
        "depth": [(depth, depth, BATCH, scale * SIDE) for depth in DEPTHS],
    }
    found: dict[str, dict[str, list[float]]] = {}
    for name, cases in settings.items():
        models = {depth: training_backbone(depth).to(device) for _, depth, _, _ in cases}
        steps, sizes = {}, []
        for x, depth, batch, side in cases:
            image = torch.rand(batch, 3, side, side, device=device)
            steps[str(x)] = make_step(models[depth], image)
            sizes.append(step_bytes(models[depth], image))
        times = measure(steps, rounds, warmup=2, device=device)
        found[name] = {
            "x": [case[0] for case in cases],
            "seconds": [times[str(case[0])].median for case in cases],
            "bytes": sizes,
            "times": as_json(times),
        }
    return found


def draw(found: dict[str, dict[str, list[float]]], device: str, file: Path) -> None:
    """A PNG of time and memory, with the fitted exponents.

    Raises:
        ImportError: matplotlib is not installed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    memory = "kept for backward (MiB)" if device == "cpu" else "peak memory (MiB)"
    labels = {"area": "image area (pixels)", "batch": "images", "depth": "depth (layers)"}
    figure, axes = plt.subplots(2, 3, figsize=(11, 6), layout="constrained")
    for column, (name, data) in enumerate(found.items()):
        for row, (key, label, scale) in enumerate(
            (("seconds", "seconds a step", 1), ("bytes", memory, MIB))
        ):
            axis = axes[row, column]
            y = [value / scale for value in data[key]]
            slope = fit_exponent(data["x"], y)
            offset = np.mean(np.log(y)) - slope * np.mean(np.log(data["x"]))
            fitted = np.exp(offset) * np.array(data["x"], float) ** slope
            axis.loglog(data["x"], fitted, "--", color="0.6")
            axis.loglog(data["x"], y, "o", color="C0" if row == 0 else "C1")
            axis.set_title(f"exponent {slope:.2f}")
            axis.set_xticks(data["x"], [f"{x:,}" for x in data["x"]], rotation=30)
            axis.set_yticks(y, [f"{v:.2f}" if v < 10 else f"{v:,.0f}" for v in y])
            axis.minorticks_off()
            axis.set_xlabel(labels[name])
            axis.set_ylabel(label)
            axis.grid(alpha=0.3)
    figure.suptitle(f"Training step of a backbone, fp32, FREEZE_AT 2, {device}")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def run(args: argparse.Namespace) -> Report:
    """The section "growth" of ``python -m benchmarks``."""
    found = measure_growth(args.rounds, args.device)
    lines = ["## Growth of a training step, backbone, fp32, FREEZE_AT 2", ""]
    lines += ["| with | exponent of time | exponent of memory |", "|---|---:|---:|"]
    report: dict[str, Any] = {}
    for name, data in found.items():
        time, memory = (fit_exponent(data["x"], data[key]) for key in ("seconds", "bytes"))
        lines.append(f"| {name} | {time:.2f} | {memory:.2f} |")
        report[name] = {**data, "exponents": {"seconds": time, "bytes": memory}}
    if args.plot:
        draw(found, args.device, args.plot)
    return lines, report
