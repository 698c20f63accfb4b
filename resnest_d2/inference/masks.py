"""Masks that stay in their boxes until somebody asks for them in the picture.

100 masks of 12 megapixels take 1.2 GB as arrays of the picture's size, and a few MB in their boxes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.modeling import GeneralizedRCNN
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Instances

from ..optimize.fold import has_hooks

THRESHOLD = 0.5  # of a mask's probability, as Detectron2's
FIELD = "box_masks"


def detect(model: Any, inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Run a model; instances of a Mask R-CNN have :data:`FIELD` in place of ``pred_masks``.

    Args:
        model: of Detectron2, or an :class:`~resnest_d2.export.ExportedModel`.
        inputs: in Detectron2's format, with "height" and "width" of the picture.

    Returns:
        the model's outputs. Box masks are probabilities, shape (N, M, M), stretched over the boxes.
    """
    if hasattr(model, "detect"):
        found = model.detect(inputs)
    elif _is_plain(model):
        found = model.inference(inputs, do_postprocess=False)
    else:
        return model(inputs)
    outputs = []
    for instances, one in zip(found, inputs, strict=True):
        if instances.has("pred_masks"):
            instances.set(FIELD, instances.pred_masks[:, 0])
            instances.remove("pred_masks")
        outputs.append({"instances": detector_postprocess(instances, one["height"], one["width"])})
    return outputs


def _is_plain(model: Any) -> bool:
    """Whether a model's inference is that of Detectron2's R-CNNs, and no hook waits for a call."""
    plain, kind = GeneralizedRCNN, type(model)
    if not isinstance(model, plain) or has_hooks(model):
        return False
    return all(getattr(kind, name) is getattr(plain, name) for name in ("forward", "inference"))


def paste_one(
    mask: torch.Tensor, box: torch.Tensor, size: tuple[int, int]
) -> tuple[np.ndarray, int, int]:
    """Enlarge a mask (M, M) to its box, pixel by pixel as Detectron2 does in the whole picture.

    Args:
        mask: probabilities.
        box: x0, y0, x1, y1 in pixels, inside of the picture.
        size: height and width of the picture.

    Returns:
        the part of the picture around the box, bool, and the row and the column that it begins at.
    """
    left, top = (max(0, int(side) - 1) for side in box[:2].floor())
    right = min(size[1], int(box[2].ceil()) + 1)
    bottom = min(size[0], int(box[3].ceil()) + 1)
    # Whole numbers are taken off without rounding, so that each pixel is the whole picture's.
    local = (box - box.new_tensor([left, top, left, top]))[None]
    part = paste_masks_in_image(mask[None], local, (bottom - top, right - left), THRESHOLD)
    return part[0].numpy(), top, left


def paste_all(instances: Instances) -> Instances:
    """Instances with ``pred_masks`` (N, H, W), bool, of the picture; those without masks as is."""
    if not instances.has(FIELD):
        return instances
    fields = instances.get_fields()
    pasted = Instances(instances.image_size, **{k: v for k, v in fields.items() if k != FIELD})
    masks, boxes = fields[FIELD], instances.pred_boxes
    pasted.pred_masks = paste_masks_in_image(masks, boxes, instances.image_size, THRESHOLD)
    return pasted
