"""ResNeSt's keys, and the keys of Detectron2's projects where a config needs them."""

import importlib
from collections.abc import Collection, Iterator
from typing import Any

from detectron2.config import CfgNode

RESNEST_DEFAULTS: dict[str, Any] = {
    # Splits per cardinal group: 0 a plain convolution, 1 sigmoid attention, >= 2 softmax attention.
    "RADIX": 2,
    # Three 3x3 convolutions in place of one 7x7 (ResNet-C/D); the stem's width comes with DEPTH.
    "DEEP_STEM": True,
    # Downsample with a 3x3 average pooling beside the 3x3 convolution, in place of its stride.
    "AVD": True,
    # Pool before the 3x3 convolution (the ImageNet "fast" variants), not after it.
    "AVD_FIRST": False,
    # Average pooling in front of a 1x1 projection shortcut of stride 1 (ResNet-D).
    "AVG_DOWN": True,
    # The d of the variants' names (2s1x64d); the group width is scaled by BOTTLENECK_WIDTH / 64.
    "BOTTLENECK_WIDTH": 64,
    # Recompute blocks in the backward pass instead of keeping their activations.
    "GRAD_CHECKPOINT": False,
}

# Modules with the function that adds their keys. Importing them also registers their heads, so they
# are imported only for configs that need them.
PROJECTS: dict[str, str] = {
    "resnest_d2.modeling.deeplab": "add_deeplab_config",
    "detectron2.projects.point_rend": "add_pointrend_config",
}


def add_resnest_config(cfg: CfgNode) -> None:
    """Add ResNeSt's keys under ``MODEL.RESNETS``, and this package's others, if they are missing.

    The names are those of the reference (``resnest.d2.add_resnest_config``), so its users' YAML
    files load unchanged. Unlike the reference it leaves ``STRIDE_IN_1X1`` alone, which ResNet
    baselines need at Detectron2's default; the ResNeSt builders do not read that key.
    """
    for node, key, default in _own_keys(cfg):
        node.setdefault(key, default)


def _own_keys(cfg: CfgNode) -> Iterator[tuple[CfgNode, str, Any]]:
    """The nodes of a config, the keys that this package adds to them, and their defaults."""
    for key, default in RESNEST_DEFAULTS.items():
        yield cfg.MODEL.RESNETS, key, default
    # Compile the backbone for training with torch.compile.
    yield cfg.MODEL, "COMPILE", False
    # Factor of the learning rate in the bottom-up network, as in MaskFormer's configs.
    yield cfg.SOLVER, "BACKBONE_MULTIPLIER", 1.0
    # Values of pictures of 16 or 32 bits that become 0 to 255: (0, 4095), or ("0.1%", "99.9%") of
    # each picture's; else 16 bits are divided by 257.
    yield cfg.INPUT, "PIXEL_RANGE", ()
    # Large-scale jitter in place of INPUT.MIN_SIZE_TRAIN: images are scaled to fit a random
    # multiple of IMAGE_SIZE, and cropped or padded to it (arXiv:2012.07177).
    jitter = {"ENABLED": False, "MIN_SCALE": 0.1, "MAX_SCALE": 2.0, "IMAGE_SIZE": 1024}
    yield cfg.INPUT, "LSJ", CfgNode(jitter)


def add_project_config(cfg: CfgNode, keys: Collection[str]) -> None:
    """Add the keys of each Detectron2 project that has some of ``keys`` which ``cfg`` lacks."""
    for module, function in PROJECTS.items():
        if missing := set(keys) - set(flat_keys(cfg)):
            add_keys = getattr(importlib.import_module(module), function)
            extended = cfg.clone()
            add_keys(extended)
            if missing & set(flat_keys(extended)):
                add_keys(cfg)


def portable_config(cfg: CfgNode) -> CfgNode:
    """A copy of a config that any Detectron2 program can read.

    It lacks the keys of this package that have their defaults.
    """
    cfg = cfg.clone()
    cfg.defrost()
    for node, key, default in _own_keys(cfg):
        if node.get(key) == default:
            node.pop(key, None)
    return cfg


def flat_items(node: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values below a config node with their dotted names, ``("MODEL.WEIGHTS", "")``, ..."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from flat_items(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def flat_keys(node: dict[str, Any]) -> Iterator[str]:
    """Dotted names of all values below a config node."""
    return (key for key, _ in flat_items(node))
