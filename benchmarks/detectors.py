"""Inference of whole detectors: as they are, optimised, compiled and in half precision."""

import argparse
from typing import Any

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
# Boxes of all classes that pass the score threshold, of which a trained model finds so many in a
# crowded photo.
CANDIDATES = 500


def make_detector(name: str, device: str, inputs: list[dict[str, Any]]) -> nn.Module:
    """A model of the zoo with random weights that finds about as much as a trained one.

    The threshold of R-CNNs lets :data:`CANDIDATES` pass on these inputs, that of others is 0.
    """
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = device
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
    model = build_detector(cfg).eval()
    if not hasattr(model, "roi_heads"):
        return model
    predictors = model.roi_heads.box_predictor
    stages = list(predictors) if isinstance(predictors, nn.ModuleList) else [predictors]
    logits: list[torch.Tensor] = []
    hooks = [p.register_forward_hook(lambda *call: logits.append(call[2][0])) for p in stages]
    model(inputs)
    for hook in hooks:
        hook.remove()
    scores = torch.stack(logits).softmax(-1).mean(0)[:, :-1]  # a cascade takes its stages' mean
    stages[-1].test_score_thresh = scores.flatten().topk(CANDIDATES).values[-1].item()
    return model


def measure_detectors(args: argparse.Namespace, _: Progress) -> Found:
    """Time detectors from an image to detections and pasted masks.

    Returns:
        by name: "times" by competitor, "detected" objects, "size", and "limit": seconds that a
        matrix product takes for as many multiply-adds in fp32.
    """
    return {name: _measure(name, args) for name in args.detectors}


def _measure(name: str, args: argparse.Namespace) -> Found:
    height, width = args.height, args.width
    inputs = [{"image": torch.rand(3, height, width) * 255, "height": height, "width": width}]
    with torch.no_grad():
        eager = make_detector(name, args.device, inputs)
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
