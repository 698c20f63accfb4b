"""The configuration keys that ResNeSt adds to Detectron2's."""

from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode, get_cfg

from .projects import add_project_config, flat_keys

RESNEST_DEFAULTS: dict[str, Any] = {
    # Splits per cardinal group: 0 a plain convolution, 1 sigmoid attention, >= 2 softmax attention.
    "RADIX": 2,
    # Three 3x3 convolutions in place of one 7x7 (ResNet-C/D); also decides the stem's width.
    "DEEP_STEM": True,
    # Downsample with a 3x3 average pooling beside the 3x3 convolution, in place of its stride.
    "AVD": True,
    # Whether that pooling comes before the 3x3 convolution (the ImageNet "fast" variants).
    "AVD_FIRST": False,
    # Average pooling in front of a 1x1 projection shortcut of stride 1 (ResNet-D).
    "AVG_DOWN": True,
    # The d of the variants' names (2s1x64d); the group width is scaled by BOTTLENECK_WIDTH / 64.
    "BOTTLENECK_WIDTH": 64,
    # Recompute blocks in the backward pass instead of keeping their activations.
    "GRAD_CHECKPOINT": False,
}
# Under MODEL: compile the backbone for training. Only a config that names it has it.
COMPILE = "COMPILE"


def add_resnest_config(cfg: CfgNode) -> None:
    """Add ResNeSt's keys under ``MODEL.RESNETS``; keys that are already there keep their values.

    The names are those of the reference (``resnest.d2.add_resnest_config``), so its users' YAML
    files load unchanged. Unlike the reference it leaves ``STRIDE_IN_1X1`` alone, which ResNet
    baselines need at Detectron2's default; the ResNeSt builders do not read that key.
    """
    for key, value in RESNEST_DEFAULTS.items():
        if key not in cfg.MODEL.RESNETS:
            cfg.MODEL.RESNETS[key] = value


def read_config(file: str, opts: Sequence[str] = ()) -> CfgNode:
    """Read a YAML file over Detectron2's defaults, ResNeSt's keys and those of needed projects.

    Args:
        file: path of a YAML file, which may name others as its ``_BASE_``.
        opts: keys and values that override it, ``["SOLVER.BASE_LR", "0.01", ...]``.

    Raises:
        KeyError: a key that does not exist.
        ValueError: a value that does not fit its key.
    """
    cfg = get_cfg()
    add_resnest_config(cfg)
    loaded = CfgNode.load_yaml_with_base(file, allow_unsafe=True)
    keys = {*flat_keys(loaded), *opts[::2]}
    add_project_config(cfg, keys)
    if f"MODEL.{COMPILE}" in keys:
        cfg.MODEL[COMPILE] = False
    cfg.merge_from_file(file)
    cfg.merge_from_list(list(opts))
    return cfg
