"""Detections in one picture: as COCO's results, cut out, and drawn with supervision."""

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.structures import Instances
from PIL import Image

from ..config import InputError, import_extra
from ..files import make_folder, replacing

if TYPE_CHECKING:
    import supervision

CROP_MARGIN = 0.1  # of a box's sides
LEAST_KEYPOINT = 0.05  # confidence of a keypoint that is drawn, as Detectron2's
GOLDEN = 0.381966  # part of the circle of hues between neighbours, which keeps any number apart


@dataclass(eq=False)
class Result:
    """The output of a model for one picture.

    ``result["instances"]``, and the like, is a part of the output in Detectron2's format.
    ``len(result)`` is the number of instances, so that a result without any is false.
    """

    output: Mapping[str, Any]
    """Of the Detectron2 model."""
    image: np.ndarray
    """The picture, shape (H, W, 3), uint8, RGB."""
    metadata: Metadata
    """Names of classes and their ids in annotations."""
    source: Any = None
    """The path or address of the picture or video; None for an array."""
    frame: int | None = None
    """Number in a video, from 0."""

    __iter__ = None  # else Python would count up numbers, which are no keys

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
            has = ", ".join(self.output)
            raise InputError(f"the model finds no instances; its output has {has}")
        return self["instances"]

    @property
    def names(self) -> list[str]:
        """The class of each instance by its name, or by its number where there is no name."""
        known = self.metadata.get("thing_classes", None)
        return [class_name(known, number) for number in self.instances.pred_classes.tolist()]

    def above(self, threshold: float) -> "Result":
        """The result with the instances, and panoptic things, of at least this score.

        Pixels of things that are left out belong to no segment then.
        """
        output = dict(self.output)
        if "instances" in output:
            output["instances"] = self.instances[self.instances.scores >= threshold]
        if "panoptic_seg" in output:
            segments, info = output["panoptic_seg"]
            kept = [s for s in info if not s["isthing"] or s.get("score", 1) >= threshold]
            low = [s["id"] for s in info if s not in kept]
            left_out = torch.isin(segments, torch.tensor(low, dtype=segments.dtype).to(segments))
            output["panoptic_seg"] = segments.masked_fill(left_out, 0), kept
        return replace(self, output=output)

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """The instances as COCO's results, a list of dicts that ``COCO.loadRes`` takes.

        Boxes are x, y, width and height in pixels, masks compressed RLE. Ids of classes are those
        of the training data, and without any the classes' numbers.

        Args:
            image_id: of the picture in an annotation file.

        Raises:
            InputError: the model finds no instances.
        """
        from detectron2.evaluation.coco_evaluation import instances_to_coco_json

        contiguous = self.metadata.get("thing_dataset_id_to_contiguous_id", None) or {}
        original = {number: given for given, number in contiguous.items()}
        results = instances_to_coco_json(self.instances.to("cpu"), image_id)
        for result in results:
            result["category_id"] = original.get(result["category_id"], result["category_id"])
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
        """Draw boxes, masks, names and scores; segments of a panoptic or semantic model.

        Args:
            scale: of the picture; small images become legible when they are drawn larger.

        Returns:
            shape (H * scale, W * scale, 3), uint8, RGB.

        Raises:
            InputError: the output has nothing that can be drawn.
            MissingPackageError: supervision is not installed.
        """
        library = import_supervision()
        if "panoptic_seg" in self:
            found = _panoptic(*self["panoptic_seg"], self.metadata)
        elif "instances" in self:
            found = _instances(self.instances.to("cpu"), self.names)
        elif "sem_seg" in self:
            found = _semantic(self["sem_seg"], self.metadata)
        else:
            raise InputError(f"a model's output of {', '.join(self.output)} cannot be drawn")
        colors = [class_color(number) for number in range(max(found.class_id, default=0) + 1)]
        palette = library.ColorPalette([library.Color(*color) for color in colors])

        canvas = np.ascontiguousarray(self.image[:, :, ::-1])  # supervision draws in BGR
        canvas = library.MaskAnnotator(palette).annotate(canvas, found)
        if scale != 1:
            size = round(canvas.shape[1] * scale), round(canvas.shape[0] * scale)
            canvas = np.array(Image.fromarray(canvas).resize(size, Image.Resampling.BICUBIC))
        side = (canvas.shape[0] * canvas.shape[1]) ** 0.5
        thickness = max(1, round(side / 400))
        found.xyxy, found.mask = found.xyxy * scale, None
        position = library.Position.CENTER
        if "panoptic_seg" not in self and "instances" in self:
            position = library.Position.TOP_LEFT
            canvas = library.BoxAnnotator(palette, thickness).annotate(canvas, found)
            if self.instances.has("pred_keypoints"):
                _draw_keypoints(canvas, self.output, self.metadata, scale, thickness)
        labels = library.RichLabelAnnotator(
            palette,
            text_color=library.ColorPalette([_text_color(color) for color in colors]),
            font_size=max(10, round(side / 60)),
            text_padding=2,
            text_position=position,
            smart_position=True,  # labels make way for each other
        )
        canvas = labels.annotate(canvas, found, labels=found.data["label"].tolist())
        return np.ascontiguousarray(canvas[:, :, ::-1])

    def save(self, file: str | Path, scale: float = 1.0) -> Path:
        """Write what :meth:`plot` draws; the folder is made if need be.

        Returns:
            the path.

        Raises:
            InputError: as :meth:`plot`, or the file's ending is not a picture's.
            FileError: the file cannot be written.
        """
        write_picture(Image.fromarray(self.plot(scale)), Path(file))
        return Path(file)

    def crops(self) -> list[Image.Image]:
        """The part of the picture around each instance, with a margin of a tenth of its box."""
        picture, found = Image.fromarray(self.image), []
        for left, top, right, bottom in self.instances.pred_boxes.tensor.tolist():
            x, y = CROP_MARGIN * (right - left), CROP_MARGIN * (bottom - top)
            start = max(0, int(left - x)), max(0, int(top - y))
            end = min(picture.width, int(right + x) + 1), min(picture.height, int(bottom + y) + 1)
            found.append(picture.crop((*start, *end)))
        return found


