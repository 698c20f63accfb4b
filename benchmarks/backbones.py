"""Inference of backbones beside the reference, timm and Detectron2's ResNet."""

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from torch import nn

from resnest_d2.modeling.build import build_resnest_backbone
from resnest_d2.optimize import optimize_for_inference

from .cost import count_macs
from .peers import REFERENCE, config, reference_backbone, timm_backbone
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

OURS = "resnest_d2"


def competitors(depth: int, compiled: bool, device: str) -> dict[str, nn.Module]:
    """Backbones of a depth in evaluation mode on a device; ours have the reference's weights.

    Raises:
        MissingPackageError: the reference or timm is not installed.
    """
    eager = build_resnest_backbone(config(depth), ShapeSpec(channels=3)).to(device).eval()
    theirs = reference_backbone(depth)
    theirs.load_state_dict(eager.state_dict())
    found = {
        REFERENCE: theirs,
        "timm": timm_backbone(depth),
        f"Detectron2's ResNet-{depth}": build_resnet_backbone(config(depth), ShapeSpec(channels=3)),
        OURS: eager,
        f"{OURS}, optimised": optimize_for_inference(eager),
    }
    if compiled:
        found[f"{OURS}, compiled"] = optimize_for_inference(eager, compile=True)
    return {name: model.to(device).eval() for name, model in found.items()}


def measure_backbones(args: argparse.Namespace, _: Progress) -> Found:
    """Time backbones on one image.

    Returns:
        "times" by competitor, multiply-adds a second of a matrix product ("matmul"), those of the
        backbone ("macs"), and the greatest relative "difference" of our outputs from the
        reference's.
    """
    size = (args.height, args.width)
    image = torch.rand(1, 3, *size, device=args.device)
    models = competitors(args.depth, args.compile, args.device)
    with torch.no_grad():
        runs: dict[str, Callable[[], Any]] = {k: (lambda m=m: m(image)) for k, m in models.items()}
        runs["matrix product"] = matrix_product(args.device)
        times = measure(runs, args.rounds, warmup=2, device=args.device)
        difference = _difference(models, image)
    return {
        "depth": args.depth,
        "size": size,
        "matmul": MATMUL_SIZE**3 / times.pop("matrix product").median,
        "macs": count_macs(models[f"{OURS}, optimised"], size),
        "difference": difference,
        "times": summarize(times, REFERENCE),
    }


def _difference(models: Mapping[str, nn.Module], image: torch.Tensor) -> float:
    """Greatest difference of our features from the reference's, relative to their largest value."""
    with torch.backends.cudnn.flags(allow_tf32=False):  # by default fp32 on a GPU is only that
        expected = models[REFERENCE](image)
        ours = [model(image) for name, model in models.items() if name.startswith(OURS)]
    gaps = [
        (one[f] - expected[f]).abs().max() / expected[f].abs().max() for one in ours for f in one
    ]
    return max(gaps).item()


def render(found: Found) -> list[str]:
    """A table, the machine's limits and how near to them our backbones are."""
    height, width = found["size"]
    title = f"Backbone of depth {found['depth']}, {height}x{width}, batch 1, fp32"
    text = (
        f"The machine's limit: {found['matmul'] / 1e9:.1f} G multiply-adds a second (product of "
        f"matrices of side {MATMUL_SIZE}, median of the same rounds)."
    )
    for name, one in found["times"].items():
        if name.startswith(OURS):
            share = found["macs"] / one["median"] / found["matmul"]
            text += f" {name}: {share:.0%} of it, at {found['macs'] / 1e9:.1f} G."
    last = f"Outputs differ by {found['difference']:.1e} of their largest value."
    return [*table(title, found["times"], REFERENCE), "", text, last]


SECTION = Section(measure_backbones, render)
