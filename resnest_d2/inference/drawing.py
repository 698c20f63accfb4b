"""Drawings of what a model found, made with supervision."""

import colorsys
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache
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

logger = logging.getLogger(__name__)

LEAST_KEYPOINT = 0.05  # confidence of a keypoint that is drawn, as Detectron2's
GOLDEN = 0.381966  # part of the circle of hues between neighbours, which keeps any number apart
CROWDED = 0.1  # part of a drawing that labels may cover
FEW = 3  # objects, which are labelled in the smallest drawing
PADDING = 2  # pixels around a label's text


def draw(
    output: Mapping[str, Any],
    image: np.ndarray,
    metadata: Metadata,
    *,
    scale: float = 1.0,
    labels: bool = True,
    masks_only: bool = False,
    line_width: int | None = None,
) -> np.ndarray:
    """Draw boxes, masks, names and scores; segments of a panoptic or semantic model.

    A class has one colour in every picture. Where the labels would cover much of the drawing, one
    label a class in the corner says how many there are.

    Args:
        output: of a Detectron2 model.
        image: the picture, shape (H, W, 3), uint8, RGB.
        metadata: names of classes.
        scale: of the picture; small images become legible when they are drawn larger.
        labels: write names and scores.
        masks_only: draw masks alone, without boxes, keypoints and labels.
        line_width: of boxes, in pixels of the drawing; by default by its size.

    Returns:
        shape (H * scale, W * scale, 3), uint8, RGB.

    Raises:
        InputError: the output has nothing that can be drawn.
        MissingPackageError: supervision is not installed.
    """
    library = import_supervision()
    has_boxes = False
    if "panoptic_seg" in output:
        found = _panoptic(*output["panoptic_seg"], metadata)
    elif "instances" in output:
        found = _instances(output["instances"].to("cpu"), metadata)
        has_boxes = not masks_only
        if masks_only and found.mask is None:
            raise InputError("the model finds no masks, which alone were to be drawn")
    elif "sem_seg" in output:
        found = _semantic(output["sem_seg"], metadata)
    else:
        raise InputError(f"a model's output of {', '.join(output)} cannot be drawn")
    colors = [class_color(number) for number in range(max(found.class_id, default=0) + 1)]
    palette = library.ColorPalette([library.Color(*color) for color in colors])

    canvas = np.ascontiguousarray(image[:, :, ::-1])  # supervision draws in BGR
    canvas = library.MaskAnnotator(palette).annotate(canvas, found)
    if scale != 1:
        size = round(canvas.shape[1] * scale), round(canvas.shape[0] * scale)
        canvas = np.array(Image.fromarray(canvas).resize(size, Image.Resampling.BICUBIC))
    side = (canvas.shape[0] * canvas.shape[1]) ** 0.5
    thickness = line_width or max(1, round(side / 400))
    found.xyxy, found.mask = found.xyxy * scale, None
    if has_boxes:
        canvas = library.BoxAnnotator(palette, thickness).annotate(canvas, found)
        if output["instances"].has("pred_keypoints"):
            _draw_keypoints(canvas, output, metadata, scale, thickness)
    if labels and not masks_only and len(found):
        position = library.Position.TOP_LEFT if has_boxes else library.Position.CENTER
        canvas = _draw_labels(canvas, found, palette, position, max(10, round(side / 60)))
    return np.ascontiguousarray(canvas[:, :, ::-1])


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


def class_names(instances: Instances, metadata: Metadata) -> list[str]:
    """The class of each instance by its name, or by its number where there is no name."""
    known = metadata.get("thing_classes", None)
    return [class_name(known, number) for number in instances.pred_classes.tolist()]


def import_supervision() -> Any:
    """Import the library supervision.

    Raises:
        MissingPackageError: it is not installed.
    """
    return import_extra("supervision", "draw", "drawing detections")


def _text_color(color: "supervision.Color") -> "supervision.Color":
    """Black or white, which is easier to read on a colour, by its luminance."""
    is_light = 0.299 * color.r + 0.587 * color.g + 0.114 * color.b > 128
    return type(color).BLACK if is_light else type(color).WHITE


