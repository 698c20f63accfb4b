"""Detections in large pictures, found in overlapping tiles by supervision's slicer."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from ..config import InputError, import_extra, require_between, require_int

if TYPE_CHECKING:
    import supervision

# Runs a Detectron2 model on an image of shape (H, W, 3), uint8, RGB.
Predict = Callable[[np.ndarray], Mapping[str, Any]]

SAME_OBJECT = 0.5  # two detections overlap by so much of the smaller one


def check_tiles(size: int, overlap: float) -> None:
    """See that supervision is there, and that tiles can be of this size and overlap.

    Raises:
        InputError: a number is out of range.
        MissingPackageError: supervision is not installed.
    """
    require_int("--tile", size, least=32)
    require_between("--overlap", overlap, 0, 0.9)
    import_extra("supervision", "draw", "running on tiles")


def predict_tiles(
    predict: Predict, image: np.ndarray, size: int, overlap: float
) -> dict[str, Instances]:
    """Run a model on tiles of a picture and on the whole of it; a small one is one tile.

    What tiles cut apart is merged where it overlaps, class by class, with the best piece's score.

    Args:
        predict: gives a Detectron2 model's output.
        image: of shape (H, W, 3), uint8, RGB.
        size: of a tile, in pixels.
        overlap: of neighbours, as a part of the size.

    Returns:
        the output for the picture: boxes, scores, classes, and masks if the model has them, the
        best first.

    Raises:
        InputError: the model finds no instances, or keypoints, which cannot be merged.
    """
    if max(image.shape[:2]) <= size:
        return dict(predict(image))
    import supervision

    def detect(part: np.ndarray) -> "supervision.Detections":
        output = predict(np.ascontiguousarray(part))
        if "instances" not in output or output["instances"].has("pred_keypoints"):
            raise InputError("--tile is for models of boxes and masks")
        detections = supervision.Detections.from_detectron2(output)
        # Merging averages the confidences of pieces, and keeps the best one's data.
        detections.data["score"] = detections.confidence
        return detections.to_compact_masks() if len(detections) else detections

    slicer = supervision.InferenceSlicer(
        detect,
        slice_wh=size,
        overlap_wh=int(overlap * size),
        overlap_filter=supervision.OverlapFilter.NONE,
    )
    whole = detect(image)
    found = _merge(supervision.Detections.merge([whole, slicer(image)]))
    found = found[np.argsort(-found.confidence, kind="stable")]
    instances = Instances(image.shape[:2])
    instances.pred_boxes = Boxes(torch.from_numpy(found.xyxy).float())
    instances.scores = torch.from_numpy(found.confidence).float()
    instances.pred_classes = torch.from_numpy(found.class_id)
    if whole.mask is not None:
        masks = np.zeros((0, *image.shape[:2]), bool)
        if len(found):
            tight = found.mask.repack()
            instances.pred_boxes = Boxes(
                torch.from_numpy(np.add(tight.bbox_xyxy, [0, 0, 1, 1])).float()
            )
            masks = tight.to_dense()
        instances.pred_masks = torch.from_numpy(masks)
    return {"instances": instances}


def _merge(found: "supervision.Detections") -> "supervision.Detections":
    """Merge detections of one object; merged ones may overlap others anew, so until none do."""
    import supervision

    while True:
        metric = supervision.OverlapMetric.IOS
        merged = found.with_nmm(SAME_OBJECT, overlap_metric=metric)
        if len(merged):
            merged.confidence = merged.data["score"]
        if len(merged) == len(found):
            return merged
        found = merged
