"""Detections in one picture: counted, listed, as COCO's results or a table, cut out, drawn."""

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pycocotools.mask as mask_util
import torch
from detectron2.data import Metadata
from detectron2.structures import Instances
from PIL import Image

from ..config import InputError, import_extra
from ..export.standalone import encode
from .drawing import draw, import_supervision, write_picture
from .masks import FIELD, paste_all, paste_one

if TYPE_CHECKING:
    import pandas
    import supervision

CROP_MARGIN = 0.1  # of a box's sides
LEAST_SCORE = 0.5  # of what is drawn and counted where nobody says otherwise


class Detection(NamedTuple):
    """One object that was found."""

    name: str
    """Of its class."""
    score: float | None
    """0 to 1; None of an annotation."""
    box: tuple[float, float, float, float]
    """Left, top, right and bottom, in pixels of the picture."""
    area: float
    """Pixels of the mask or, of a model without masks, of the box."""
    mask: np.ndarray | None
    """Shape (H, W), bool."""


@dataclass(eq=False)
class Result:
    """The output of a model for one picture.

    ``result["instances"]``, and the like, is a part of the output in Detectron2's format.
    ``len(result)`` is the number of instances of any score, so that a result without any is false;
    iterating gives each as a :class:`Detection`, and ``print(result)`` counts those that are drawn.

    Raises:
        InputError: instances are asked for, by themselves or in any form, and the model finds none.
        MissingPackageError: the package that draws or makes a table is not installed.
    """

    output: Mapping[str, Any]
    """Of the Detectron2 model, where masks may be in their boxes, see :mod:`.masks`."""
    image: np.ndarray
    """The picture, shape (H, W, 3), uint8, RGB."""
    metadata: Metadata
    """Names of classes and their ids in annotations."""
    source: Any = None
    """The path or address of the picture or video; None for an array."""
    frame: int | None = None
    """Number in a video, from 0."""

    def __getitem__(self, key: str) -> Any:
        return self.instances if key == "instances" else self.output[key]

    def __contains__(self, key: str) -> bool:
        return key in self.output

    def __len__(self) -> int:
        return len(self.output.get("instances", ()))

    def __iter__(self) -> Iterator[Detection]:
        found = self._found.to("cpu")
        return (self._detection(found[at]) for at in range(len(found)))

    def _detection(self, one: Instances) -> Detection:
        (box,), (number,) = one.pred_boxes.tensor.tolist(), one.pred_classes.tolist()
        score = one.scores.item() if one.has("scores") else None
        mask, area = None, one.pred_boxes.area().item()
        if (pasted := paste_all(one)).has("pred_masks"):
            mask = pasted.pred_masks[0].numpy().astype(bool)
            area = float(mask.sum())
        return Detection(self.class_name(number), score, tuple(box), area, mask)

    def __str__(self) -> str:
        if "instances" not in self:
            return f"no objects, but {', '.join(self.output)}"
        shown = self.above(LEAST_SCORE)
        counts = Counter(shown.names).most_common()
        text = f"{len(shown)} object{'' if len(shown) == 1 else 's'}"
        text += ": " * bool(counts) + ", ".join(f"{number} x {name}" for name, number in counts)
        weak = len(self) - len(shown)
        return f"{text} ({weak} below a score of {LEAST_SCORE:g})" if weak else text

    def __repr__(self) -> str:
        return f"<Result of {self.source}: {self}>"

    @property
    def _found(self) -> Instances:
        """The instances with masks as the model gave them."""
        if "instances" not in self:
            has = ", ".join(self.output)
            raise InputError(f"the model finds no instances; its output has {has}")
        return self.output["instances"]

    @cached_property
    def instances(self) -> Instances:
        """Boxes in pixels of the picture, scores, classes; of some models masks and keypoints."""
        return paste_all(self._found)

    @property
    def names(self) -> list[str]:
        """The class of each instance, see :meth:`class_name`."""
        return [self.class_name(number) for number in self._found.pred_classes.tolist()]

    def class_name(self, number: int, kind: str = "thing_classes") -> str:
        """The name of a class, or its number where there is no name."""
        names = self.metadata.get(kind, None) or ()
        return names[number] if number < len(names) else str(number)

    def above(self, threshold: float) -> "Result":
        """The result with the instances, and panoptic things, of at least this score.

        Pixels of things that are left out belong to no segment then. Annotations, which have no
        score, stay.
        """
        output = dict(self.output)
        if "instances" in output and self._found.has("scores"):
            output["instances"] = self._found[self._found.scores >= threshold]
        if "panoptic_seg" in output:
            segments, info = output["panoptic_seg"]
            kept = [s for s in info if not s["isthing"] or s.get("score", 1) >= threshold]
            low = [s["id"] for s in info if s not in kept]
            left_out = torch.isin(segments, torch.tensor(low, dtype=segments.dtype).to(segments))
            output["panoptic_seg"] = segments.masked_fill(left_out, 0), kept
        return replace(self, output=output)

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """The instances as COCO's results with ``category_name``; ``COCO.loadRes`` takes them.

        Boxes are x, y, width and height in pixels, masks compressed RLE. Ids of classes are those
        of the training data, and without any the classes' numbers.

        Args:
            image_id: of the picture in an annotation file.
        """
        from detectron2.evaluation.coco_evaluation import instances_to_coco_json

        contiguous = self.metadata.get("thing_dataset_id_to_contiguous_id", None) or {}
        original = {number: given for given, number in contiguous.items()}
        found = self._found.to("cpu")
        results = instances_to_coco_json(found, image_id)
        for at, (result, name) in enumerate(zip(results, self.names, strict=True)):
            result["category_id"] = original.get(result["category_id"], result["category_id"])
            result["category_name"] = name
            if found.has(FIELD):
                part = paste_one(
                    found.get(FIELD)[at], found.pred_boxes.tensor[at], found.image_size
                )
                result["segmentation"] = encode(*part, *found.image_size)
        return results

    def to_supervision(self) -> "supervision.Detections":
        """The instances as ``supervision.Detections``, with names in ``data["class_name"]``."""
        on_cpu = {"instances": self.instances.to("cpu")}
        detections = import_supervision().Detections.from_detectron2(on_cpu)
        detections.data["class_name"] = np.array(self.names, dtype=str)
        return detections

    def to_json(self, image_id: int = 0) -> str:
        """What :meth:`to_coco` returns, and each instance's area in pixels, as JSON."""
        entries = self.to_coco(image_id)
        for entry in entries:
            masks, (_, _, width, height) = entry.get("segmentation"), entry["bbox"]
            entry["area"] = float(mask_util.area(masks)) if masks else width * height
        return json.dumps(entries)

    def to_pandas(self) -> "pandas.DataFrame":
        """A row an instance: file, frame, name, score; area, x, y, width and height in pixels."""
        library = import_extra("pandas", "draw", "a table of detections")
        rows = [
            (self.source, self.frame, one.name, one.score, one.area, x, y, right - x, bottom - y)
            for one in self
            for x, y, right, bottom in (one.box,)
        ]
        columns = ("file", "frame", "name", "score", "area", "x", "y", "width", "height")
        return library.DataFrame(rows, columns=columns)

    def plot(self, scale: float = 1.0, threshold: float = LEAST_SCORE, **style: Any) -> np.ndarray:
        """Draw what was found with at least this score.

        Args:
            scale: of the picture.
            threshold: the score.
            style: ``labels=False`` leaves out names and scores, ``masks_only=True`` all but masks;
                ``line_width`` is that of boxes, in pixels of the drawing.

        Returns:
            shape (H * scale, W * scale, 3), uint8, RGB.

        Raises:
            InputError: the output has nothing that can be drawn.
        """
        return draw(self.above(threshold), scale, **style)

    def save(
        self, file: str | Path, scale: float = 1.0, threshold: float = LEAST_SCORE, **style: Any
    ) -> Path:
        """Write what :meth:`plot` draws; the folder is made if need be.

        Returns:
            the path.

        Raises:
            InputError: as :meth:`plot`, or the file's ending is not a picture's.
            FileError: the file cannot be written.
        """
        write_picture(Image.fromarray(self.plot(scale, threshold, **style)), Path(file))
        return Path(file)

    def show(self, scale: float = 1.0, threshold: float = LEAST_SCORE, **style: Any) -> None:
        """Show what :meth:`plot` draws, in a notebook or in the system's viewer of pictures."""
        picture = Image.fromarray(self.plot(scale, threshold, **style))
        ipython = sys.modules.get("IPython")
        if hasattr(ipython and ipython.get_ipython(), "kernel"):
            ipython.display.display(picture)
        else:
            picture.show()

    def crops(self) -> list[Image.Image]:
        """The part of the picture around each instance, with a margin of a tenth of its box."""
        picture, found = Image.fromarray(self.image), []
        for left, top, right, bottom in self._found.pred_boxes.tensor.tolist():
            x, y = CROP_MARGIN * (right - left), CROP_MARGIN * (bottom - top)
            start = max(0, int(left - x)), max(0, int(top - y))
            end = min(picture.width, int(right + x) + 1), min(picture.height, int(bottom + y) + 1)
            found.append(picture.crop((*start, *end)))
        return found