def _draw_labels(
    canvas: np.ndarray,
    found: "supervision.Detections",
    palette: "supervision.ColorPalette",
    position: "supervision.Position",
    font_size: int,
) -> np.ndarray:
    """Write the label of each detection, or of each class where there are too many."""
    library, texts = import_supervision(), found.data["label"].tolist()
    annotator = library.RichLabelAnnotator(
        palette,
        text_color=library.ColorPalette([_text_color(color) for color in palette.colors]),
        font_path=_find_font(frozenset("".join(texts))),
        font_size=font_size,
        text_padding=PADDING,
        text_position=position,
        smart_position=True,  # labels make way for each other
    )
    height = font_size + 2 * PADDING
    covered = height * sum(annotator.font.getbbox(text)[2] + 2 * PADDING for text in texts)
    if len(found) > FEW and covered > CROWDED * canvas.shape[0] * canvas.shape[1]:
        numbers = Counter(zip(found.class_id.tolist(), found.data["name"].tolist(), strict=True))
        texts = [f"{number} x {name}" for (_, name), number in numbers.items()]
        corner = np.tile([0.0, height, 1, height], (len(numbers), 1))
        found = library.Detections(corner, class_id=np.array([one for one, _ in numbers]))
        annotator.text_anchor = library.Position.TOP_LEFT
    return annotator.annotate(canvas, found, labels=texts)


@lru_cache(maxsize=1024)
def _find_font(characters: frozenset[str]) -> str | None:
    """The file of the font that has most of these characters, with a warning if not all.

    None stands for Pillow's own, which has those of Latin-1.
    """
    wanted = {ord(one) for one in characters if one.isprintable()}
    if max(wanted, default=0) < 256:
        return None
    import matplotlib
    from matplotlib.font_manager import findSystemFonts
    from matplotlib.ft2font import FT2Font

    files = [*findSystemFonts(matplotlib.get_data_path()), *findSystemFonts()]
    files = [file for file in files if "LastResort" not in file]  # it has boxes for all characters
    best, missing = None, {code for code in wanted if code > 255}
    # Of a family the regular style has the shortest name.
    for file in sorted(files, key=lambda file: len(Path(file).name)):
        try:
            lacks = wanted - FT2Font(file).get_charmap().keys()
        except RuntimeError:  # FreeType's, of a file that it cannot read
            continue
        if len(lacks) < len(missing):
            best, missing = file, lacks
    if missing:
        text = "".join(map(chr, sorted(missing)))
        logger.warning("No font here has %s: install one, on Debian fonts-noto-cjk, say", text)
    return best


def _instances(instances: Instances, metadata: Metadata) -> "supervision.Detections":
    names = labels = class_names(instances, metadata)
    if instances.has("scores"):  # annotations have none
        labels = [f"{n} {s:.0%}" for n, s in zip(names, instances.scores.tolist(), strict=True)]
    masks = instances.pred_masks.numpy().astype(bool) if instances.has("pred_masks") else None
    return import_supervision().Detections(
        xyxy=instances.pred_boxes.tensor.numpy(),
        mask=masks,
        class_id=instances.pred_classes.numpy(),
        data={"label": np.array(labels, dtype=str), "name": np.array(names, dtype=str)},
    )


def _panoptic(
    segments: torch.Tensor, info: Sequence[Mapping[str, Any]], metadata: Metadata
) -> "supervision.Detections":
    segments, rows = segments.cpu().numpy(), []
    things, stuff = metadata.get("thing_classes", None), metadata.get("stuff_classes", None)
    for one in info:
        is_thing, number = one["isthing"], one["category_id"]
        name = class_name(things if is_thing else stuff, number)
        label = f"{name} {one['score']:.0%}" if is_thing and "score" in one else name
        shift = 0 if is_thing else len(things or ())
        rows.append((segments == one["id"], number + shift, name, label))
    return _segments(rows, segments.shape)


def _semantic(scores: torch.Tensor, metadata: Metadata) -> "supervision.Detections":
    classes, names = scores.argmax(0).cpu().numpy(), metadata.get("stuff_classes", None)
    shift, rows = len(metadata.get("thing_classes", None) or ()), []
    for number in np.unique(classes).tolist():
        name = class_name(names, number)
        rows.append((classes == number, number + shift, name, name))
    return _segments(rows, classes.shape)


def _segments(
    rows: Sequence[tuple[np.ndarray, int, str, str]], shape: tuple[int, ...]
) -> "supervision.Detections":
    """Segments, whose labels are written in the middle of their boxes.

    Args:
        rows: of each the pixels, shape (H, W), bool; the number of its colour; name and label.
        shape: of the picture, (H, W).
    """
    library = import_supervision()
    masks = np.reshape([pixels for pixels, *_ in rows], (-1, *shape)).astype(bool)
    names = {"name": [row[2] for row in rows], "label": [row[3] for row in rows]}
    return library.Detections(
        xyxy=library.mask_to_xyxy(masks),
        mask=masks,
        class_id=np.array([number for _, number, *_ in rows], int),
        data={key: np.array(values, dtype=str) for key, values in names.items()},
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
