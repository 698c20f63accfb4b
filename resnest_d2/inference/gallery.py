"""A picture of annotations beside predictions, to see at a glance what a model has learned."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.structures import Instances

from ..config import import_extra
from ..files import replacing
from .predictor import Predictor
from .result import Result

NUM_PICTURES, PAIRS_PER_ROW = 12, 3
SIDE = 320  # pixels of the longer side that a picture is drawn at


def draw_gallery(predictor: Predictor, dicts: Sequence[dict[str, Any]], file: Path) -> None:
    """Draw the first images of Detectron2's dataset format twice: annotated, and as predicted.

    Args:
        predictor: of instances, trained on the classes of the images.
        dicts: images with annotations.
        file: a PNG file.

    Raises:
        MissingPackageError: Matplotlib or supervision is not installed.
        FileError: the picture cannot be written.
    """
    figures = import_extra("matplotlib.figure", "draw", "drawing predictions")
    dicts = dicts[:NUM_PICTURES]
    columns = min(PAIRS_PER_ROW, len(dicts))
    rows = -(-len(dicts) // columns)
    figure = figures.Figure(figsize=(5.2 * columns, 2.7 * rows), layout="constrained")
    axes = figure.subplots(rows, 2 * columns, squeeze=False).ravel()
    for left, right, entry in zip(axes[::2], axes[1::2], dicts, strict=False):
        image = predictor.read(entry["file_name"])
        scale = SIDE / max(image.shape[:2])
        left.imshow(Result(truth_of(entry, image), image, predictor.metadata).plot(scale))
        left.set_title("ground truth", fontsize=9)
        right.imshow(predictor(image).plot(scale))
        right.set_title("prediction", fontsize=9, color="tab:blue")
    for axis in axes:
        axis.axis("off")
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=90, format="png")


def truth_of(entry: dict[str, Any], image: np.ndarray) -> dict[str, Instances]:
    """The annotations of an image in the format of a model's output, without scores.

    Args:
        entry: of Detectron2's dataset format.
        image: shape (H, W, 3).
    """
    annotations, size = entry["annotations"], image.shape[:2]
    has_masks = bool(annotations) and all("segmentation" in one for one in annotations)
    keys = ("bbox", "bbox_mode", "category_id", *["segmentation"] * has_masks)
    known = [{key: one[key] for key in keys} for one in annotations]
    true = annotations_to_instances(known, size, mask_format="bitmask")
    found = Instances(size, pred_boxes=true.gt_boxes, pred_classes=true.gt_classes)
    if has_masks:
        found.pred_masks = true.gt_masks.tensor
    return {"instances": found}
