"""The digits recipe: ResNeSt-14 at half its width, small heads, small images."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

import resnest_d2.data  # registers the data set

from .common.data.coco import dataloader
from .common.models.mask_rcnn_resnest_fpn import model
from .common.optim import optimizer
from .common.train import train

model.backbone.out_channels = 64
model.backbone.bottom_up.update(depth=14, width_per_group=32, res2_out_channels=128, freeze_at=0)

rpn = model.proposal_generator
rpn.head.in_channels = 64
rpn.anchor_generator.sizes = [[16], [32], [64], [128], [256]]
rpn.pre_nms_topk = (500, 200)
rpn.post_nms_topk = (200, 100)

heads = model.roi_heads
heads.num_classes = 10
heads.batch_size_per_image = 32
heads.box_head.update(
    input_shape=ShapeSpec(channels=64, height=7, width=7), conv_dims=[64], fc_dims=[128]
)
heads.box_predictor.update(
    input_shape=ShapeSpec(channels=128), cls_agnostic_bbox_reg=True, test_topk_per_image=20
)
heads.mask_head.update(
    input_shape=ShapeSpec(channels=64, height=14, width=14),
    conv_dims=[64, 64, 64],
    conv_norm="",
    num_classes=1,
)
del rpn, heads

mapper = dataloader["train"].mapper
mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=(128,), max_size=1333, sample_style="choice")
]
mapper.instance_mask_format = "bitmask"
dataloader["train"].dataset.names = "digits_train"
dataloader["train"].update(total_batch_size=8, num_workers=0)
dataloader["test"].dataset.names = "digits_val"
dataloader["test"].mapper.augmentations[0].short_edge_length = 128
dataloader["test"].num_workers = 0
del mapper

optimizer.update(lr=0.12, nesterov=True)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_factor=0.001,
    warmup_length=100 / 900,
    warmup_method="linear",
)
train.update(
    init_checkpoint="",
    max_iter=900,
    eval_period=225,
    seed=1,
)
train["checkpointer"]["period"] = 450
train["precise_bn"]["enabled"] = False
train["clip_gradients"]["enabled"] = True
