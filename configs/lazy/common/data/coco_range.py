"""As ``coco``, any short side between 640 and 800, without masks: the recipe of box detectors."""

from .coco import dataloader

dataloader["train"].mapper.augmentations[0].update(
    short_edge_length=(640, 800), sample_style="range"
)
dataloader["train"].mapper.use_instance_mask = False
