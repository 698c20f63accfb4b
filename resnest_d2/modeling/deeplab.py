"""DeepLab v3+ on images of any size, on top of Detectron2's project of that name."""

import detectron2.data.transforms as T
from detectron2.config import CfgNode
from detectron2.data.detection_utils import build_augmentation
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.projects.deeplab import (
    DeepLabV3PlusHead,
    add_deeplab_config,
    build_lr_scheduler,
)

__all__ = [
    "GlobalPoolDeepLabV3PlusHead",
    "add_deeplab_config",
    "build_lr_scheduler",
    "semantic_augmentations",
]


@SEM_SEG_HEADS_REGISTRY.register()
class GlobalPoolDeepLabV3PlusHead(DeepLabV3PlusHead):
    """``DeepLabV3PlusHead`` whose image-level feature is pooled over the whole map.

    So it is in the paper (arXiv:1706.05587, section 3.3). Detectron2's, when it trains on crops,
    pools over windows of the crop's size and refuses images that are no multiple of it, as it can
    on Cityscapes; ADE20K's images have sizes of all kinds.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict:
        """As the base class, but for the size of the crops."""
        return super().from_config(cfg, input_shape) | {"train_size": None}


def semantic_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Augmentations of DeepLab's training: scale, crop, flip.

    Crops are drawn anew, ten times at most, until no category but the ignored one fills more than
    ``INPUT.CROP.SINGLE_CATEGORY_MAX_AREA`` of them.
    """
    scale, *flips = build_augmentation(cfg, is_train=True)
    crop, ignored = cfg.INPUT.CROP, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    if not crop.ENABLED:
        return [scale, *flips]
    most = crop.get("SINGLE_CATEGORY_MAX_AREA", 1.0)
    return [
        scale,
        T.RandomCrop_CategoryAreaConstraint(crop.TYPE, crop.SIZE, most, ignored),
        *flips,
    ]
