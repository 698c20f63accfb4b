"""ResNeSt (split-attention) backbones for Detectron2.

Importing this package registers ``build_resnest_backbone``, ``build_resnest_fpn_backbone`` and
``build_retinanet_resnest_fpn_backbone`` in Detectron2's ``BACKBONE_REGISTRY``, and the names of
published weights (``resnest://``, ``timm://``) in its ``PathManager``.
"""

import importlib
import warnings
from typing import Any

__version__ = "0.2.0"

try:
    with warnings.catch_warnings():  # of fvcore, whenever it is imported; no filter stays
        warnings.filterwarnings("ignore", "`torch.jit.script` is deprecated", FutureWarning)
        import detectron2
        import detectron2.modeling  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":  # it is there, and something that it needs is not
        raise
    raise ImportError(
        "resnest_d2 needs Detectron2, which pip does not install under that name. Without a "
        "compiler: `make setup` in a clone of resnest_d2. With one: pip install "
        "--no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git' "
        "(after torch). docs/install.md says more."
    ) from error

from . import model_zoo
from .config.keys import add_resnest_config
from .modeling.build import (
    build_resnest_backbone,
    build_resnest_fpn_backbone,
    build_retinanet_resnest_fpn_backbone,
)
from .modeling.detector import build_detector
from .modeling.resnest import ResNeSt, make_resnest
from .modeling.roi_heads import AveragingCascadeROIHeads  # noqa: F401  (it registers itself)
from .modeling.split_attention import SplitAttentionConv2d
from .weights import load_weights, register_handlers

register_handlers()

# Loaded on first use: they need more of Detectron2 than a project that only builds a backbone.
_LAZY = {
    "Predictor": "inference",
    "optimize_for_inference": "optimize",
}

__all__ = [
    "Predictor",
    "ResNeSt",
    "SplitAttentionConv2d",
    "add_resnest_config",
    "build_detector",
    "build_resnest_backbone",
    "build_resnest_fpn_backbone",
    "build_retinanet_resnest_fpn_backbone",
    "load_weights",
    "make_resnest",
    "model_zoo",
    "optimize_for_inference",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'resnest_d2' has no attribute {name!r}")
    return getattr(importlib.import_module(f"resnest_d2.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
