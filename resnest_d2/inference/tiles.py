"""Detections in large pictures, found in overlapping tiles and put together by SAHI."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.structures import BitMasks, Boxes, Instances

from ..config import InputError, import_extra, require_between, require_int

# A picture without instances; the model says which of these its instances have.
Predict = Callable[[np.ndarray], Mapping[str, Any]]


def check_tiles(size: int, overlap: float) -> None:
    """See that SAHI is there, and that tiles can be of this size and overlap.

    Raises:
        InputError: a number is out of range.
        ImportError: SAHI is not installed.
    """
    require_int("--tile", size, least=32)
    require_between("--overlap", overlap, 0, 0.9)
    import_extra("sahi", "tiles are put together by SAHI, which", "tile")


def predict_tiles(
    predict: Predict, names: Sequence[str], image: np.ndarray, size: int, overlap: float
) -> dict[str, Instances]:
    """Run a model on tiles of a picture and on the whole of it; a small one is one tile.

    What tiles cut apart is merged where it overlaps, class by class (SAHI's GREEDYNMM). Masks are
    polygons on the way, so that they may change by a pixel.

    Args:
        predict: gives a Detectron2 model's output for an image of shape (H, W, 3), uint8, RGB.
        names: of the classes.
        image: of the same kind.
        size: of a tile, in pixels.
        overlap: of neighbours, as a part of the size.

    Returns:
        the output for the picture: boxes, scores, classes, and masks if the model has them.

    Raises:
        InputError: the model finds no instances, or keypoints, which SAHI does not put together.
    """
    if max(image.shape[:2]) <= size:
        return dict(predict(image))
    from sahi.postprocess.combine import GreedyNMMPostprocess
    from sahi.predict import get_sliced_prediction

    model = _model(predict, names)
    found = get_sliced_prediction(
        image,
        model,
        slice_height=size,
        slice_width=size,
        overlap_height_ratio=overlap,
        overlap_width_ratio=overlap,
        postprocess_type="GREEDYNMM",
        force_postprocess_type=True,  # models give low scores too, and SAHI would change to NMS
        verbose=0,
    ).object_prediction_list
    # Pieces of what was merged stay in one pass: they are compared with each other as they were.
    merge = GreedyNMMPostprocess(match_threshold=0.5, match_metric="IOS", class_agnostic=False)
    while len(merged := merge(found)) < len(found):
        found = merged
    found.sort(key=lambda one: -one.score.value)
    height, width = image.shape[:2]
    instances = Instances((height, width))
    boxes = [one.bbox.to_xyxy() for one in found]
    instances.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.scores = torch.tensor([float(one.score.value) for one in found])
    instances.pred_classes = torch.tensor([one.category.id for one in found], dtype=torch.int64)
    if model.has_masks:
        masks = np.zeros((len(found), height, width), bool)
        for mask, one in zip(masks, found, strict=True):
            mask[:] = one.mask.bool_mask
        instances.pred_masks = torch.from_numpy(masks)
        instances.pred_boxes = BitMasks(instances.pred_masks).get_bounding_boxes()
    return {"instances": instances}


def _model(predict: Predict, names: Sequence[str]) -> Any:
    """SAHI's wrapper of Detectron2 models around ours.

    SAHI gives a picture in RGB. Its own wrapper hands that to ``DefaultPredictor``, which takes
    BGR: red and blue would be exchanged in models of RGB.
    """
    from sahi.models.detectron2 import Detectron2DetectionModel

    class Model(Detectron2DetectionModel):
        has_masks = False

        def check_dependencies(self, packages: list[str] | None = None) -> None:
            """Detectron2's distributions have other names than SAHI looks for."""

        def set_model(self, model: Predict, **kwargs: Any) -> None:
            self.model = model

        def perform_inference(self, image: np.ndarray) -> None:
            output = self.model(np.ascontiguousarray(image))
            if "instances" not in output or output["instances"].has("pred_keypoints"):
                raise InputError("--tile is for models of boxes and masks")
            self._original_predictions = output
            self.has_masks = output["instances"].has("pred_masks")

    numbers = {str(number): name for number, name in enumerate(names)}
    return Model(model=predict, category_mapping=numbers, confidence_threshold=0.0, device="cpu")
