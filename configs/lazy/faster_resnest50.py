from .common.data.coco_range import dataloader
from .common.models.faster_rcnn_resnest_fpn import model
from .common.optim import optimizer
from .common.schedule import lr_multiplier
from .common.train import train
