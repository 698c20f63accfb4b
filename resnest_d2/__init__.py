"""ResNeSt (split-attention) backbones for Detectron2.

Importing this package registers ``build_resnest_backbone``, ``build_resnest_fpn_backbone`` and
``build_retinanet_resnest_fpn_backbone`` in Detectron2's ``BACKBONE_REGISTRY``.
"""

__version__ = "0.1.0"

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "resnest_d2 needs Detectron2, which pip does not install under that name. Without a "
        "compiler: `make setup` in a clone of resnest_d2. With one: pip install "
        "--no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git' "
        "(after torch). The README's section Installation says more."
    ) from error

from . import model_zoo
from .config.keys import add_resnest_config
from .inference import optimize_for_inference
from .modeling.build import (
    CONFIG_CHECKS,
    build_resnest_backbone,
    build_resnest_fpn_backbone,
    build_retinanet_resnest_fpn_backbone,
)
from .modeling.resnest import ResNeSt
from .modeling.roi_heads import AveragingCascadeROIHeads
from .modeling.split_attention import SplitAttentionConv2d
from .weights import register_handlers
from .weights.catalog import check_colours

register_handlers()
if check_colours not in CONFIG_CHECKS:
    CONFIG_CHECKS.append(check_colours)

__all__ = [
    "AveragingCascadeROIHeads",
    "ResNeSt",
    "SplitAttentionConv2d",
    "add_resnest_config",
    "build_resnest_backbone",
    "build_resnest_fpn_backbone",
    "build_retinanet_resnest_fpn_backbone",
    "model_zoo",
    "optimize_for_inference",
]
