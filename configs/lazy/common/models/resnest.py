"""The published ResNeSt-50; other depths and variants are arguments of ``make_resnest``."""

from detectron2.config import LazyCall as L

from resnest_d2.modeling.resnest import make_resnest

# The colours that the ImageNet weights were trained with.
pixels = dict(
    input_format="RGB",
    pixel_mean=[123.68, 116.779, 103.939],
    pixel_std=[58.393, 57.12, 57.375],
)

backbone = L(make_resnest)(
    depth=50,
    norm="SyncBN",
    out_features=["res2", "res3", "res4", "res5"],
    freeze_at=2,
)
