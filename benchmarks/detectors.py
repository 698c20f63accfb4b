"""Inference of whole detectors: as they are, optimised, compiled and in half precision."""

import argparse
from typing import Any

import torch
from torch import nn

from resnest_d2 import model_zoo
from resnest_d2.modeling.detector import build_detector
from resnest_d2.optimize import optimize_for_inference

from .timing import Found, Section, measure, summarize, table

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


def measure_detectors(args: argparse.Namespace) -> Found:
    """Time detectors from an image to detections and pasted masks.

    Returns:
        by name: "times" by competitor, "detected" objects and "size".
    """
    return {name: _measure(name, args) for name in args.detectors}


@torch.no_grad()
def _measure(name: str, args: argparse.Namespace) -> Found:
    height, width = args.height, args.width
    inputs = [{"image": torch.rand(3, height, width) * 255, "height": height, "width": width}]
    eager = make_detector(name, args.device, inputs)
    models = {EAGER: eager, f"{EAGER}, optimised": optimize_for_inference(eager)}
    if args.compile:
        models[f"{EAGER}, compiled"] = optimize_for_inference(eager, compile=True)
    if args.half:
        dtype = torch.bfloat16 if args.device == "cpu" else torch.float16
        models[f"{EAGER}, optimised, {dtype}"] = optimize_for_inference(eager, dtype=dtype)
    runs = {key: (lambda model=model: model(inputs)) for key, model in models.items()}
    times = measure(runs, args.rounds, device=args.device)
    detected = len(eager(inputs)[0]["instances"])
    return {"times": summarize(times, EAGER), "detected": detected, "size": (height, width)}


def render(found: Found) -> list[str]:
    """A table for each detector."""
    lines: list[str] = []
    for name, one in found.items():
        height, width = one["size"]
        title = f"Detector {name}, {height}x{width}, one image, {one['detected']} detections"
        lines += ["", *table(title, one["times"], EAGER)]
    return lines[1:]


SECTION = Section(
    measure_detectors,
    render,
    {
        "--detectors": {
            "nargs": "+",
            "choices": model_zoo.names(),
            "default": ["mask_resnest50", "cascade_resnest101"],
            "metavar": "NAME",
            "help": "of the zoo",
        },
        "--half": {"action": "store_true", "help": "detectors in half precision, too"},
    },
)
