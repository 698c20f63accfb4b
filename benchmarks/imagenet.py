"""What was published about the backbones on ImageNet: the only place for these figures."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Accuracy:
    """Of an ImageNet network in the authors' PyTorch tables."""

    top1: float
    """Share of the validation images whose first guess is right, in per cent."""
    crop: int
    """Side of the square images, in pixels."""


# Addresses of the tables.
IMAGENET_PUBLISHER = "https://github.com/zhanghang1989/ResNeSt#pretrained-models"
FAST_PUBLISHER = "https://github.com/zhanghang1989/ResNeSt/blob/master/ablation.md"

# By the names of resnest_d2.weights; ResNeSt-14 and 26 are GluonCV's and in neither table. The
# second exists in two versions, which differ in 2s2x40d and 4s2x40d: the other has 80.97 and
# 80.86. This one fits the files, for timm measured 81.11 with that of 4s2x40d.
IMAGENET: dict[str, Accuracy] = {
    "resnest50": Accuracy(81.03, 224),
    "resnest101": Accuracy(82.83, 256),
    "resnest200": Accuracy(83.84, 320),
    "resnest269": Accuracy(84.54, 416),
    "resnest50_fast_1s1x64d": Accuracy(80.33, 224),
    "resnest50_fast_2s1x64d": Accuracy(80.53, 224),
    "resnest50_fast_4s1x64d": Accuracy(80.76, 224),
    "resnest50_fast_1s2x40d": Accuracy(80.59, 224),
    "resnest50_fast_2s2x40d": Accuracy(80.61, 224),
    "resnest50_fast_4s2x40d": Accuracy(81.14, 224),
    "resnest50_fast_1s4x24d": Accuracy(80.99, 224),
}
