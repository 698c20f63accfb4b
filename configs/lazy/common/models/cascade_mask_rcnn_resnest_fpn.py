"""Cascade R-CNN with a mask head, three 4conv1fc box heads and SyncBN, on ResNeSt-FPN."""

from .detectron2_models import cascade_rcnn as model
from .resnest import pixels
from .resnest_fpn import backbone

model.update(backbone=backbone, **pixels)
model.proposal_generator.post_nms_topk = (2000, 1000)
for head in model.roi_heads.box_heads:
    head.update(conv_dims=[256, 256, 256, 256], fc_dims=[1024], conv_norm="SyncBN")
model.roi_heads.mask_head.conv_norm = "SyncBN"
