"""Cascade R-CNN with a mask head, three 4conv1fc box heads and SyncBN, on ResNeSt-FPN."""

from resnest_d2.config.lazy import detectron2_config

from .resnest import pixels
from .resnest_fpn import backbone

model = detectron2_config("common/models/cascade_rcnn.py").model
model.update(backbone=backbone, **pixels)
model.proposal_generator.post_nms_topk = (2000, 1000)
for head in model.roi_heads.box_heads:
    head.update(conv_dims=[256, 256, 256, 256], fc_dims=[1024], conv_norm="SyncBN")
model.roi_heads.mask_head.conv_norm = "SyncBN"
