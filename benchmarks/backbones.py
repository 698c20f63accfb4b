"""Inference of backbones beside the reference, timm and Detectron2's ResNet."""

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from torch import nn

from resnest_d2.modeling.build import build_resnest_backbone
from resnest_d2.optimize import optimize_for_inference

from .cost import count_macs
from .peers import REFERENCE, config, reference_backbone, timm_backbone
from .timing import Found, Section, measure, summarize, table

OURS = "resnest_d2"
# Channels, height and width of a plain 1x1 convolution, whose rate is the machine's limit.
# A matrix product, MKL's, takes twice the time on some CPUs.
CHANNELS, SIDE = 1024, 64
LIMIT = "1x1 convolution"


def competitors(depth: int, compiled: bool, device: str) -> dict[str, nn.Module]:
    """Backbones of a depth in evaluation on a device; ours have the reference's weights."""
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


def measure_backbones(args: argparse.Namespace) -> Found:
    """Time backbones on one image.

    Returns:
        "times" by competitor, multiply-adds a second of the machine ("limit"), and those of the
        backbone ("macs").
    """
    size = (args.height, args.width)
    image = torch.rand(1, 3, *size, device=args.device)
    plain = nn.Conv2d(CHANNELS, CHANNELS, 1).to(args.device, memory_format=torch.channels_last)
    maps = torch.rand(1, CHANNELS, SIDE, SIDE, device=args.device)
    maps = maps.contiguous(memory_format=torch.channels_last)
    models = competitors(args.depth, args.compile, args.device)
    runs: dict[str, Callable[[], Any]] = {k: (lambda m=m: m(image)) for k, m in models.items()}
    runs[LIMIT] = lambda: plain(maps)
    with torch.no_grad():
        times = measure(runs, args.rounds, warmup=2, device=args.device)
    return {
        "depth": args.depth,
        "size": size,
        "limit": (CHANNELS * SIDE) ** 2 / statistics.median(times.pop(LIMIT)),
        "macs": count_macs(models[f"{OURS}, optimised"], size),
        "times": summarize(times, REFERENCE),
    }


def render(found: Found) -> list[str]:
    """A table, the machine's limit and how near to it our backbones are."""
    height, width = found["size"]
    title = f"Backbone of depth {found['depth']}, {height}x{width}, batch 1, fp32"
    text = (
        f"The machine's limit: {found['limit'] / 1e9:.1f} G multiply-adds a second ({LIMIT} of "
        f"{CHANNELS} channels on {SIDE}x{SIDE}, median of the same rounds)."
    )
    for name, one in found["times"].items():
        if name.startswith(OURS):
            share = found["macs"] / one["median"] / found["limit"]
            text += f" {name}: {share:.0%} of it, at {found['macs'] / 1e9:.1f} G."
    return [*table(title, found["times"], REFERENCE), "", text]


SECTION = Section(measure_backbones, render)
