"""Drawing what models find, with supervision: one colour a class in every picture."""

import colorsys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.data import Metadata
from detectron2.structures import Instances
from PIL import Image

from ..config import import_extra

if TYPE_CHECKING:
    import supervision

LEAST_KEYPOINT = 0.05  # confidence of a keypoint that is drawn, as Detectron2's
GOLDEN = 0.381966  # part of the circle of hues between neighbours, which keeps any number apart


def class_color(number: int) -> tuple[int, int, int]:
    """The colour of a class, red, green and blue from 0 to 255."""
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


def draw(
    image: np.ndarray, output: Mapping[str, Any], metadata: Metadata, scale: float = 1.0
) -> np.ndarray:
    """Draw a Detectron2 model's output: its instances, or its panoptic or semantic segments.

    Args:
        image: shape (H, W, 3), uint8, RGB.
        output: with "instances", "panoptic_seg" or "sem_seg"; instances may have no scores.
        metadata: names of the classes.
        scale: of the drawing.

    Returns:
        shape (H * scale, W * scale, 3), uint8, RGB.

    Raises:
        MissingPackageError: supervision is not installed.
    """
    library = import_supervision()
    shown = []
    if "panoptic_seg" in output:
        shown.append(_panoptic(*output["panoptic_seg"], metadata))
    elif "sem_seg" in output:
        shown.append(_semantic(output["sem_seg"], metadata))
    if "instances" in output and "panoptic_seg" not in output:
        shown.append(_instances(output["instances"].to("cpu"), metadata))
    numbers = [number for one in shown for number in one.class_id.tolist()]
    colors = [library.Color(*class_color(number)) for number in range(max(numbers, default=0) + 1)]
    palette = library.ColorPalette(colors)

    canvas = np.ascontiguousarray(image[:, :, ::-1])  # supervision draws in BGR
    for one in shown:
        canvas = library.MaskAnnotator(palette).annotate(canvas, one)
    if scale != 1:
        size = round(image.shape[1] * scale), round(image.shape[0] * scale)
        canvas = np.array(Image.fromarray(canvas).resize(size, Image.Resampling.BICUBIC))
    side = (canvas.shape[0] * canvas.shape[1]) ** 0.5
    thickness = max(1, round(side / 400))
    for one in shown:
        one.xyxy, one.mask = one.xyxy * scale, None
        if not one.metadata["segments"]:
            canvas = library.BoxAnnotator(palette, thickness).annotate(canvas, one)
    if "instances" in output and output["instances"].has("pred_keypoints"):
        _draw_keypoints(canvas, output, metadata, scale, thickness)
    light = [library.Color.BLACK if _is_light(color) else library.Color.WHITE for color in colors]
    for one in shown:
        position = library.Position.CENTER if one.metadata["segments"] else None
        labels = library.RichLabelAnnotator(
            palette,
            text_color=library.ColorPalette(light),
            font_size=max(10, round(side / 60)),
            text_padding=2,
            text_position=position or library.Position.TOP_LEFT,
            smart_position=True,  # labels make way for each other
        )
        canvas = labels.annotate(canvas, one, labels=one.data["label"].tolist())
    return np.ascontiguousarray(canvas[:, :, ::-1])


def _instances(instances: Instances, metadata: Metadata) -> "supervision.Detections":
    names = metadata.get("thing_classes", None)
    labels = [class_name(names, number) for number in instances.pred_classes.tolist()]
    if instances.has("scores"):
        pairs = zip(labels, instances.scores.tolist(), strict=True)
        labels = [f"{label} {score:.0%}" for label, score in pairs]
    return import_supervision().Detections(
        xyxy=instances.pred_boxes.tensor.numpy(),
        mask=instances.pred_masks.numpy().astype(bool, copy=False)
        if instances.has("pred_masks")
        else None,
        class_id=instances.pred_classes.numpy(),
        data={"label": np.array(labels, dtype=str)},
        metadata={"segments": False},
    )


def _panoptic(
    segments: torch.Tensor, info: Sequence[Mapping[str, Any]], metadata: Metadata
) -> "supervision.Detections":
    segments, rows = segments.cpu().numpy(), []
    things, stuff = metadata.get("thing_classes", None), metadata.get("stuff_classes", None)
    for one in info:
        number = one["category_id"]
        label = class_name(things if one["isthing"] else stuff, number)
        if one["isthing"] and "score" in one:
            label += f" {one['score']:.0%}"
        shift = 0 if one["isthing"] else len(things or ())
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
    """Segments, whose boxes are the points that their labels are written at.

    Args:
        rows: of each the pixels, shape (H, W), bool; the number of its colour; and its label.
        shape: of the picture, (H, W).
    """
    rows = [row for row in rows if row[0].any()]
    centres = [np.argwhere(pixels).mean(0)[::-1] for pixels, _, _ in rows]
    return import_supervision().Detections(
        xyxy=np.reshape([[*centre, *centre] for centre in centres], (-1, 4)),
        mask=np.reshape([pixels for pixels, _, _ in rows], (-1, *shape)).astype(bool),
        class_id=np.array([number for _, number, _ in rows], int),
        data={"label": np.array([label for _, _, label in rows], dtype=str)},
        metadata={"segments": True},
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


def _is_light(color: "supervision.Color") -> bool:
    """Whether black text is easier to read on a colour than white, by its luminance."""
    return 0.299 * color.r + 0.587 * color.g + 0.114 * color.b > 128
