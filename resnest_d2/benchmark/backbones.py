"""Inference of backbones beside the reference, timm and Detectron2's ResNet."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import build_resnet_backbone
from torch import nn

from ..build import build_resnest_backbone
from ..config import add_resnest_config
from ..inference import optimize_for_inference
from .timing import Times, measure

STAGES = ["res2", "res3", "res4", "res5"]
# Depths that all of them have.
TIMM = {50: "resnest50d", 101: "resnest101e", 200: "resnest200e", 269: "resnest269e"}
REFERENCE = "reference (resnest.d2)"
# Of the square matrices whose product is the machine's limit.
MATMUL_SIZE = 2048


def config(depth: int) -> CfgNode:
    """Of a backbone with plain batch norm that puts out all stages."""
    cfg = get_cfg()
    add_resnest_config(cfg)
    cfg.MODEL.RESNETS.DEPTH = depth
    cfg.MODEL.RESNETS.NORM = "BN"
    cfg.MODEL.RESNETS.OUT_FEATURES = STAGES
    return cfg


def reference_backbone(depth: int) -> nn.Module:
    """PyPI's ``resnest``.

    Raises:
        ImportError: it is not installed.
    """
    names = ("build_resnest_backbone", "build_resnest_fpn_backbone")
    ours = {name: BACKBONE_REGISTRY._obj_map.pop(name) for name in names}
    try:  # it registers the names that ours register
        from resnest.d2.config import add_resnest_config as add_theirs
        from resnest.d2.resnest import build_resnest_backbone as build_theirs
    except ImportError:
        raise ImportError(
            "the reference is not installed: pip install --no-deps resnest==0.0.6b20230402"
        ) from None
    finally:
        for name in names:
            BACKBONE_REGISTRY._obj_map[name] = ours[name]
    cfg = get_cfg()
    add_theirs(cfg)
    cfg.merge_from_list(["MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.NORM", "BN"])
    cfg.merge_from_list(["MODEL.RESNETS.RADIX", 2, "MODEL.RESNETS.OUT_FEATURES", STAGES])
    return build_theirs(cfg, ShapeSpec(channels=3))


def competitors(depth: int, compiled: bool, device: str) -> dict[str, nn.Module]:
    """Backbones of a depth in evaluation mode on a device; ours have the reference's weights.

    Raises:
        ImportError: the reference or timm is not installed.
    """
    import timm

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
        times by competitor, and: multiply-adds a second of a matrix product ("matmul") and the
        greatest relative difference of our outputs from the reference's ("difference").
    """
    image = torch.rand(1, 3, *size, device=device)
    models = competitors(depth, compiled, device)
    with torch.no_grad():
        runs: dict[str, Callable[[], Any]] = {k: (lambda m=m: m(image)) for k, m in models.items()}
        a, b = (torch.rand(MATMUL_SIZE, MATMUL_SIZE, device=device) for _ in range(2))
        runs["matrix product"] = lambda: a @ b
        times = measure(runs, rounds, warmup=2, device=device)
        expected = models[REFERENCE](image)
        difference = max(
            ((models[name](image)[f] - expected[f]).abs().max() / expected[f].abs().max()).item()
            for name in models
            if name.startswith("resnest_d2")
            for f in expected
        )
    product = times.pop("matrix product")
    return times, {"matmul": MATMUL_SIZE**3 / product.median, "difference": difference}
