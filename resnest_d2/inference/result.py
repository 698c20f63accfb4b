"""Detections in one picture, in the forms that other programs take."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.structures import Instances
from PIL import Image

from ..config import InputError
from ..files import make_folder, replacing
from .drawing import class_name, draw, import_supervision

if TYPE_CHECKING:
    import supervision

CROP_MARGIN = 0.1  # of a box's sides


class Result:
    """The output of a model for one picture.

    ``result["instances"]``, and the like, is a part of the output in Detectron2's format.
    ``len(result)`` is the number of instances, so that a result without any is false.

    Attributes:
        output: of the Detectron2 model.
        image: the picture, shape (H, W, 3), uint8, RGB.
        source: its file, address or number in a video; None for an array.
        metadata: names of classes and their ids in annotations.
    """

    __iter__ = None  # else Python would count up numbers, which are no keys

    def __init__(
        self, output: Mapping[str, Any], image: np.ndarray, metadata: Metadata, source: Any = None
    ) -> None:
        self.output, self.image, self.metadata, self.source = output, image, metadata, source

    def __getitem__(self, key: str) -> Any:
        return self.output[key]

    def __contains__(self, key: str) -> bool:
        return key in self.output

    def __len__(self) -> int:
        return len(self.output.get("instances", ()))

    def __repr__(self) -> str:
        return f"<Result of {self.source}: {len(self)} instances in {', '.join(self.output)}>"

    @property
    def instances(self) -> Instances:
        """Boxes in pixels of the picture, scores, classes; masks and keypoints of models with them.

        Raises:
            InputError: the model finds no instances.
        """
        if "instances" not in self:
            raise InputError(
                f"the model finds no instances; its output has {', '.join(self.output)}"
            )
        return self["instances"]

    @property
    def names(self) -> list[str]:
        """The class of each instance by its name."""
        known = self.metadata.get("thing_classes", None)
        return [class_name(known, number) for number in self.instances.pred_classes.tolist()]

    def where(self, kept: Sequence[bool] | torch.Tensor) -> "Result":
        """The result with some of its instances.

        Args:
            kept: which of them, a boolean for each.
        """
        kept = torch.as_tensor(kept, dtype=torch.bool, device=self.instances.scores.device)
        output = {**self.output, "instances": self.instances[kept]}
        return Result(output, self.image, self.metadata, self.source)

    def above(self, threshold: float) -> "Result":
        """The result with the instances, and panoptic things, of at least this score.

        Pixels of things that are left out belong to no segment then.
        """
        output = dict(self.output)
        if "instances" in output:
            output = self.where(self.instances.scores >= threshold).output
        if "panoptic_seg" in output:
            segments, info = output["panoptic_seg"]
            low = [one["id"] for one in info if one["isthing"] and one.get("score", 1) < threshold]
            left_out = torch.isin(segments, torch.tensor(low, dtype=segments.dtype).to(segments))
            kept = [one for one in info if one["id"] not in low]
            output["panoptic_seg"] = segments.masked_fill(left_out, 0), kept
        return Result(output, self.image, self.metadata, self.source)

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
            InputError: a class has no id, or the model finds no instances.
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
            InputError: the model finds no instances.
            MissingPackageError: supervision is not installed.
        """
        on_cpu = {"instances": self.instances.to("cpu")}
        detections = import_supervision().Detections.from_detectron2(on_cpu)
        detections.data["class_name"] = np.array(self.names, dtype=str)
        return detections

    def plot(self, scale: float = 1.0) -> np.ndarray:
        """Draw boxes, masks, names and scores; segments of a panoptic or semantic model as well.

        Args:
            scale: of the picture; small images become legible when they are drawn larger.

        Returns:
            shape (H * scale, W * scale, 3), uint8, RGB.

        Raises:
            MissingPackageError: supervision is not installed.
        """
        return draw(self.image, self.output, self.metadata, scale)

    def save(self, file: str | Path, scale: float = 1.0) -> Path:
        """Write what :meth:`plot` draws; the folder is made if need be.

        Returns:
            the path.

        Raises:
            InputError: the file's ending is not a picture's.
            FileError: the file cannot be written.
            MissingPackageError: supervision is not installed.
        """
        path = Path(file)
        kind = Image.registered_extensions().get(path.suffix.lower())
        if kind not in Image.SAVE:
            raise InputError(f"a drawing is written to a picture, .png for example, not to {path}")
        make_folder(path.parent)
        with replacing(path) as temporary:
            Image.fromarray(self.plot(scale)).save(temporary, format=kind)
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
