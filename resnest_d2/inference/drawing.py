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
from PIL import Image

from ..config import InputError, import_extra
from ..files import make_folder, replacing

if TYPE_CHECKING:
    import supervision

    from .result import Result

logger = logging.getLogger(__name__)

LEAST_KEYPOINT = 0.05  # confidence of a keypoint that is drawn, as Detectron2's
GOLDEN = 0.381966  # part of the circle of hues between neighbours, which keeps any number apart
CROWDED = 0.1  # part of a drawing that labels may cover
FEW = 3  # objects, which are labelled in the smallest drawing
PADDING = 2  # pixels around a label's text


def draw(
    result: "Result",
    scale: float = 1.0,
    *,
    labels: bool = True,
    masks_only: bool = False,
    line_width: int | None = None,
) -> np.ndarray:
    """Draw boxes, masks, names and scores; segments of a panoptic or semantic model.

    A class has one colour in every picture. Where the labels would cover much of the drawing, one
    label a class in the corner says how many there are.

    Args:
        result: all of it is drawn.
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
    if "panoptic_seg" in result:
        found = _segments(result, *result["panoptic_seg"])
    elif "instances" in result:
        found = _instances(result)
        has_boxes = not masks_only
        if masks_only and found.mask is None:
            raise InputError("the model finds no masks, which alone were to be drawn")
    elif "sem_seg" in result:
        classes = result["sem_seg"].argmax(0)
        numbers = classes.unique().tolist()
        info = [{"id": one, "category_id": one, "isthing": False} for one in numbers]
        found = _segments(result, classes, info)
    else:
        raise InputError(f"a model's output of {', '.join(result.output)} cannot be drawn")
    colors = [class_color(number) for number in range(max(found.class_id, default=0) + 1)]
    palette = library.ColorPalette([library.Color(*color) for color in colors])

    canvas = np.ascontiguousarray(result.image[:, :, ::-1])  # supervision draws in BGR
    canvas = library.MaskAnnotator(palette).annotate(canvas, found)
    if scale != 1:
        size = round(canvas.shape[1] * scale), round(canvas.shape[0] * scale)
        canvas = np.array(Image.fromarray(canvas).resize(size, Image.Resampling.BICUBIC))
    side = (canvas.shape[0] * canvas.shape[1]) ** 0.5
    thickness = line_width or max(1, round(side / 400))
    found.xyxy, found.mask = found.xyxy * scale, None
    if has_boxes:
        canvas = library.BoxAnnotator(palette, thickness).annotate(canvas, found)
        if result["instances"].has("pred_keypoints"):
            _draw_keypoints(canvas, result, scale, thickness)
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


def import_supervision() -> Any:
    """Import the library supervision.

    Raises:
        MissingPackageError: it is not installed.
    """
    return import_extra("supervision", "draw", "drawing detections")


def _instances(result: "Result") -> "supervision.Detections":
    """Boxes, masks, names and labels; annotations have no scores."""
    library, names = import_supervision(), result.names
    instances = result.instances.to("cpu")
    scores = instances.scores.tolist() if instances.has("scores") else [None] * len(names)
    return library.Detections(
        xyxy=instances.pred_boxes.tensor.numpy(),
        mask=instances.pred_masks.numpy().astype(bool) if instances.has("pred_masks") else None,
        class_id=instances.pred_classes.numpy(),
        data=_texts(names, scores),
    )


def _segments(
    result: "Result", segments: torch.Tensor, info: Sequence[Mapping[str, Any]]
) -> "supervision.Detections":
    """Segments in Detectron2's panoptic format; colours of stuff come after those of things."""
    library, ids = import_supervision(), segments.cpu().numpy()
    kinds = ["thing_classes" if one["isthing"] else "stuff_classes" for one in info]
    pairs = list(zip(info, kinds, strict=True))
    shift = len(result.metadata.get("thing_classes", None) or ())
    numbers = [one["category_id"] + shift * (kind == "stuff_classes") for one, kind in pairs]
    names = [result.class_name(one["category_id"], kind) for one, kind in pairs]
    masks = np.reshape([ids == one["id"] for one in info], (-1, *ids.shape)).astype(bool)
    return library.Detections(
        xyxy=library.mask_to_xyxy(masks),
        mask=masks,
        class_id=np.array(numbers, int),
        data=_texts(names, [one.get("score") for one in info]),
    )


def _texts(names: Sequence[str], scores: Sequence[float | None]) -> dict[str, np.ndarray]:
    pairs = zip(names, scores, strict=True)
    labels = [name if score is None else f"{name} {score:.0%}" for name, score in pairs]
    return {"name": np.array(names, dtype=str), "label": np.array(labels, dtype=str)}


def _draw_keypoints(canvas: np.ndarray, result: "Result", scale: float, thickness: int) -> None:
    """Draw keypoints and the lines between them in place."""
    library = import_supervision()
    points = library.KeyPoints.from_detectron2(result.output)
    if not len(points):
        return
    points.xy = points.xy * scale
    points.visible = points.keypoint_confidence > LEAST_KEYPOINT
    names = list(result.metadata.get("keypoint_names", None) or ())
    rules = result.metadata.get("keypoint_connection_rules", None) or ()
    lines = [(1 + names.index(start), 1 + names.index(end)) for start, end, _ in rules]
    if lines:
        library.EdgeAnnotator(library.Color.WHITE, thickness, lines).annotate(canvas, points)
    library.VertexAnnotator(library.Color.RED, 1 + thickness).annotate(canvas, points)


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


def _text_color(color: "supervision.Color") -> "supervision.Color":
    """Black or white, which is easier to read on a colour, by its luminance."""
    is_light = 0.299 * color.r + 0.587 * color.g + 0.114 * color.b > 128
    return type(color).BLACK if is_light else type(color).WHITE


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

    files = [*findSystemFonts(matplotlib.get_data_path()), *findSystemFonts()]
    # Of a family the regular style has the shortest name; LastResort has boxes for all characters.
    files.sort(key=lambda file: len(Path(file).name))
    lacks = {file: wanted - _characters(file) for file in files if "LastResort" not in file}
    best = min(lacks, key=lambda file: len(lacks[file]))
    if lacks[best]:
        text = "".join(map(chr, sorted(lacks[best])))
        logger.warning("No font here has %s: install one, on Debian fonts-noto-cjk, say", text)
    return best


def _characters(font: str) -> set[int]:
    from matplotlib.ft2font import FT2Font

    try:
        return {*FT2Font(font).get_charmap()}
    except RuntimeError:  # FreeType's, of a file that it cannot read
        return set()
