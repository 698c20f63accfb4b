"""Faster R-CNN: the Mask R-CNN without its mask branch."""

from .mask_rcnn_resnest_fpn import model

for name in ("mask_in_features", "mask_pooler", "mask_head"):
    model.roi_heads.pop(name)
