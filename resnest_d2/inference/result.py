"""Detections in one picture, in the forms that other programs take."""

from collections.abc import Container, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.structures import Instances
from PIL import Image

from ..config import InputError, import_extra
from .drawing import import_to_draw

if TYPE_CHECKING:
    import supervision

CROP_MARGIN = 0.1  # of a box's sides


class Result(dict[str, Any]):
    """The output of a Detectron2 model for one picture, ``result["instances"]`` and the like.

    Attributes:
        image: the picture, shape (H, W, 3), uint8, RGB.
        source: its file, address or number in a video; None for an array.
        metadata: names and colours of classes.
    """

    def __init__(
        self, output: Mapping[str, Any], image: np.ndarray, metadata: Metadata, source: Any = None
    ) -> None:
        super().__init__(output)
        self.image, self.metadata, self.source = image, metadata, source

    @property
    def instances(self) -> Instances:
        """Boxes in pixels of the picture, scores, classes; masks and keypoints of models with them.

        Raises:
            InputError: the model finds no instances.
        """
        if "instances" not in self:
            raise InputError(f"the model finds no instances; its output has {', '.join(self)}")
        return self["instances"]

    @property
    def names(self) -> list[str]:
        """The class of each instance by its name."""
        known = self.metadata.get("thing_classes", None) or []
        numbers = self.instances.pred_classes.tolist()
        return [known[n] if n < len(known) else str(n) for n in numbers]

    def above(self, threshold: float) -> "Result":
        """The result with the instances of at least this score."""
        return self._where(self.instances.scores >= threshold)

    def of_classes(self, names: Container[str]) -> "Result":
        """The result with the instances of these classes."""
        return self._where(torch.tensor([name in names for name in self.names], dtype=torch.bool))

    def _where(self, kept: torch.Tensor) -> "Result":
        instances = self.instances[kept.to(self.instances.scores.device)]
        return Result({**self, "instances": instances}, self.image, self.metadata, self.source)

    def to_coco(
        self, image_id: int = 0, category_ids: Mapping[str, int] | None = None
    ) -> list[dict[str, Any]]:
        """The instances as COCO's results, a list of dicts that ``COCO.loadRes`` takes.

        Boxes are x, y, width and height in pixels, masks compressed RLE.

        Args:
            image_id: of the picture in an annotation file.
            category_ids: ids by the names of classes; by default those of the training data, and
                without any the classes' numbers.

        Raises:
            InputError: a class has no id.
        """
        from detectron2.evaluation.coco_evaluation import instances_to_coco_json

        contiguous = self.metadata.get("thing_dataset_id_to_contiguous_id", None) or {}
        original = {number: given for given, number in contiguous.items()}
        results = instances_to_coco_json(self.instances.to("cpu"), image_id)
        for result, name in zip(results, self.names, strict=True):
            number = result["category_id"]
            if category_ids is None:
                result["category_id"] = original.get(number, number)
            elif name in category_ids:
                result["category_id"] = category_ids[name]
            else:
                known = ", ".join(category_ids)
                raise InputError(f"class {name!r} is not among the categories {known}")
        return results

    def to_supervision(self) -> "supervision.Detections":
        """The instances as ``supervision.Detections``, with names in ``data["class_name"]``.

        Raises:
            ImportError: supervision is not installed.
        """
        supervision = import_extra("supervision", "{}")
        on_cpu = self.instances.to("cpu")
        detections = supervision.Detections.from_detectron2({"instances": on_cpu})
        detections.data["class_name"] = np.array(self.names, dtype=str)
        return detections

    def plot(self, scale: float = 1.0) -> np.ndarray:
        """Draw boxes, masks, names and scores; segments of a panoptic or semantic model as well.

        Args:
            scale: of the picture; small images become legible when they are drawn larger.

        Returns:
            shape (H * scale, W * scale, 3), uint8, RGB.

        Raises:
            ImportError: as :func:`import_to_draw`.
        """
        module = import_to_draw("detectron2.utils.visualizer")
        visualizer = module.Visualizer(self.image, self.metadata, scale)
        if "panoptic_seg" in self:
            segments, info = self["panoptic_seg"]
            return visualizer.draw_panoptic_seg_predictions(segments.cpu(), info).get_image()
        if "sem_seg" in self:
            visualizer.draw_sem_seg(self["sem_seg"].argmax(0).cpu())
        if "instances" in self:
            visualizer.draw_instance_predictions(self["instances"].to("cpu"))
        return visualizer.output.get_image()

    def save(self, file: str | Path, scale: float = 1.0) -> Path:
        """Write what :meth:`plot` draws; the folder is made if need be.

        Returns:
            the path.
        """
        path = Path(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.plot(scale)).save(path)
        return path

    def crops(self) -> list[Image.Image]:
        """The part of the picture around each instance, with a margin of a tenth of its box."""
        height, width = self.image.shape[:2]
        found = []
        for left, top, right, bottom in self.instances.pred_boxes.tensor.tolist():
            x, y = CROP_MARGIN * (right - left), CROP_MARGIN * (bottom - top)
            x0, y0 = max(0, int(left - x)), max(0, int(top - y))
            x1, y1 = min(width, int(right + x) + 1), min(height, int(bottom + y) + 1)
            found.append(Image.fromarray(self.image[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]))
        return found
