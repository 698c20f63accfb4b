"""ResNeSt-FPN: P2 to P6."""

from detectron2.config import LazyCall as L
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool

from .resnest import backbone as bottom_up

backbone = L(FPN)(
    bottom_up=bottom_up,
    in_features="${.bottom_up.out_features}",
    out_channels=256,
    norm="SyncBN",
    top_block=L(LastLevelMaxPool)(),
)
