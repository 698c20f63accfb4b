"""Inference of whole detectors: as they are, optimised, compiled and in half precision."""

import argparse

import torch
from torch import nn

from resnest_d2 import model_zoo
from resnest_d2.modeling.detector import build_detector
from resnest_d2.optimize import optimize_for_inference

from .cost import count_call
from .timing import (
    MATMUL_SIZE,
    Found,
    Progress,
    Section,
    matrix_product,
    measure,
    summarize,
    table,
)

EAGER = "resnest_d2"


def make_detector(name: str, device: str) -> nn.Module:
    """A model of the zoo with random weights, which lets through as many detections as it may."""
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    return build_detector(cfg).eval()


def measure_detectors(args: argparse.Namespace, _: Progress) -> Found:
    """Time detectors from an image to detections and pasted masks.

    Returns:
        by name: "times" by competitor, "detected" objects, "size", and "limit": seconds that a
        matrix product takes for as many multiply-adds in fp32.
    """
    return {name: _measure(name, args) for name in args.detectors}


def _measure(name: str, args: argparse.Namespace) -> Found:
    height, width = args.height, args.width
    eager = make_detector(name, args.device)
    inputs = [{"image": torch.rand(3, height, width) * 255, "height": height, "width": width}]
    models = {EAGER: eager, f"{EAGER}, optimised": optimize_for_inference(eager)}
    if args.compile:
        models[f"{EAGER}, compiled"] = optimize_for_inference(eager, compile=True)
    if args.half:
        dtype = torch.bfloat16 if args.device == "cpu" else torch.float16
        models[f"{EAGER}, optimised, {dtype}"] = optimize_for_inference(eager, dtype=dtype)
    with torch.no_grad():
        runs = {key: (lambda model=model: model(inputs)) for key, model in models.items()}
        runs["matrix product"] = matrix_product(args.device)
        times = measure(runs, args.rounds, device=args.device)
        macs, (output,) = count_call(models[f"{EAGER}, optimised"], inputs)
    limit = times.pop("matrix product").median * macs / MATMUL_SIZE**3
    facts = {"detected": len(output["instances"]), "size": (height, width), "limit": limit}
    return {"times": summarize(times, EAGER), **facts}


def render(found: Found) -> list[str]:
    """A table for each detector, and how near to the matrix product it is."""
    lines: list[str] = []
    for name, one in found.items():
        height, width = one["size"]
        title = f"Detector {name}, {height}x{width}, one image, {one['detected']} detections"
        lines += ["", *table(title, one["times"], EAGER), ""]
        shares = [f"{one['limit'] / t['median']:.0%} of {k}" for k, t in one["times"].items()]
        lines.append(
            f"A matrix product of as many multiply-adds takes {one['limit']:.4f} s in fp32: "
            f"{', '.join(shares)}."
        )
    return lines[1:]


SECTION = Section(
    measure_detectors,
    render,
    {"--half": {"action": "store_true", "help": "detectors in half precision, too"}},
)
