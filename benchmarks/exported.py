"""Exported detectors beside the model that they were made from: size, time to load and to run."""

import argparse
import logging
import tempfile
import time
from pathlib import Path

import torch

from resnest_d2 import optimize_for_inference
from resnest_d2.data.images import IMAGE_ENDINGS, read_image
from resnest_d2.export import export_model, load_exported
from resnest_d2.inference import Predictor

from .timing import Report, as_json, measure

FORMATS = {"onnx": "onnx", "pt2": "pt2", "aoti": "pt2", "torchscript": "ts"}
EAGER = "eager"
OPTIMISED = "optimised"


def run(args: argparse.Namespace) -> Report:
    """The section "exported" of ``python -m benchmarks``: a checkpoint on the pictures of a folder.

    Every runtime has as many threads as PyTorch.
    """
    logging.getLogger("resnest_d2").setLevel(logging.WARNING)
    predictor = Predictor(args.export_model, device="cpu")
    files = sorted(p for p in args.export_images.iterdir() if p.suffix.lower() in IMAGE_ENDINGS)
    inputs = [predictor.prepare(read_image(file)) for file in files[: args.images]]
    facts = {
        "names": predictor.metadata,
        "input_format": predictor.input_format,
        "augmentation": predictor.augmentation,
        "images": [one["image"] for one in inputs[:4]],
    }
    models = {EAGER: predictor.model, OPTIMISED: optimize_for_inference(predictor.model)}
    sizes, loading, writing = {}, {}, {}
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        for name in args.export_formats:
            file = Path(folder) / f"{name}.{FORMATS[name]}"
            start = time.perf_counter()
            export_model(predictor.model, file, name, **facts)
            writing[name] = time.perf_counter() - start
            start = time.perf_counter()
            models[name] = load_exported(file)
            loading[name], sizes[name] = time.perf_counter() - start, file.stat().st_size
        walks = {
            name: (lambda model=model: [model([one]) for one in inputs])
            for name, model in models.items()
        }
        times = measure(walks, args.rounds)
    lines = [
        f"## Exported: {args.export_model}, {len(inputs)} pictures",
        "",
        "| | file (MiB) | written in (s) | loaded in (s) | times as fast as eager (quartiles) |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, one in times.items():
        ratio, low, high = one.ratio_to(times[EAGER])
        facts = ["", "", ""]
        if name in sizes:
            facts = [
                f"{sizes[name] / 2**20:.1f}",
                f"{writing[name]:.0f}",
                f"{loading[name]:.2f}",
            ]
        lines.append(f"| {name} | {' | '.join(facts)} | {ratio:.2f} ({low:.2f} to {high:.2f}) |")
    report = {"times": as_json(times, EAGER), "bytes": sizes, "loading": loading}
    return lines, report
