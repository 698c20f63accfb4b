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
from .peers import REFERENCE, TIMM, config, reference_backbone
from .timing import MATMUL_SIZE, Report, Times, as_json, matrix_product, measure, table

# fp32 values that are copied to measure a GPU's memory.
COPY_SIZE = 1 << 28


def competitors(depth: int, compiled: bool, device: str) -> dict[str, nn.Module]:
    """Backbones of a depth in evaluation mode on a device; ours have the reference's weights.

    Raises:
        ImportError: the reference or timm is not installed.
    """
    try:
        import timm
    except ImportError:
        raise ImportError("timm is not installed: pip install timm") from None
    # There before it is optimised, which measures on the device; a compiled one cannot be copied.
    eager = build_resnest_backbone(config(depth), ShapeSpec(channels=3)).to(device).eval()
    theirs = reference_backbone(depth)
    theirs.load_state_dict(eager.state_dict())
    found = {
        REFERENCE: theirs,
        "timm": timm.create_model(TIMM[depth], features_only=True, out_indices=(1, 2, 3, 4)),
        f"Detectron2's ResNet-{depth}": build_resnet_backbone(config(depth), ShapeSpec(channels=3)),
        "resnest_d2": eager,
        "resnest_d2, optimised": optimize_for_inference(eager),
    }
    if compiled:
        found["resnest_d2, compiled"] = optimize_for_inference(eager, compile=True)
    return {name: model.to(device).eval() for name, model in found.items()}


def measure_backbones(
    depth: int,
    size: tuple[int, int],
    rounds: int,
    device: str,
    compiled: bool,
) -> tuple[dict[str, Times], dict[str, Any]]:
    """Time backbones on one image.

    Args:
        depth: 50, say.
        size: height and width of the image.
        rounds: how often.
        device: "cpu" or "cuda".
        compiled: measure ``compile=True`` too, whose compilation takes minutes.

    Returns:
        times by competitor, and: multiply-adds a second of a matrix product ("matmul"), those of
        the backbone ("macs"), the greatest relative difference of our outputs from the reference's
        ("difference") and, of a GPU, bytes a second of a copy ("bandwidth").
    """
    image = torch.rand(1, 3, *size, device=device)
    models = competitors(depth, compiled, device)
    with torch.no_grad():
        runs: dict[str, Callable[[], Any]] = {k: (lambda m=m: m(image)) for k, m in models.items()}
        runs["matrix product"] = matrix_product(device)
        if device != "cpu":
            source = torch.rand(COPY_SIZE, device=device)
            runs["copy"] = source.clone
        times = measure(runs, rounds, warmup=2, device=device)
        difference = _difference(models, image)
    facts = {
        "matmul": MATMUL_SIZE**3 / times.pop("matrix product").median,
        "macs": count_macs(models["resnest_d2, optimised"], size),
        "difference": difference,
    }
    if "copy" in times:
        facts["bandwidth"] = 2 * 4 * COPY_SIZE / times.pop("copy").median
    return times, facts


def _difference(models: Mapping[str, nn.Module], image: torch.Tensor) -> float:
    """Greatest difference of our features from the reference's, relative to their largest value."""
    with torch.backends.cudnn.flags(allow_tf32=False):  # by default fp32 on a GPU is only that
        expected = models[REFERENCE](image)
        ours = [model(image) for name, model in models.items() if name.startswith("resnest_d2")]
    gaps = [
        (one[f] - expected[f]).abs().max() / expected[f].abs().max() for one in ours for f in one
    ]
    return max(gaps).item()


def run(args: argparse.Namespace) -> Report:
    """The section of ``python -m benchmarks``."""
    size = (args.height, args.width)
    times, facts = measure_backbones(args.depth, size, args.rounds, args.device, args.compile)
    lines = table(
        f"Backbone of depth {args.depth}, {size[0]}x{size[1]}, batch 1, fp32", times, REFERENCE
    )
    lines += [
        "",
        f"The machine's limit: {facts['matmul'] / 1e9:.1f} G multiply-adds a second (product of "
        f"matrices of side {MATMUL_SIZE}, median of the same rounds).",
    ]
    if "bandwidth" in facts:
        lines[-1] += f" Memory: {facts['bandwidth'] / 1e9:.0f} GB/s, read and written."
    for name in times:
        if name.startswith("resnest_d2"):
            share = facts["macs"] / times[name].median / facts["matmul"]
            lines[-1] += f" {name}: {share:.0%} of it, at {facts['macs'] / 1e9:.1f} G."
    lines.append(f"Outputs differ by {facts['difference']:.1e} of their largest value.")
    return lines, {"times": as_json(times, REFERENCE), **facts}