def write_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all; the folder is made if need be.

    Raises:
        InputError: the ending is not a picture's.
        FileError: the file cannot be written.
    """
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:
        raise InputError(f"a drawing is written to a picture, .png for example, not to {path}")
    make_folder(path.parent)
    with replacing(path) as temporary:
        picture.save(temporary, format=kind)


def class_color(number: int) -> tuple[int, int, int]:
    """The colour of a class in every picture, red, green and blue from 0 to 255."""
    hue, value = number * GOLDEN % 1, (1.0, 0.75)[number // 8 % 2]
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.8, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def class_name(names: Sequence[str] | None, number: int) -> str:
    """The name of a class, or its number where there is no name."""
    return names[number] if names and number < len(names) else str(number)


def import_supervision() -> Any:
    """Import the library supervision.

    Raises:
        MissingPackageError: it is not installed.
    """
    return import_extra("supervision", "draw", "drawing detections")


def _text_color(color: tuple[int, int, int]) -> "supervision.Color":
    """Black or white, which is easier to read on a colour, by its luminance."""
    red, green, blue = color
    library = import_supervision()
    is_light = 0.299 * red + 0.587 * green + 0.114 * blue > 128
    return library.Color.BLACK if is_light else library.Color.WHITE


def _instances(instances: Instances, names: Sequence[str]) -> "supervision.Detections":
    if instances.has("scores"):  # annotations have none
        names = [f"{n} {s:.0%}" for n, s in zip(names, instances.scores.tolist(), strict=True)]
    masks = instances.pred_masks.numpy().astype(bool) if instances.has("pred_masks") else None
    return import_supervision().Detections(
        xyxy=instances.pred_boxes.tensor.numpy(),
        mask=masks,
        class_id=instances.pred_classes.numpy(),
        data={"label": np.array(names, dtype=str)},
    )


def _panoptic(
    segments: torch.Tensor, info: Sequence[Mapping[str, Any]], metadata: Metadata
) -> "supervision.Detections":
    segments, rows = segments.cpu().numpy(), []
    things, stuff = metadata.get("thing_classes", None), metadata.get("stuff_classes", None)
    for one in info:
        is_thing, number = one["isthing"], one["category_id"]
        label = class_name(things if is_thing else stuff, number)
        label += f" {one['score']:.0%}" if is_thing and "score" in one else ""
        shift = 0 if is_thing else len(things or ())
        rows.append((segments == one["id"], number + shift, label))
    return _segments(rows, segments.shape)


def _semantic(scores: torch.Tensor, metadata: Metadata) -> "supervision.Detections":
    classes, names = scores.argmax(0).cpu().numpy(), metadata.get("stuff_classes", None)
    shift = len(metadata.get("thing_classes", None) or ())
    rows = [(classes == n, n + shift, class_name(names, n)) for n in np.unique(classes).tolist()]
    return _segments(rows, classes.shape)


def _segments(
    rows: Sequence[tuple[np.ndarray, int, str]], shape: tuple[int, ...]
) -> "supervision.Detections":
    """Segments, whose labels are written in the middle of their boxes.

    Args:
        rows: of each the pixels, shape (H, W), bool; the number of its colour; and its label.
        shape: of the picture, (H, W).
    """
    library = import_supervision()
    masks = np.reshape([pixels for pixels, _, _ in rows], (-1, *shape)).astype(bool)
    return library.Detections(
        xyxy=library.mask_to_xyxy(masks),
        mask=masks,
        class_id=np.array([number for _, number, _ in rows], int),
        data={"label": np.array([label for _, _, label in rows], dtype=str)},
    )


def _draw_keypoints(
    canvas: np.ndarray, output: Mapping[str, Any], metadata: Metadata, scale: float, thickness: int
) -> None:
    """Draw keypoints and the lines between them in place."""
    library = import_supervision()
    points = library.KeyPoints.from_detectron2(output)
    if not len(points):
        return
    points.xy = points.xy * scale
    points.visible = points.keypoint_confidence > LEAST_KEYPOINT
    names = list(metadata.get("keypoint_names", None) or ())
    rules = metadata.get("keypoint_connection_rules", None) or ()
    lines = [(1 + names.index(start), 1 + names.index(end)) for start, end, _ in rules]
    if lines:
        library.EdgeAnnotator(library.Color.WHITE, thickness, lines).annotate(canvas, points)
    library.VertexAnnotator(library.Color.RED, 1 + thickness).annotate(canvas, points)
