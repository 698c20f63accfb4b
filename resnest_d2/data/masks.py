"""Masks of annotations: polygons and run-length encodings, in the pixels of their pictures."""

from typing import Any

import pycocotools.mask as mask_util
from pydantic import NonNegativeInt, StrictStr, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from ..config import InputError
from .coco_images import ImageFile
from .rle import as_text, decode_counts
from .schema import Coordinate, parse

Box = list[float]  # x, y, width, height
Polygons = list[list[float]]
Mask = Polygons | dict[str, Any]


class Rle(TypedDict):
    """A run-length encoded mask."""

    size: tuple[NonNegativeInt, NonNegativeInt]
    counts: StrictStr | list[NonNegativeInt]


RLE = TypeAdapter(Rle)
POLYGONS = TypeAdapter(list[list[Coordinate]])
RLE_MUST = "its RLE must be 'size' [height, width] and 'counts', a list of numbers or a string"
POLYGONS_MUST = "'segmentation' must be RLE or a list of polygons, [[x1, y1, x2, ...], ...]"


def parse_mask(value: Any, image: ImageFile) -> Mask:
    """Return polygons, or a compressed RLE of the picture's size; either may be empty.

    A single polygon may stand without its outer list, and its points may be pairs.

    Raises:
        InputError: it is no mask, or of another size than the picture.
    """
    if isinstance(value, dict):
        return _read_rle(parse(RLE, value, RLE_MUST), image.size)
    try:
        polygons = POLYGONS.validate_python(value)
        if all(len(polygon) != 2 for polygon in polygons):
            return _fit(polygons, image)
    except ValidationError:  # it is written in another way than COCO's
        pass
    if isinstance(value, list):
        if all(map(_is_point, value)) or not any(isinstance(part, list) for part in value):
            value = [value]
        value = [
            [coordinate for point in part for coordinate in point] if _has_points(part) else part
            for part in value
        ]
    return _fit(parse(POLYGONS, value, POLYGONS_MUST), image)


def _is_point(value: Any) -> bool:
    return isinstance(value, list) and [isinstance(part, list) for part in value] == [False, False]


def _has_points(polygon: Any) -> bool:
    return isinstance(polygon, list) and all(map(_is_point, polygon))


def _fit(polygons: Polygons, image: ImageFile) -> Polygons:
    """Scale polygons to the picture's size, or clip them where it is a pixel or two off."""
    if image.declared == image.size:
        return polygons
    return [
        [min(max(v * image.scale[i % 2], 0), image.size[i % 2]) for i, v in enumerate(polygon)]
        for polygon in polygons
    ]


def mask_box(mask: Mask) -> Box:
    """Return the box (x, y, width, height) of polygons or a compressed RLE."""
    if isinstance(mask, dict):
        return mask_util.toBbox(mask).tolist()
    xs = [x for polygon in mask for x in polygon[::2]]
    ys = [y for polygon in mask for y in polygon[1::2]]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def mask_area(mask: Mask, size: tuple[int, int]) -> float:
    """Return a mask's pixels, in an image of this width and height."""
    if isinstance(mask, list):
        mask = mask_util.merge(mask_util.frPyObjects(mask, size[1], size[0]))
    return float(mask_util.area(mask))


def _read_rle(rle: Rle, size: tuple[int, int]) -> dict[str, Any]:
    """Return a compressed RLE of a picture's width and height.

    Raises:
        InputError: it is of another size, or its counts are none.
    """
    (width, height), counts = size, rle["counts"]
    if rle["size"] != (height, width):
        given = [*rle["size"]]
        raise InputError(f"its RLE has size {given} (height, width), its image [{height}, {width}]")
    try:
        runs = decode_counts(counts) if isinstance(counts, str) else counts
    except InputError as error:
        raise InputError(f"its RLE cannot be decoded: {error}") from error
    if sum(runs) != height * width or min(runs) < 0:
        raise InputError(f"the counts of its RLE do not add up to {height} x {width}")
    mask = {"size": [height, width], "counts": counts}
    if isinstance(counts, str):
        return mask
    return as_text(mask_util.frPyObjects(mask, height, width))
