"""Mask R-CNN with the 4conv1fc box head and SyncBN, on ResNeSt-FPN."""

from .detectron2_models import mask_rcnn_fpn as model
from .resnest import pixels
from .resnest_fpn import backbone

model.update(backbone=backbone, **pixels)
model.roi_heads.box_head.update(conv_dims=[256, 256, 256, 256], fc_dims=[1024], conv_norm="SyncBN")
model.roi_heads.mask_head.conv_norm = "SyncBN"
